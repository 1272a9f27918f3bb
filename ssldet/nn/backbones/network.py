"""B 3 H W -> feature levels: the network of any library, with the one interface that detectors use.

The original module tree stays under `body`, with its original names, so that any weights file for the architecture
fits; heads and later stages that the last level does not need are cut off. No weights are loaded here.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from ssldet.errors import ConfigError
from ssldet.nn.backbones.folding import FoldedCopy
from ssldet.nn.backbones.kept import KeptLevels

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PROBE_SIDES = (64, 128)
"""Sides of the blank images that show the strides of a network; the second where the first is too small for it."""
SUITABLE = "'resnet50', 'timm/swin_tiny_patch4_window7_224' or 'timm/vit_small_patch16_dinov3'"
"""Networks to use instead of one that can't be used."""

ComputeLevels = Callable[[nn.Module, Tensor], Sequence[Tensor]]
"""body, `B 3 H W` -> levels `B _ _ _`, from fine to coarse."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network of a library, and what a backbone needs to know of it.

    Attributes:
        body: The network.
        run: Computes its levels.
        original: Names of the state that the library's own headless model has; `None` means those of `body`.
        stages: Names of the parts of `body` that belong to each stage, in order; `None` finds them by their strides.
        strides: Strides of the levels, where rounding hides them; `None` measures them.
        mean: Channel means of the pixels it was made for, in 0..1.
        std: Channel deviations of the same.
        interpolation: How those images had been resized.
        keeps_weights: Whether its weights are those of its owner, and are not to be replaced or calibrated.
        folds: Whether it is worth to fold its norms into its convolutions while it is frozen.
    """

    body: nn.Module
    run: ComputeLevels
    original: tuple[str, ...] | None = None
    stages: Sequence[Sequence[str]] | None = None
    strides: Sequence[int] | None = None
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    interpolation: str = "bilinear"
    keeps_weights: bool = False
    folds: bool = True


class Backbone(nn.Module):
    """A network without its head. Frozen parts run without autograd and keep their statistics.

    One that is frozen as a whole and at rest computes with its fixed norms inside its convolutions; see `folding`.

    Attributes:
        body: The original module tree.
        channels: Channels of the last level (E).
        stride: Pixels per cell of the last level, roughly: networks round up or down as they like.
        level_channels: Channels of each level, from fine to coarse.
        level_strides: Stride of each level, roughly.
        mean: Channel means of the pixels it was made for, in 0..1.
        std: Channel deviations of the same.
        interpolation: How the images that it was made for had been resized; for information.
        keeps_weights: Whether its weights are those of its owner, and are not to be replaced or calibrated.
        pruned: Names of the original state that were cut off, because no level needs them.
        in_channels: Channels of the images it takes; see `ssldet.nn.backbones.stem`.
        stem: Name of the weights of its first convolution, where that takes other channels than three.
        kept: Levels that are kept on disk and read instead of computed, while no part of it learns; `None` keeps none.
    """

    _mean: Tensor
    _std: Tensor

    def __init__(self, network: Network, *, frozen_stages: int = 0) -> None:
        """Measure a network and freeze its first stages.

        Args:
            network: The network.
            frozen_stages: Number of stages that stay frozen, as `BackboneConfig` counts them.

        Raises:
            ConfigError: The network does not return feature maps.
        """
        super().__init__()
        self.body, self._run = network.body, network.run
        self._folded, self._folds = FoldedCopy(), network.folds
        self._remembers, self._remembered = False, list[tuple[Tensor, tuple[Tensor, ...]]]()
        self.kept: KeptLevels | None = None
        self.interpolation, self.keeps_weights = network.interpolation, network.keeps_weights
        self.in_channels, self.stem = 3, ""
        self.set_statistics(network.mean, network.std)
        measured = _measure(network)
        self.level_channels, self.level_strides = measured.channels, measured.strides
        self.channels, self.stride = self.level_channels[-1], self.level_strides[-1]
        self._original = tuple(self.body.state_dict()) if network.original is None else network.original
        kept = set(self.body.state_dict())
        self.pruned = tuple(name for name in self._original if name not in kept and not _restorable(name, kept))
        self._frozen = _first_stages(network, measured.block_strides, frozen_stages)
        names = [name for name, _ in self.body.named_parameters()]
        self._untrained = {name for name in names if name not in measured.learning or _is_inside(name, self._frozen)}
        self.requires_grad_(True)

    def set_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Normalise pixels by these numbers from now on.

        Args:
            mean: Mean of each channel, in 0..1.
            std: Deviation of each channel, likewise.
        """
        self.mean, self.std = tuple(mean), tuple(std)
        self.register_buffer("_mean", torch.tensor(self.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(self.std).view(-1, 1, 1), persistent=False)

    def requires_grad_(self, requires_grad: bool = True) -> "Backbone":
        """Freeze or unfreeze; the first stages, and parameters on which no level depends, always stay frozen."""
        super().requires_grad_(requires_grad)
        for name, parameter in self.body.named_parameters():
            if name in self._untrained:
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
        self, pixels: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B c H W"], padding: Bool[Tensor, "B H W"] | None = None
    ) -> Float[Tensor, "B c H W"]:
        """Scale pixels by `mean` and `std`.

        Args:
            pixels: 0..255, or 0..1 where floating.
            padding: True where the canvas holds no image; becomes 0.
        """
        if pixels.is_floating_point():
            scaled = (pixels - self._mean).div_(self._std)
        else:
            # Converted first: a difference of two kinds of numbers takes twice as long.
            scaled = pixels.float().sub_(self._mean * 255).div_(self._std * 255)
        return scaled if padding is None else scaled.masked_fill_(padding.unsqueeze(1), 0)

    def levels(
        self, images: Float[Tensor, "B c H W"], coarsest: int | None = None
    ) -> tuple[Float[Tensor, "B _ _ _"], ...]:
        """Return levels, from fine to coarse; the last one is what `forward` returns.

        Args:
            images: Normalised images.
            coarsest: How many levels are needed, counted from the coarsest; `None` returns all.
        """
        count = len(self.level_channels) if coarsest is None else coarsest
        for known, levels in self._remembered:
            if known is images and len(levels) >= count:
                return levels[-count:]
        # What is computed anyway is remembered whole, since the next one to ask may need finer levels.
        whole = self._remembers and self.kept is None
        levels = self._levels(images, len(self.level_channels) if whole else count)
        if self._remembers:
            self._remembered.append((images, levels))
        return levels[-count:]

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Compute the levels of the same tensor only once inside."""
        self._remembers = True
        try:
            yield
        finally:
            self._remembers = False
            self._remembered.clear()

    def _levels(self, images: Tensor, count: int) -> tuple[Tensor, ...]:
        learns = images.requires_grad or any(parameter.requires_grad for parameter in self.parameters())
        if self.kept is None or learns:
            return self._computed(images, learns)[-count:]
        return self.kept.of(self.body, images, count, lambda some: self._computed(some, learns=False))

    def _computed(self, images: Tensor, learns: bool) -> tuple[Tensor, ...]:
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            body = self._folded.of(self.body, self._run, images) if self._folds and not learns else self.body
            return tuple(self._run(body, images))

    def forward(self, images: Float[Tensor, "B c H W"]) -> Float[Tensor, "B E h w"]:
        """Return the last level.

        Args:
            images: Normalised images.
        """
        return self.levels(images, 1)[-1]


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
    """Yield the modules that a stage may end with: children, and the children of sequences and lists."""
    for name, child in body.named_children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            yield from ((f"{name}.{inner}", block) for inner, block in child.named_children())
        else:
            yield name, child


