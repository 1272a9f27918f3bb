"""segmentations -> masks: polygons and run lengths of COCO, kept as text and drawn when an image is read."""

import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from pycocotools import mask as coco_mask

from downstream.annotations.numbers import finite_number
from downstream.annotations.problems import shown
from ssldet.errors import AnnotationError

REACH = 10
"""Polygons may leave their image by this many times its longer side; beyond, a number is a mistake and costs memory."""
FARTHEST = 1_000_000
"""Largest coordinate of a polygon whose image is not known yet, in pixels."""
NO_MASK = b"[]"
"""The text of a row without segmentation, where such rows are allowed."""
MISSING = "missing"
"""What is wrong with a row that has no segmentation."""
ASIDE = "masks are smaller than a pixel or do not overlap their box, as if they were stored as fractions of their image"
"""What is said of masks that `lies_aside` finds."""


@dataclass(frozen=True, slots=True)
class Outline:
    """One segmentation that was checked.

    Attributes:
        text: It, as JSON.
        size: Height and width of the image that it was made for, where it says so.
        reach: Largest coordinate of its polygons, in pixels and without sign.
        extent: Absolute xyxy of the smallest box around it; `None` where there is none.
    """

    text: bytes
    size: tuple[int, int] | None = None
    reach: float = 0.0
    extent: tuple[float, float, float, float] | None = None


UNDRAWN = Outline(NO_MASK)
"""That of a row without segmentation, where such rows are allowed."""


@dataclass(frozen=True, slots=True)
class Outlines:
    """The segmentations of many rows in one block: a million lists of numbers would take ten times the memory.

    Attributes:
        text: All of them as JSON, one after the other.
        ends: Row r is what lies between `ends[r]` and `ends[r + 1]`.
    """

    text: bytes
    ends: Int[np.ndarray, " N"]

    def __getitem__(self, row: int) -> Any:
        """Return one row's polygons or run lengths."""
        return json.loads(self._text_of(row))

    def drawn(self) -> Bool[np.ndarray, " N"]:
        """Return which rows have a segmentation."""
        return np.diff(self.ends) > len(NO_MASK)

    def pick(self, rows: Int[np.ndarray, " M"]) -> "Outlines":
        """Return some of the rows in the given order."""
        return gathered(self._text_of(row) for row in rows.tolist())

    def _text_of(self, row: int) -> bytes:
        return self.text[self.ends[row] : self.ends[row + 1]]


def gathered(texts: Iterable[bytes]) -> Outlines:
    """Lay segmentations side by side.

    Args:
        texts: JSON, one for each row.
    """
    parts = list(texts)
    return Outlines(b"".join(parts), np.cumsum([0, *map(len, parts)]))


def outline_of(segmentation: object) -> Outline | str:
    """Check one segmentation.

    Args:
        segmentation: As a file has it: a list of polygons [x1, y1, x2, y2, …] in pixels, or run lengths
            `{"size": [height, width], "counts": …}`, a list or compressed text.

    Returns:
        The segmentation, or what is wrong with it.
    """
    if segmentation is None or segmentation == []:
        return MISSING
    if isinstance(segmentation, list):
        try:
            parts = sound_polygons(segmentation, FARTHEST)
        except ValueError as error:
            return f"{shown(segmentation)} {error}"
        left, top, right, bottom = _extent(parts)
        reach = float(max(abs(left), abs(top), abs(right), abs(bottom)))
        return Outline(json.dumps(parts).encode(), reach=reach, extent=(left, top, right, bottom))
    if not isinstance(segmentation, dict):
        return shown(segmentation)
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        return f"size {shown(size)}"
    height, width = size
    if not sound_counts(counts, height * width):
        return f"counts {shown(counts)}"
    text = json.dumps({"size": size, "counts": counts}).encode()
    left, top, across, down = coco_mask.toBbox(_runs(segmentation, (height, width))).tolist()
    return Outline(text, (height, width), extent=(left, top, left + across, top + down))


def lies_aside(outline: Outline, box: Sequence[float]) -> bool:
    """Say whether a segmentation can't be that of its box: it is smaller than a pixel where that isn't, or beside it.

    Args:
        outline: It.
        box: Absolute xywh.
    """
    if outline.extent is None:
        return False
    left, top, right, bottom = outline.extent
    x, y, width, height = box
    tiny = max(right - left, bottom - top) < 1 < max(width, height)
    return tiny or right < x or bottom < y or left > x + width or top > y + height


