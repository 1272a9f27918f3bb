"""masks, polygons, run lengths -> run lengths: the form in which masks are compared, checked before C code sees them.

A run-length mask is `{"size": [height, width], "counts": ...}`, counted down the columns, beginning with the pixels
outside. COCO writes `counts` as a list of numbers or, compressed, as text. pycocotools trusts both and writes beyond
its memory where they lie; so nothing goes there that was not counted first.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from downstream.annotations.problems import shown

RunLengths = dict[str, Any]
"""`size` and compressed `counts`."""

REACH = 10
"""Polygons may leave their image by this many times its size; beyond, a number is a mistake and costs memory."""


def encode(masks: Bool[Tensor, "N H W"]) -> list[RunLengths]:
    """Return the run lengths of masks.

    Args:
        masks: Any number of masks of one image.
    """
    columns = np.asfortranarray(masks.cpu().permute(1, 2, 0).numpy().astype(np.uint8))
    encoded: list[RunLengths] = coco_mask.encode(columns) if len(masks) else []
    return encoded


def read_mask(stated: object, size: tuple[int, int]) -> RunLengths:
    """Return the compressed run lengths of a COCO `segmentation`.

    Args:
        stated: Polygons (lists of x, y, x, y, … in pixels), or run lengths, compressed or not.
        size: Height and width of the image.

    Raises:
        ValueError: It is none of these or does not fit the image; the text says what it should be.
    """
    if not all(size):
        raise ValueError("needs height and width of its image in the annotations")
    if isinstance(stated, list):
        return _of_polygons(stated, size)
    if not isinstance(stated, dict):
        raise ValueError("expects polygons or run lengths (size and counts)")
    if stated.get("size") != list(size):
        raise ValueError(f"size is {shown(stated.get('size'))}, its image has [{size[0]}, {size[1]}] (height, width)")
    counts = stated.get("counts")
    if isinstance(counts, list):
        _check_sum(_whole_numbers(counts), size)
        rle: RunLengths = coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size)
        return rle
    if isinstance(counts, str | bytes):
        text = counts.encode("ascii", errors="replace") if isinstance(counts, str) else counts
        _check_sum(_uncompressed(text), size)
        return {"size": list(size), "counts": text}
    raise ValueError("expects counts as text or as a list of whole numbers")


def _of_polygons(polygons: Sequence[object], size: tuple[int, int]) -> RunLengths:
    limit = REACH * max(size)
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("expects polygons of at least three points, [x, y, x, y, x, y, …]")
        if not all(type(number) in {int, float} and abs(number) <= limit for number in polygon):
            raise ValueError("expects finite numbers of pixels inside the image")
    if not polygons:
        raise ValueError("expects at least one polygon")
    rle: RunLengths = coco_mask.merge(coco_mask.frPyObjects(polygons, *size))
    return rle


def _whole_numbers(counts: Sequence[object]) -> Int[np.ndarray, " R"]:
    if not all(type(count) is int and 0 <= count < 2**31 for count in counts):
        raise ValueError("expects counts of at least 0")
    return np.asarray(counts, dtype=np.int64)


def _check_sum(counts: Int[np.ndarray, " R"], size: tuple[int, int]) -> None:
    if (counts < 0).any() or counts.sum() != math.prod(size):
        raise ValueError(f"counts must add up to the {math.prod(size)} pixels of the image")


def _uncompressed(text: bytes) -> Int[np.ndarray, " R"]:
    """Return the numbers behind compressed counts: five bits a character, differences from the number before the last.

    Raises:
        ValueError: The text is not of that kind.
    """
    letters: UInt8[np.ndarray, " M"] = np.frombuffer(text, dtype=np.uint8) - 48
    if not len(letters) or (letters > 63).any() or letters[-1] & 32:
        raise ValueError("expects compressed counts as COCO writes them; the text is cut off or of another kind")
    ends = np.flatnonzero(~letters & 32)
    begins = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - begins + 1
    if lengths.max() > 7:
        raise ValueError("expects compressed counts as COCO writes them; a number is too large")
    place = np.arange(len(letters)) - np.repeat(begins, lengths)
    numbers = np.add.reduceat((letters & 31).astype(np.int64) << (5 * place), begins)
    numbers -= np.where(letters[ends] & 16, np.int64(1) << (5 * lengths), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
