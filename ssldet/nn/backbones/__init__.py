"""BackboneConfig -> Backbone: any network of torchvision or timm with one interface, B 3 H W -> levels, NCHW."""

from torch import nn

from ssldet.errors import ConfigError, suggest
from ssldet.nn.backbones.config import BackboneConfig, split_tag
from ssldet.nn.backbones.from_timm import build_timm
from ssldet.nn.backbones.from_torchvision import NO_DILATION, build_torchvision
from ssldet.nn.backbones.network import IMAGENET_MEAN, IMAGENET_STD, SUITABLE, Backbone, Network, original_state
from ssldet.nn.backbones.norms import FixedNorm, calibrate
from ssldet.nn.backbones.own import Factory, build_own, name_for, own_names, remember
from ssldet.nn.backbones.stem import take_channels
from ssldet.nn.backbones.tiny import build_tiny

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Backbone",
    "BackboneConfig",
    "FixedNorm",
    "Network",
    "adopt",
    "backbone_names",
    "build_backbone",
    "calibrate",
    "original_state",
    "register_backbone",
    "split_tag",
]


def build_backbone(config: BackboneConfig) -> Backbone:
    """Build the architecture with fresh weights.

    Args:
        config: The architecture and its options.

    Raises:
        ConfigError: There is no such network, or it can't be used as a backbone.
    """
    library, name = _locate(config.name)
    build = {"tiny": build_tiny, "own": build_own, "torchvision": build_torchvision, "timm": build_timm}[library]
    try:
        backbone = Backbone(build(name, config), frozen_stages=config.frozen_stages)
        take_channels(backbone, config.channels, config.mean, config.std)
    except ConfigError as error:
        raise ConfigError(f"backbone {config.name!r}: {error}") from error
    # Some families take the option and ignore it.
    if backbone.stride > config.output_stride:
        coarse = f"its last level has stride {backbone.stride}, too coarse for objects; use {SUITABLE}"
        raise ConfigError(f"backbone {config.name!r}: {NO_DILATION if config.output_stride == 16 else coarse}")
    return backbone


def register_backbone(name: str, network: nn.Module | Factory) -> None:
    """Register a network of your own as a backbone, for this process; packages use the group `ssldet.backbones`.

    It maps normalised images `B 3 H W` to a level `B E h w`, or to a list or dictionary of levels from fine to coarse.
    Attributes `mean` and `std`, three numbers each for pixels in 0..1, replace ImageNet's. The weights that it comes
    with are kept.

    Args:
        name: The value of `BackboneConfig.name` that stands for it; registering a name again replaces the network.
        network: The network, of which every detector gets a copy, or a function without arguments that makes one.

    Raises:
        ConfigError: The name is another network's or can't be one.
    """
    if not name or set(name) & set("./:"):
        raise ConfigError(f"backbone name {name!r}: use letters, digits, '-' and '_', such as 'mine'")
    if name not in own_names() and name in _plain_names():
        raise ConfigError(f"backbone name {name!r} is taken by a network of ours, torchvision or timm; use 'my_{name}'")
    remember(name, network)


def adopt(network: nn.Module) -> str:
    """Register a network under the name of its class, numbered where that is taken, and return the name.

    Args:
        network: A network as `register_backbone` takes it.
    """
    name = name_for(network)
    register_backbone(name, network)
    return name


def _locate(name: str) -> tuple[str, str]:
    """Return the library and the model of a name; torchvision is preferred where both libraries have it."""
    library, _, model = name.rpartition("/")
    if name == "tiny":
        return "tiny", name
    if name in own_names():
        return "own", name
    if library in ("", "torchvision") and model in _torchvision_names():
        return "torchvision", model
    if library in ("", "timm"):
        import timm

        if timm.is_model(model):
            return "timm", model
    known = backbone_names() if library else _plain_names()
    remedy = "use 'tiny', 'torchvision/MODEL' or 'timm/MODEL'"
    if not library:
        remedy += f"; if it is a network of your own, call ssldet.register_backbone({name!r}, NETWORK) first"
    raise ConfigError(f"no backbone {name!r}{suggest(name, known)}; {remedy}")


def backbone_names() -> list[str]:
    """Return the values that `BackboneConfig.name` takes; a model without feature maps is refused when it is built."""
    import timm

    return [
        "tiny",
        *own_names(),
        *(f"torchvision/{name}" for name in _torchvision_names()),
        *(f"timm/{name}" for name in timm.list_models()),
    ]


def _torchvision_names() -> list[str]:
    from torchvision import models

    names: list[str] = models.list_models(module=models)
    return names


def _plain_names() -> list[str]:
    return [name.rpartition("/")[2] for name in backbone_names()]