def _extent(parts: Sequence[Sequence[int | float]]) -> tuple[float, float, float, float]:
    """Return the absolute xyxy of the smallest box around polygons."""
    across, down = ([number for part in parts for number in part[side::2]] for side in (0, 1))
    return float(min(across)), float(min(down)), float(max(across)), float(max(down))


def sound_polygons(stated: Sequence[object], farthest: int) -> list[list[int | float]]:
    """Return the polygons that can be drawn: the one rule of training, `data check` and scoring.

    Parts of one or two points enclose nothing and are left out where others remain.

    Args:
        stated: Polygons [x1, y1, x2, y2, …] in pixels.
        farthest: Largest coordinate that is allowed, in pixels and without sign.

    Raises:
        ValueError: They are no polygons, none of them has three points, or a number is not finite or too far out.
    """
    if not stated:
        raise ValueError("expects at least one polygon")
    parts: list[list[int | float]] = []
    for part in stated:
        if not isinstance(part, list) or len(part) % 2:
            raise ValueError("expects a list of polygons of at least three points, [[x, y, x, y, x, y, …], …]")
        for number in part:
            value = finite_number(number)
            if value is None or abs(value) > farthest:
                raise ValueError(f"expects finite numbers of pixels in or near the image, not {shown(number)}")
        if len(part) >= 6:
            parts.append(part)
    if not parts:
        raise ValueError("expects polygons of at least three points, [x, y, x, y, x, y, …]")
    return parts


def mask_of(segmentation: Any, size: tuple[int, int], where: str) -> Bool[np.ndarray, "H W"]:
    """Draw one segmentation.

    Args:
        segmentation: Polygons or run lengths that were checked.
        size: Height and width of the image.
        where: What to name in the error.

    Raises:
        AnnotationError: Run lengths were made for another size, or a polygon leaves its image by far.
    """
    height, width = size
    if isinstance(segmentation, list):
        try:
            polygons = sound_polygons(segmentation, REACH * max(size))
        except ValueError as error:
            raise AnnotationError(f"{where}: a mask {error}") from error
        runs = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    elif tuple(segmentation["size"]) != size:
        raise AnnotationError(f"{where}: a mask of {segmentation['size']} lies on an image of {list(size)} pixels")
    else:
        runs = _runs(segmentation, size)
    with warnings.catch_warnings():
        # pycocotools hands its memory to numpy in a way that numpy 2 wants to be told of.
        warnings.simplefilter("ignore", DeprecationWarning)
        drawn: Bool[np.ndarray, "H W"] = coco_mask.decode(runs).astype(bool)
    return drawn


def _runs(segmentation: Any, size: tuple[int, int]) -> Any:
    """Return run lengths that were checked in the form that the decoder takes."""
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, *size)
    return {"size": segmentation["size"], "counts": segmentation["counts"].encode()}


def outline_fault(segmentation: Any, size: tuple[int, int]) -> str | None:
    """Say why a segmentation that was checked does not fit its image, whose size became known later.

    Args:
        segmentation: Polygons or run lengths.
        size: Height and width of the image.
    """
    if isinstance(segmentation, dict):
        return None if segmentation["size"] == list(size) else f"has size {segmentation['size']}, not {list(size)}"
    try:
        sound_polygons(segmentation, REACH * max(size))
    except ValueError as error:
        return str(error)
    return None


def sound_counts(counts: object, pixels: int) -> bool:
    """Say whether run lengths cover an image exactly; the decoder itself writes wherever they lead.

    Args:
        counts: A list of numbers, or COCO's compressed text.
        pixels: Height times width.
    """
    if isinstance(counts, list):
        return all(type(run) is int and run >= 0 for run in counts) and sum(counts) == pixels
    if not isinstance(counts, str):
        return False
    runs = _unpacked(counts)
    return runs is not None and all(run >= 0 for run in runs) and sum(runs) == pixels


def _unpacked(text: str) -> list[int] | None:
    """Return the run lengths of COCO's compressed text: five bits a character, differences from the third on."""
    runs: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 30:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    return None if shift else runs