def _restorable(name: str, kept: set[str]) -> bool:
    norm, _, last = name.rpartition(".")
    return last == "num_batches_tracked" and f"{norm}.running_mean" in kept


def _is_inside(name: str, parts: Sequence[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def _first_stages(network: Network, block_strides: dict[str, int], count: int) -> list[str]:
    """Return the modules of the first stages; parameters outside all modules belong to the first stage."""
    if not count:
        return []
    if network.stages is not None:
        parts = [part for stage in network.stages[:count] for part in stage]
    else:
        parts = [name for name, stride in block_strides.items() if stride <= 2 ** (count + 1)]
    loose = [name for name, _ in network.body.named_parameters(recurse=False)]
    if not any(_is_inside(name, parts) for name in network.body.state_dict()):
        raise ConfigError(
            f"frozen_stages={count} would freeze nothing: it has no part that ends at stride {2 ** (count + 1)} or "
            f"finer; use frozen_stages=0 to let all of it learn"
        )
    return loose + parts


@dataclass(frozen=True, kw_only=True)
class _Measured:
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    block_strides: dict[str, int]
    learning: set[str]


def _measure(network: Network) -> _Measured:
    """Run the network on a blank image: channels and strides of levels, strides of blocks, parameters in use."""
    body, problem = network.body, None
    device = next((parameter.device for parameter in body.parameters()), torch.device("cpu"))
    for side in PROBE_SIDES:
        body.eval()
        try:
            with torch.enable_grad(), _noting_sides(body) as sides:
                levels = list(network.run(body, torch.zeros(1, 3, side, side, device=device)))
            break
        except (Exception, SystemExit) as error:
            problem = problem or error
        finally:
            body.train()
    else:
        raise ConfigError(f"can't look at images of any size ({problem}); use {SUITABLE}") from problem
    for level in levels:
        if not isinstance(level, Tensor) or level.dim() != 4 or level.shape[2] != level.shape[3]:
            shape = tuple(level.shape) if isinstance(level, Tensor) else type(level).__name__
            raise ConfigError(f"answers images B 3 H W with {shape} instead of levels B E h w; use {SUITABLE}")
    strides = tuple(round(side / level.shape[2]) for level in levels)
    return _Measured(
        channels=tuple(level.shape[1] for level in levels),
        strides=strides if network.strides is None else tuple(network.strides),
        block_strides=_block_strides(body, sides, side),
        learning=_parameters_behind(levels[-1], body),
    )


@contextmanager
def _noting_sides(body: nn.Module) -> Iterator[dict[str, int]]:
    """Note the side of the coarsest map that each block returns."""
    sides: dict[str, int] = {}

    def hook_of(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            maps = output if isinstance(output, list | tuple) else [output]
            # The third axis is a side both in NCHW and in NHWC, as the image is square.
            lengths = [part.shape[2] for part in maps if isinstance(part, Tensor) and part.dim() == 4]
            if lengths:
                sides[name] = min(lengths)

        return note

    hooks = [block.register_forward_hook(hook_of(name)) for name, block in blocks(body)]
    try:
        yield sides
    finally:
        for hook in hooks:
            hook.remove()


def _block_strides(body: nn.Module, sides: dict[str, int], image_side: int) -> dict[str, int]:
    """Return the stride that each block ends with, rounded down to a power of two; it never decreases."""
    strides, smallest = {}, None
    for name, block in blocks(body):
        side = sides.get(name, smallest)
        if side is None and any(True for _ in block.parameters()):
            return {}  # the strides of the first blocks are not known
        smallest = side if smallest is None or side is None else min(side, smallest)
        if smallest is not None:
            strides[name] = 2 ** int(math.log2(image_side / smallest))
    return strides


def _parameters_behind(level: Tensor, body: nn.Module) -> set[str]:
    """Return the names of the parameters that get a gradient from a level: the leaves of its graph."""
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
