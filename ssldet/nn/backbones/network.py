"""B 3 H W -> feature levels: a library's network behind the one face that detectors know.

The original module tree stays whole under `body`, with its original names, so that anybody's weights file for the
architecture fits; heads and later stages that the last level does not need are cut off. No weights are loaded here.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from ssldet.errors import ConfigError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PROBE_SIDE = 64
"""Side of the blank image that shows the strides of a network."""

Run = Callable[[nn.Module, Tensor], Sequence[Tensor]]
"""body, `B 3 H W` -> levels `B _ _ _`, from fine to coarse."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """What a family of networks hands over.

    Attributes:
        body: The network.
        run: How to get its levels.
        original: Names of the state that the library's own headless model has; none means just those of `body`.
        stages: Names of the parts of `body` that belong to each stage, in order; none finds them by their strides.
        mean: Channel means of the pixels it was made for, in 0..1.
        std: Channel deviations of the same.
        interpolation: How those images had been resized.
        probe_side: Side of a blank image whose levels show the strides.
        keeps_weights: Its first weights mean something and are not to be replaced.
    """

    body: nn.Module
    run: Run
    original: tuple[str, ...] | None = None
    stages: Sequence[Sequence[str]] | None = None
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    interpolation: str = "bilinear"
    probe_side: int = PROBE_SIDE
    keeps_weights: bool = False


class Backbone(nn.Module):
    """A network without its head. Frozen parts run without autograd and keep their statistics.

    Attributes:
        body: The original module tree.
        channels: Channels of the last level (E).
        stride: Pixels per cell of the last level, roughly: networks round up or down as they like.
        level_channels: Channels of each level, from fine to coarse.
        level_strides: Stride of each level, roughly.
        mean: Channel means of the pixels it was made for, in 0..1.
        std: Channel deviations of the same.
        interpolation: How the images that it was made for had been resized; for information.
        keeps_weights: Its first weights mean something and are not to be replaced.
        pruned: Names of the original state that were cut off, because no level needs them.
    """

    _mean: Tensor
    _std: Tensor

    def __init__(self, network: Network, *, frozen_stages: int = 0) -> None:
        """Look at a network and freeze its first stages.

        Args:
            network: The network.
            frozen_stages: See `BackboneConfig`.

        Raises:
            ConfigError: The network does not answer an image with feature maps.
        """
        super().__init__()
        self.body, self._run = network.body, network.run
        self.mean, self.std, self.interpolation = tuple(network.mean), tuple(network.std), network.interpolation
        self.keeps_weights = network.keeps_weights
        self.register_buffer("_mean", torch.tensor(self.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(self.std).view(3, 1, 1), persistent=False)
        found = _probe(network)
        self.level_channels, self.level_strides = found.channels, found.strides
        self.channels, self.stride = self.level_channels[-1], self.level_strides[-1]
        self._original = tuple(self.body.state_dict()) if network.original is None else network.original
        kept = set(self.body.state_dict())
        self.pruned = tuple(name for name in self._original if name not in kept and not _restorable(name, kept))
        self._frozen = _first_stages(network, found.block_strides, frozen_stages)
        names = [name for name, _ in self.body.named_parameters()]
        self._resting = {name for name in names if name not in found.learning or _is_inside(name, self._frozen)}
        self.requires_grad_(True)

    def requires_grad_(self, requires_grad: bool = True) -> "Backbone":
        """Freeze or thaw; the first stages, and what no level depends on, stay frozen in any case."""
        super().requires_grad_(requires_grad)
        for name, parameter in self.body.named_parameters():
            if name in self._resting:
                parameter.requires_grad_(False)
        return self

    def train(self, mode: bool = True) -> "Backbone":
        """Switch the mode; the frozen stages stay in evaluation mode."""
        super().train(mode)
        for name, module in self.body.named_modules():
            if name in self._frozen:
                module.eval()
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

    def levels(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B _ _ _"], ...]:
        """Return all levels, from fine to coarse; the last one is what `forward` returns.

        Args:
            images: Normalised images.
        """
        learns = images.requires_grad or any(parameter.requires_grad for parameter in self.parameters())
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            return tuple(self._run(self.body, images.contiguous(memory_format=torch.channels_last)))

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B E h w"]:
        """Return the last level.

        Args:
            images: Normalised images.
        """
        return self.levels(images)[-1]


def original_state(backbone: Backbone) -> dict[str, Tensor]:
    """Return the weights under the names, and in the order, of the library's own headless model.

    Fixed norms get back the counter that free ones have. What was cut off is not there: see `Backbone.pruned`.

    Args:
        backbone: One that `build_backbone` made.
    """
    state = backbone.body.state_dict()
    counter = torch.zeros((), dtype=torch.long)
    return {name: state.get(name, counter) for name in backbone._original if name not in backbone.pruned}


def blocks(body: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Walk the parts that a stage may end with: children, and the children of sequences."""
    for name, child in body.named_children():
        if isinstance(child, nn.Sequential):
            yield from ((f"{name}.{inner}", block) for inner, block in child.named_children())
        else:
            yield name, child


