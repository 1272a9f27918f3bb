"""Sample -> Sample: an image that is too large for its small objects, cut into overlapping tiles.

In training an image shows one tile, drawn at random, with the objects that lie inside. Outside training it keeps all of
its tiles, as rectangles in a `Tiles` problem; `downstream/tiled_answers.py` cuts and resizes a few at a time.
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple

import torch

from ssldet.boxes import to_absolute
from ssldet.data.geometry import EvaluationSize, crop
from ssldet.types import Gather, Problem, Sample, Targets, Views

AROUND_AN_OBJECT = 0.5
"""Probability that a training tile is drawn around one of the objects, so that rare objects are seen often enough."""


class Place(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one image is cut.

    Attributes:
        places: Where the tiles lie; all tiles of an image have one size, and there is more than one or none.
        size: Height and width to which each tile is resized.
        with_whole: Whether the image as a whole, resized like one without tiles, is looked at too.
    """

    places: tuple[Place, ...]
    size: tuple[int, int]
    with_whole: bool


@dataclass(frozen=True, kw_only=True)
class Tiles(Problem):
    """The tiles of one image, or those of each image of a batch.

    Attributes:
        original: The image as it was read; `None` where it is no larger than a tile and has no tiles.
        layout: How it is cut.
    """

    original: Annotated[Sample | list[Sample | None] | None, Gather.ORIGINAL]
    layout: Annotated[Layout | list[Layout], Gather.LIST]


def places_of(size: tuple[int, int], side: int, overlap: float) -> tuple[Place, ...]:
    """Return where the tiles of an image lie: as few as cover it, evenly spread, row by row.

    Args:
        size: Height and width of the image in pixels.
        side: Side of a tile in pixels; a tile is cut short where the image is.
        overlap: Least share of a tile that it has in common with the next one, to the pixel.
    """
    height, width = size
    rows, columns = (_starts(length, side, overlap) for length in size)
    return tuple(Place(top, left, min(side, height), min(side, width)) for top in rows for left in columns)


def _starts(length: int, side: int, overlap: float) -> list[int]:
    rest = length - side
    if rest <= 0:
        return [0]
    steps = math.ceil(rest / (side * (1 - overlap)))
    return [round(step * rest / steps) for step in range(steps + 1)]


def most_in_a_tile(targets: Targets | None, size: tuple[int, int], side: int, overlap: float) -> int:
    """Return the largest number of objects whose centres lie in one tile.

    Args:
        targets: The objects of an image; `None` where they are not known.
        size: Height and width of the image in pixels.
        side: Side of a tile in pixels.
        overlap: Least share of a tile that it has in common with the next one.
    """
    if targets is None or not len(targets):
        return 0
    centres = targets.boxes[:, :2] * torch.tensor([size[1], size[0]])
    corners = torch.tensor([(left, top) for top, left, _, _ in places_of(size, side, overlap)])
    inside = (centres >= corners[:, None]) & (centres < corners[:, None] + side)
    return int(inside.all(2).sum(1).max())


@dataclass(frozen=True, kw_only=True)
class TiledEvaluation:
    """Keep all tiles of an image that is larger than one, beside the whole image at its ordinary size.

    Attributes:
        side: Side of a tile in pixels of the image as it is read.
        overlap: Least share of a tile that it has in common with the next one.
        with_whole: Whether the whole image is looked at too.
        sizing: How images and tiles are resized.
    """

    side: int
    overlap: float
    with_whole: bool
    sizing: EvaluationSize

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Note the tiles; nothing is drawn."""
        height, width = sample.image.shape[1:]
        places = places_of((height, width), self.side, self.overlap)
        tiled = len(places) > 1
        layout = Layout(
            places=places if tiled else (),
            size=self.sizing.of((places[0].height, places[0].width)),
            with_whole=self.with_whole,
        )
        problem = Tiles(original=sample if tiled else None, layout=layout)
        return replace(self.sizing(sample, generator), problem=problem)

    def of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the size at which an image is seen: that of its resized tiles put together without overlap.

        Args:
            size: Its height and width in pixels.
        """
        height, width = size
        rows, columns = min(self.side, height), min(self.side, width)
        tall, wide = self.sizing.of((rows, columns))
        return round(height * tall / rows), round(width * wide / columns)


@dataclass(frozen=True, kw_only=True)
class TrainingTiles:
    """Draw a tile of an image that is larger than one, then change it like an image of that size.

    Attributes:
        side: Side of a tile in pixels of the image as it is read.
        least_left: Share of an object that must lie inside the tile; those with less are no targets.
        then: What happens to the tile.
    """

    side: int
    least_left: float
    then: Views

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Draw a tile and go on with it."""
        height, width = sample.image.shape[1:]
        rows, columns = min(self.side, height), min(self.side, width)
        if (rows, columns) != (height, width):
            top, left = self._corner(sample, (rows, columns), generator)
            sample = crop(sample, top, left, rows, columns, least_left=self.least_left)
        return self.then(sample, generator)

    def _corner(self, sample: Sample, tile: tuple[int, int], generator: torch.Generator) -> tuple[int, int]:
        """Draw the first row and column: anywhere, or so that the centre of an object is inside."""
        choice, which, down, across = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        size = (int(sample.image.shape[1]), int(sample.image.shape[2]))
        ranges = [(0, length - side) for length, side in zip(size, tile, strict=True)]
        count = len(sample.targets)
        if count and choice < AROUND_AN_OBJECT:
            left, top, right, bottom = to_absolute(sample.targets.boxes[int(which * count)], size).tolist()
            centres = ((top + bottom) / 2, (left + right) / 2)
            ranges = [
                (max(low, min(high, math.ceil(centre) - side)), max(low, min(high, math.floor(centre))))
                for (low, high), centre, side in zip(ranges, centres, tile, strict=True)
            ]
        (first, last), (leftmost, rightmost) = ranges
        return first + int(down * (last - first + 1)), leftmost + int(across * (rightmost - leftmost + 1))
