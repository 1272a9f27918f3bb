"""an image -> two crops of it that overlap, and the regions that both of them show."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from pretext.proposals import draw_boxes

Box = tuple[int, int, int, int]
"""Absolute xyxy in whole pixels."""

ATTEMPTS = 50
"""How often two crops are drawn until they overlap enough; then both are the whole image."""
PROPORTIONS = (3 / 4, 4 / 3)
"""Smallest and largest width over height of a crop, relative to those of the image."""
MOVED = 0.1
"""How far the sides of a copied region may move, as a share of its sides."""


def draw_two_views(
    size: tuple[int, int], area: tuple[float, float], overlap: float, generator: torch.Generator
) -> tuple[Box, Box]:
    """Draw two crops.

    Args:
        size: Height and width of the image in pixels.
        area: Smallest and largest area of a crop as a share of the image.
        overlap: Least intersection over union of the crops.
        generator: Source of all random numbers.
    """
    for _ in range(ATTEMPTS):
        one, other = _draw(size, area, generator), _draw(size, area, generator)
        both = _area(_common(one, other))
        if both >= overlap * (_area(one) + _area(other) - both) and both > 0:
            return one, other
    return (0, 0, size[1], size[0]), (0, 0, size[1], size[0])


def common_regions(
    boxes: Float[Tensor, "R 4"], one: Box, other: Box, count: int, smallest: float, generator: torch.Generator
) -> Float[Tensor, "P 4"]:
    """Return exactly so many regions that both crops show whole: first all that they show, then the boxes, cut to it.

    Where there are too few boxes, copies of them with moved sides follow; where there is none, random boxes.

    Args:
        boxes: Absolute xyxy.
        one: A crop.
        other: A crop that overlaps the first.
        count: Number of regions.
        smallest: Area of the smallest region as a share of what both crops show.
        generator: Source of all random numbers.
    """
    common = torch.tensor(_common(one, other), dtype=torch.float32)
    low, high = common[:2].repeat(2), common[2:].repeat(2)
    inside = boxes.float().clamp(low, high)
    sides = (inside[:, 2:] - inside[:, :2]).clamp(min=0)
    whole = (common[2:] - common[:2]).prod()
    kept = inside[(sides.prod(1) >= smallest * whole) & (sides > 1).all(1)][: count - 1]
    missing = count - 1 - len(kept)
    if missing and len(kept):
        copies = kept[torch.arange(missing) % len(kept)]
        extents = (copies[:, 2:] - copies[:, :2]).repeat(1, 2)
        moves = MOVED * (2 * torch.rand(missing, 4, generator=generator) - 1)
        kept = torch.cat([kept, (copies + extents * moves).clamp(low, high)])
    elif missing:
        width, height = (common[2:] - common[:2]).int().tolist()
        drawn = draw_boxes(missing, (height, width), math.sqrt(smallest), 1.0, generator)
        kept = drawn + common[:2].repeat(2)
    return torch.cat([common[None], kept])


def _draw(size: tuple[int, int], area: tuple[float, float], generator: torch.Generator) -> Box:
    """Draw a crop: its area, its proportions, its place."""
    height, width = size
    draws = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    share = area[0] + draws[0] * (area[1] - area[0])
    low, high = map(math.log, PROPORTIONS)
    stretch = math.exp((low + draws[1] * (high - low)) / 2)
    across = max(1, min(width, round(width * math.sqrt(share) * stretch)))
    down = max(1, min(height, round(height * math.sqrt(share) / stretch)))
    left, top = int(draws[2] * (width - across + 1)), int(draws[3] * (height - down + 1))
    return left, top, left + across, top + down


def _common(one: Box, other: Box) -> Box:
    return max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])


def _area(box: Box) -> int:
    return max(0, box[2] - box[0]) * max(0, box[3] - box[1])
