"""BackboneConfig -> Backbone: any CNN of torchvision or timm behind one door, B 3 H W -> B E h w.

The original module tree stays whole under `body`, with its original names, so that anybody's weights file for the
architecture fits; heads and later stages that the last level does not need are cut off. No weights are loaded here.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torchvision import models
from torchvision.ops import FrozenBatchNorm2d

from ssldet.errors import ConfigError, suggest
from ssldet.recipe import Within

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PROBE_SIDE = 64
"""Side of the blank image that shows the strides of a network."""
_NO_DILATION = "it has no form with output_stride=16; use 32, or another network, such as 'resnet50'"
TORCHVISION_HEADS = {"avgpool", "fc", "classifier", "dropout", "flatten", "head", "heads", "aux1", "aux2"}


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Which network looks at the image.

    Attributes:
        name: A torchvision or timm model (`resnet50`, `torchvision/resnet50`, `timm/resnet50`), or `tiny`, a small
            network for work without an accelerator.
        weights: Where its weights come from; none leaves them fresh. Read by whoever loads weights, not here.
        output_stride: Stride of the last level; 16 dilates the last stage instead (DETR-DC5). `tiny` always has 8.
        frozen_norm: Replace batch normalisation by its fixed form.
        frozen_stages: How far the backbone stays frozen even when it trains: 1 freezes all up to stride 4 (DETR), 2 up
            to stride 8, and so on; 0 freezes nothing.
        tiny_channels: Channels of the layers of `tiny`, whose last level joins them all.
    """

    name: str = "resnet50"
    weights: str | None = None
    output_stride: Literal[16, 32] = 32
    frozen_norm: bool = True
    frozen_stages: Annotated[int, Within(0, 5)] = 1
    tiny_channels: tuple[int, ...] = (32, 64, 128)

    def problems(self) -> list[str]:
        """Say what no single field can know."""
        wrong = []
        if self.name == "tiny" and self.output_stride != 32:
            wrong.append("output_stride: 'tiny' always has stride 8; leave output_stride at 32")
        if not self.tiny_channels or min(self.tiny_channels) < 1:
            wrong.append(f"tiny_channels: {self.tiny_channels} must name at least one layer of at least one channel")
        return wrong


