"""Sample -> Sample: resize, flip and crop; image, boxes and masks move together by one draw.

Functions apply a given change; classes draw the change from a generator and have the signature of `types.Views`.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ssldet.boxes import to_absolute, to_normalised
from ssldet.types import Sample, Targets, Views

Sizing = Literal["detr", "transformers", "fixed", "within", "original"]
"""How the size of an image outside training is found; see `EvaluationSize`."""
SHORTEST = 8
"""Pixels of the shortest side to which images are resized or cropped."""
SLIVER = 1e-3
"""Side in pixels below which a cropped box is empty: what rounding leaves of a box that only touched the crop."""


def resize(sample: Sample, size: tuple[int, int]) -> Sample:
    """Resize to a height and a width; normalised boxes do not change.

    Args:
        sample: Image and boxes.
        size: Height and width in pixels.
    """
    # Here, because torchvision takes as long to import as torch.
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    # Interleaved, as decoders leave them, pixels are resized three times as fast as in planes (which fail at 1×1).
    interleaved = sample.image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    image = functional.resize(interleaved, list(size), interpolation=InterpolationMode.BILINEAR, antialias=True)
    targets = sample.targets
    if targets.masks is not None:
        rows, columns = (_nearest(*sides) for sides in zip(size, targets.masks.shape[1:], strict=True))
        targets = replace(targets, masks=targets.masks[:, rows][:, :, columns])
    return replace(sample, image=image, targets=targets)


def _nearest(size: int, before: int) -> Int[Tensor, " N"]:
    """Return, for each row or column of the new size, the old one at its centre, so that masks stay binary."""
    return ((torch.arange(size) + 0.5) * before / size).long()


def resize_short_side(sample: Sample, short: int, max_size: int | None = None) -> Sample:
    """Resize the short side to a length, or to less where the long side would exceed its limit.

    Args:
        sample: Image and boxes.
        short: Length of the short side in pixels.
        max_size: Limit of the long side in pixels, kept to the pixel that rounding the short side allows.
    """
    height, width = sample.image.shape[1:]
    return resize(sample, short_side_size((height, width), short, max_size))


def short_side_size(size: tuple[int, int], short: int, max_size: int | None = None) -> tuple[int, int]:
    """Return the size by DETR's rule, rounding included, so that published models get images of their sizes.

    Args:
        size: Height and width in pixels.
        short: Length of the short side.
        max_size: Limit of the long side.
    """
    low, high = min(size), max(size)
    if max_size is not None and high / low * short > max_size:
        short = max(1, round(max_size * low / high))
    height, width = size
    if low == short:
        return size
    return (int(short * height / width), short) if width < height else (short, int(short * width / height))


def transformers_size(size: tuple[int, int], short: int, max_size: int) -> tuple[int, int]:
    """Return the size by the rule of transformers' processors, which round the long side where that is the limit.

    DETR's own rule computes the long side from the short one, rounded before: 351 x 97 becomes 332 x 92 for a limit of
    333, and 333 x 92 here.

    Args:
        size: Height and width in pixels.
        short: Length of the short side.
        max_size: Limit of the long side.
    """
    height, width = size
    low, high = float(min(size)), float(max(size))
    exact: float = short
    if high / low * short > max_size:
        exact = max_size * low / high
        short = max(1, round(exact))
    if low == short:
        return size
    return (int(exact * height / width), short) if width < height else (short, int(exact * width / height))


def size_within(size: tuple[int, int], limits: tuple[int, int]) -> tuple[int, int]:
    """Return the largest size of the same aspect that a rectangle has room for, rounded down.

    Args:
        size: Height and width in pixels.
        limits: Those of the rectangle.
    """
    scale = min(limit / side for limit, side in zip(limits, size, strict=True))
    height, width = (max(1, int(side * scale)) for side in size)
    return height, width


def flip(sample: Sample) -> Sample:
    """Mirror left and right."""
    boxes = sample.targets.boxes.clone()
    boxes[:, 0] = 1 - boxes[:, 0]
    masks = None if sample.targets.masks is None else sample.targets.masks.flip(-1)
    return replace(sample, image=sample.image.flip(-1), targets=replace(sample.targets, boxes=boxes, masks=masks))


def crop(sample: Sample, top: int, left: int, height: int, width: int, *, least_left: float = 0.0) -> Sample:
    """Cut a rectangle out; boxes are clipped to it, and boxes with too little left are dropped, labels and masks too.

    A clipped box may be larger than what is left of its mask, as in DETR; without a pixel left, both are dropped.

    Args:
        sample: Image and boxes.
        top: First row.
        left: First column.
        height: Number of rows.
        width: Number of columns.
        least_left: Share of the area of a box that must be left.
    """
    before_height, before_width = sample.image.shape[1:]
    corners = to_absolute(sample.targets.boxes, (before_height, before_width))
    whole = _areas(corners)
    corners = corners - torch.tensor([left, top, left, top])
    corners = torch.minimum(corners.clamp(min=0), torch.tensor([width, height, width, height]))
    remains = ((corners[:, 2:] - corners[:, :2]) > SLIVER).all(dim=1)
    if least_left:
        remains &= _areas(corners) >= least_left * whole
    masks = sample.targets.masks
    if masks is not None:
        masks = masks[:, top : top + height, left : left + width]
        remains &= masks.flatten(1).any(1)
    targets = replace(sample.targets, boxes=to_normalised(corners, (height, width)), masks=masks)
    image = sample.image[:, top : top + height, left : left + width]
    return replace(sample, image=image, targets=_keep(targets, remains))


def _areas(corners: Float[Tensor, "T 4"]) -> Float[Tensor, " T"]:
    return (corners[:, 2:] - corners[:, :2]).prod(1)


def _keep(targets: Targets, chosen: Bool[Tensor, " T"]) -> Targets:
    return Targets(
        boxes=targets.boxes[chosen],
        labels=targets.labels[chosen],
        embeddings=None if targets.embeddings is None else targets.embeddings[chosen],
        groups=None if targets.groups is None else targets.groups[chosen],
        masks=None if targets.masks is None else targets.masks[chosen],
    )


@dataclass(frozen=True)
class InOrder:
    """Apply views one after another.

    Attributes:
        views: They share the generator.
    """

    views: tuple[Views, ...]

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Apply them."""
        for view in self.views:
            sample = view(sample, generator)
        return sample