def _restorable(name: str, kept: set[str]) -> bool:
    norm, _, last = name.rpartition(".")
    return last == "num_batches_tracked" and f"{norm}.running_mean" in kept


def _is_inside(name: str, parts: Sequence[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def _first_stages(network: Network, block_strides: dict[str, float], frozen_stages: int) -> list[str]:
    """Return the parts of the first stages; parameters that lie in no part belong to the first."""
    if not frozen_stages:
        return []
    loose = [name for name, _ in network.body.named_parameters(recurse=False)]
    if network.stages is not None:
        return loose + [part for stage in network.stages[:frozen_stages] for part in stage]
    limit = 2 ** (frozen_stages + 1)
    return loose + [name for name, stride in block_strides.items() if stride <= limit]


@dataclass(frozen=True, kw_only=True)
class _Found:
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    block_strides: dict[str, float]
    learning: set[str]


def _probe(network: Network) -> _Found:
    """Show the network a blank image: channels and strides of its levels and blocks, parameters that they rest on."""
    body, side, sides = network.body, network.probe_side, {}

    def listen(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.dim() == 4:
                sides[name] = output.shape[2]  # a side both in NCHW and in NHWC, as the image is square

        return note

    hooks = [block.register_forward_hook(listen(name)) for name, block in blocks(body)]
    device = next((parameter.device for parameter in body.parameters()), torch.device("cpu"))
    body.eval()
    try:
        with torch.enable_grad():
            levels = list(network.run(body, torch.zeros(1, 3, side, side, device=device)))
    except Exception as error:
        raise ConfigError(f"can't look at images of any size ({error}); choose a convolutional network") from error
    finally:
        for hook in hooks:
            hook.remove()
        body.train()
    for level in levels:
        if level.dim() != 4 or level.shape[2] != level.shape[3]:
            raise ConfigError(f"answers an image with shape {tuple(level.shape)}; choose a convolutional network")
    strides, seen = {}, levels[-1].shape[2]
    for name, _ in blocks(body):
        seen = sides.get(name, seen)
        strides[name] = side / seen
    return _Found(
        channels=tuple(level.shape[1] for level in levels),
        strides=tuple(round(side / level.shape[2]) for level in levels),
        block_strides=strides,
        learning=_parameters_behind(levels[-1], body),
    )


def _parameters_behind(level: Tensor, body: nn.Module) -> set[str]:
    """Return the names of the parameters that get a gradient from a level: those its graph leads to."""
    nodes, seen, leaves = [level.grad_fn], set(), set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        nodes += [before for before, _ in node.next_functions]
    return {name for name, parameter in body.named_parameters() if id(parameter) in leaves}