class FixedNorm(FrozenBatchNorm2d):  # type: ignore[misc]  # torchvision has no types
    """Batch normalisation that never changes: torchvision's, but in one pass and in the precision of the features."""

    def forward(self, features: Float[Tensor, "B E h w"]) -> Float[Tensor, "B E h w"]:
        """Normalise by the fixed statistics."""
        return F.batch_norm(
            features, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


class Backbone(nn.Module):
    """A network without its head. Frozen parts run without autograd and keep their statistics.

    Attributes:
        body: The original module tree.
        channels: Channels of the last level (E).
        stride: Pixels per cell of the last level, roughly: networks round up or down as they like.
        mean: Channel means of the pixels it was made for, in 0..1.
        std: Channel deviations of the same.
    """

    _mean: Tensor
    _std: Tensor

    def __init__(
        self,
        body: nn.Module,
        run: Callable[[nn.Module, Tensor], Tensor],
        *,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        frozen_stages: int = 0,
    ) -> None:
        """Look at a network and freeze its first stages.

        Args:
            body: The network.
            run: How to get its last level: body, `B 3 H W` -> `B E h w`.
            mean: Channel means.
            std: Channel deviations.
            frozen_stages: See `BackboneConfig`.

        Raises:
            ConfigError: The network does not answer an image with a feature map.
        """
        super().__init__()
        self.body, self._run = body, run
        self.mean, self.std = tuple(mean), tuple(std)
        self.register_buffer("_mean", torch.tensor(self.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(self.std).view(3, 1, 1), persistent=False)
        self.channels, self.stride, strides = _probe(body, run)
        limit = 2 ** (frozen_stages + 1) if frozen_stages else 0
        self._frozen = [name for name, stride in strides.items() if stride <= limit]
        self.requires_grad_(True)

    def requires_grad_(self, requires_grad: bool = True) -> "Backbone":
        """Freeze or thaw; the first stages stay frozen in any case."""
        super().requires_grad_(requires_grad)
        for name in self._frozen:
            self.body.get_submodule(name).requires_grad_(False)
        return self

    def train(self, mode: bool = True) -> "Backbone":
        """Switch the mode; the frozen stages stay in evaluation mode."""
        super().train(mode)
        for name in self._frozen:
            self.body.get_submodule(name).eval()
        return self

    def normalise(
        self, pixels: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"], padding: Bool[Tensor, "B H W"] | None = None
    ) -> Float[Tensor, "B 3 H W"]:
        """Scale pixels by `mean` and `std`.

        Args:
            pixels: 0..255, or 0..1 where floating.
            padding: True where the canvas holds no image; becomes 0.
        """
        scale = 1.0 if pixels.is_floating_point() else 255.0
        scaled = (pixels - self._mean * scale) / (self._std * scale)
        return scaled if padding is None else scaled.masked_fill_(padding.unsqueeze(1), 0)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B E h w"]:
        """Return the last level.

        Args:
            images: Normalised images.
        """
        learns = images.requires_grad or any(parameter.requires_grad for parameter in self.parameters())
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            return self._run(self.body, images.contiguous(memory_format=torch.channels_last))


def build_backbone(config: BackboneConfig) -> Backbone:
    """Build the architecture with fresh weights.

    Args:
        config: Which one.

    Raises:
        ConfigError: No such network, or one that can't serve as a backbone.
    """
    library, name = _locate(config.name)
    build = {"tiny": _build_tiny, "torchvision": _build_torchvision, "timm": _build_timm}[library]
    try:
        backbone = build(name, config)
    except ConfigError as error:
        raise ConfigError(f"backbone {config.name!r}: {error}") from error
    # Some families take the option and ignore it.
    if backbone.stride > config.output_stride:
        raise ConfigError(f"backbone {config.name!r}: {_NO_DILATION}")
    return backbone


def calibrate(backbone: Backbone, images: Float[Tensor, "B 3 H W"]) -> None:
    """Set the statistics of every batch norm from these images, layer by layer, as if it had long seen such images.

    A network with fresh weights needs this before its norms are fixed: nothing else scales its features.

    Args:
        backbone: Changed in place.
        images: Normalised images.
    """

    def measure(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        values = inputs[0].float()
        norm.get_buffer("running_mean").copy_(values.mean((0, 2, 3)))
        norm.get_buffer("running_var").copy_(values.var((0, 2, 3), correction=0))

    norms = [module for module in backbone.modules() if getattr(module, "running_mean", None) is not None]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    was_training = backbone.training
    try:
        with torch.no_grad():
            backbone.eval()(images)
    finally:
        for hook in hooks:
            hook.remove()
        backbone.train(was_training)


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


def _build_tiny(_: str, config: BackboneConfig) -> Backbone:
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        (f"layer{number}", _tiny_layer(before, after, config.frozen_norm))
        for number, (before, after) in enumerate(pairwise((3, *config.tiny_channels)), start=1)
    )
    return Backbone(nn.Sequential(layers), _run_all_levels, frozen_stages=config.frozen_stages)


def _run_all_levels(body: nn.Module, images: Tensor) -> Tensor:
    """Return all levels side by side on the last one's cells: with fresh weights the early ones tell the most."""
    levels = []
    for layer in body.children():
        images = layer(images)
        levels.append(images)
    height, width = images.shape[-2:]
    return torch.cat([F.adaptive_avg_pool2d(level, (height, width)) for level in levels], dim=1)


def _tiny_layer(before: int, after: int, frozen_norm: bool) -> nn.Sequential:
    conv = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    norm = FixedNorm(after) if frozen_norm else nn.BatchNorm2d(after)
    return nn.Sequential(OrderedDict(conv=conv, norm=norm, relu=nn.ReLU()))


def _build_torchvision(name: str, config: BackboneConfig) -> Backbone:
    options: dict[str, Any] = {}
    if config.output_stride == 16:
        options["replace_stride_with_dilation"] = [False, False, True]
    try:
        model = models.get_model(name, weights=None, **options)
    except TypeError as error:
        raise ConfigError(_NO_DILATION) from error
    transforms = models.get_model_weights(name).DEFAULT.transforms()
    kept = OrderedDict((part, child) for part, child in model.named_children() if part not in TORCHVISION_HEADS)
    body = nn.Sequential(kept)
    if config.frozen_norm:
        _freeze_norms(body)
    return Backbone(body, _run_whole, mean=transforms.mean, std=transforms.std, frozen_stages=config.frozen_stages)


def _build_timm(name: str, config: BackboneConfig) -> Backbone:
    import timm

    library: Any = timm  # its types are incomplete
    options: dict[str, Any] = {} if config.output_stride == 32 else {"output_stride": 16}
    try:
        body = library.create_model(name, pretrained=False, num_classes=0, **options)
    except (TypeError, NotImplementedError, AssertionError) as error:
        if not options:
            raise
        raise ConfigError(_NO_DILATION) from error
    if not hasattr(body, "forward_intermediates"):
        raise ConfigError("timm offers no feature maps of it; choose a convolutional network")
    body.prune_intermediate_layers(1, prune_head=True)
    data = library.data.resolve_model_data_config(body)
    if config.frozen_norm:
        body = library.layers.freeze_batch_norm_2d(body)
    return Backbone(body, _run_timm, mean=data["mean"], std=data["std"], frozen_stages=config.frozen_stages)


def _run_whole(body: nn.Module, images: Tensor) -> Tensor:
    level: Tensor = body(images)
    return level


def _run_timm(body: Any, images: Tensor) -> Tensor:
    level: Tensor = body.forward_intermediates(images, 1, stop_early=True, intermediates_only=True)[-1]
    return level


def _freeze_norms(parent: nn.Module) -> None:
    for name, child in parent.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(parent, name, FixedNorm(child.num_features, eps=child.eps))
        else:
            _freeze_norms(child)


def _probe(body: nn.Module, run: Callable[[nn.Module, Tensor], Tensor]) -> tuple[int, int, dict[str, float]]:
    """Return channels and stride of the last level, and the stride after each block, from input to output."""
    sides: dict[str, int] = {}

    def listen(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.dim() == 4:
                sides[name] = output.shape[2]  # a side both in NCHW and in NHWC, as the image is square

        return note

    hooks = [block.register_forward_hook(listen(name)) for name, block in _blocks(body)]
    body.eval()
    try:
        with torch.no_grad():
            level = run(body, torch.zeros(1, 3, PROBE_SIDE, PROBE_SIDE))
    except Exception as error:
        raise ConfigError(f"can't look at images of any size ({error}); choose a convolutional network") from error
    finally:
        for hook in hooks:
            hook.remove()
        body.train()
    if level.dim() != 4 or level.shape[2] != level.shape[3]:
        raise ConfigError(f"answers an image with shape {tuple(level.shape)}; choose a convolutional network")
    strides: dict[str, float] = {}
    side = level.shape[2]
    for name, _ in _blocks(body):
        side = sides.get(name, side)
        strides[name] = PROBE_SIDE / side
    return level.shape[1], round(PROBE_SIDE / level.shape[2]), strides


def _blocks(body: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Walk the parts that a stage may end with: children, and the children of sequences."""
    for name, child in body.named_children():
        if isinstance(child, nn.Sequential):
            yield from ((f"{name}.{inner}", block) for inner, block in child.named_children())
        else:
            yield name, child
