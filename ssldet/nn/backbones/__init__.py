"""BackboneConfig -> Backbone: any network of torchvision or timm behind one door, B 3 H W -> levels, NCHW."""

from torchvision import models

from ssldet.errors import ConfigError, suggest
from ssldet.nn.backbones.config import BackboneConfig, split_tag
from ssldet.nn.backbones.from_timm import build_timm
from ssldet.nn.backbones.from_torchvision import NO_DILATION, build_torchvision
from ssldet.nn.backbones.network import IMAGENET_MEAN, IMAGENET_STD, Backbone, Network, original_state
from ssldet.nn.backbones.norms import FixedNorm, calibrate
from ssldet.nn.backbones.tiny import build_tiny

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Backbone",
    "BackboneConfig",
    "FixedNorm",
    "Network",
    "backbone_names",
    "build_backbone",
    "calibrate",
    "original_state",
    "split_tag",
]


def build_backbone(config: BackboneConfig) -> Backbone:
    """Build the architecture with fresh weights.

    Args:
        config: Which one.

    Raises:
        ConfigError: No such network, or one that can't serve as a backbone.
    """
    library, name = _locate(config.name)
    build = {"tiny": build_tiny, "torchvision": build_torchvision, "timm": build_timm}[library]
    try:
        backbone = Backbone(build(name, config), frozen_stages=config.frozen_stages)
    except ConfigError as error:
        raise ConfigError(f"backbone {config.name!r}: {error}") from error
    # Some families take the option and ignore it.
    if backbone.stride > config.output_stride:
        raise ConfigError(f"backbone {config.name!r}: {NO_DILATION}")
    return backbone


def _locate(name: str) -> tuple[str, str]:
    """Return library and model of a name; torchvision comes first where both have it."""
    library, _, model = name.rpartition("/")
    if name == "tiny":
        return "tiny", name
    if library in ("", "torchvision") and model in models.list_models(module=models):
        return "torchvision", model
    if library in ("", "timm"):
        import timm

        if timm.is_model(model):
            return "timm", model
    known = backbone_names() if library else [known.rpartition("/")[2] for known in backbone_names()]
    nearest = suggest(name, known)
    raise ConfigError(f"no backbone {name!r}{nearest}; use 'tiny', 'torchvision/MODEL' or 'timm/MODEL'")


def backbone_names() -> list[str]:
    """List what `BackboneConfig.name` may be; a model that gives no feature map is refused when it is built."""
    import timm

    own = ["tiny"]
    return (
        own
        + [f"torchvision/{name}" for name in models.list_models(module=models)]
        + [f"timm/{name}" for name in timm.list_models()]
    )