@dataclass(frozen=True)
class ShortSide:
    """Resize the short side to a length that is drawn.

    Attributes:
        scales: Lengths to choose from, in pixels.
        max_size: Limit of the long side.
    """

    scales: tuple[int, ...]
    max_size: int | None = None

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Draw a length and resize."""
        return resize_short_side(sample, self.scales[_whole(0, len(self.scales) - 1, generator)], self.max_size)


@dataclass(frozen=True)
class EvaluationSize:
    """Resize as models expect images outside training.

    Attributes:
        rule: `detr`: the short side to a length, the long side to less than its limit, rounded as DETR's authors do.
            `transformers`: the same, rounded as its processors do. `fixed`: to `size`, whatever the aspect. `within`:
            to the largest size of the same aspect that `size` has room for. `original`: not at all.
        short: Length of the short side in pixels.
        max_size: Limit of the long side in pixels.
        size: Height and width in pixels, for `fixed` and `within`; empty for the others.
    """

    rule: Sizing
    short: int
    max_size: int
    size: tuple[int, ...] = ()

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Resize; nothing is drawn."""
        height, width = sample.image.shape[1:]
        return resize(sample, self.of((height, width)))

    def of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the size that an image gets.

        Args:
            size: Its height and width in pixels.
        """
        if self.rule == "detr":
            return short_side_size(size, self.short, self.max_size)
        if self.rule == "transformers":
            return transformers_size(size, self.short, self.max_size)
        if self.rule == "original":
            return size
        height, width = self.size
        return size_within(size, (height, width)) if self.rule == "within" else (height, width)


@dataclass(frozen=True)
class DETRAugmentation:
    """DETR's training augmentation: flip, then resize, in half of the cases with a random crop before it.

    Attributes:
        scales: Lengths of the short side to choose from, in pixels.
        max_size: Limit of the long side.
        crop_scales: Lengths of the short side to choose from before a crop.
        crop_range: Smallest and largest side of a crop.
        crop: Probability of a crop.
        flip: Probability of a flip.
    """

    scales: tuple[int, ...] = tuple(range(480, 801, 32))
    max_size: int | None = 1333
    crop_scales: tuple[int, ...] = (400, 500, 600)
    crop_range: tuple[int, int] = (384, 600)
    crop: float = 0.5
    flip: float = 0.5

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Draw the changes and apply them."""
        if _chance(self.flip, generator):
            sample = flip(sample)
        if _chance(self.crop, generator):
            sample = ShortSide(self.crop_scales)(sample, generator)
            rows, columns = sample.image.shape[1:]
            height, width = self._side(rows, generator), self._side(columns, generator)
            top, left = _whole(0, rows - height, generator), _whole(0, columns - width, generator)
            sample = crop(sample, top, left, height, width)
        return ShortSide(self.scales, self.max_size)(sample, generator)

    def _side(self, whole: int, generator: torch.Generator) -> int:
        low, high = self.crop_range
        return _whole(min(low, whole), min(high, whole), generator)


def _whole(low: int, high: int, generator: torch.Generator) -> int:
    """Draw a whole number, both ends included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _chance(probability: float, generator: torch.Generator) -> bool:
    return float(torch.rand((), generator=generator)) < probability


def problems_of_short_sides(name: str, sides: tuple[int, ...]) -> list[str]:
    """Return a message unless images can be resized to short sides.

    Args:
        name: Name of the field that holds them.
        sides: In pixels.
    """
    if sides and min(sides) >= SHORTEST:
        return []
    return [f"{name}: {sides} must name at least one short side of {SHORTEST} pixels or more"]


def problems_of_crops(scales: tuple[int, ...], sides: tuple[int, int]) -> list[str]:
    """Return messages unless images can be cropped as the fields `crop_scales` and `crop_range` of a task say.

    Args:
        scales: Short sides before a crop, in pixels.
        sides: Smallest and largest side of a crop, in pixels.
    """
    wrong = problems_of_short_sides("crop_scales", scales)
    if not SHORTEST <= sides[0] <= sides[1]:
        wrong.append(f"crop_range: {sides} must be a smallest and a largest side of {SHORTEST} pixels or more")
    return wrong
