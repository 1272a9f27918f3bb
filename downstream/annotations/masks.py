"""masks, polygons, run lengths -> run lengths: the form in which masks are compared, checked before C code sees them.

A run-length mask is `{"size": [height, width], "counts": ...}`, counted down the columns, beginning with the pixels
outside. COCO writes `counts` as a list of numbers or, compressed, as text. pycocotools trusts both and writes beyond
its memory where they lie; so nothing goes there that was not counted first.
"""

import json
import math
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
from jaxtyping import Bool
from torch import Tensor

from downstream.annotations.outlines import REACH, sound_counts, sound_polygons
from downstream.annotations.problems import shown

RunLengths = dict[str, Any]
"""`size` and compressed `counts`."""


def encode(masks: Bool[Tensor, "N H W"]) -> list[RunLengths]:
    """Return the run lengths of masks.

    Args:
        masks: Any number of masks of one image.
    """
    columns = np.asfortranarray(masks.cpu().permute(1, 2, 0).numpy().astype(np.uint8))
    encoded: list[RunLengths] = coco_mask.encode(columns) if len(masks) else []
    return encoded


def run_length_text(mask: Bool[Tensor, "H W"]) -> bytes:
    """Return one mask as run lengths in JSON.

    Args:
        mask: It.
    """
    (runs,) = encode(mask[None])
    return json.dumps({"size": runs["size"], "counts": runs["counts"].decode()}).encode()


def read_mask(stated: object, size: tuple[int, int]) -> RunLengths:
    """Return the compressed run lengths of a COCO `segmentation`.

    Args:
        stated: Polygons (see `outlines.sound_polygons`), or run lengths, compressed or not.
        size: Height and width of the image.

    Raises:
        ValueError: It is none of these or does not fit the image; the text says what it should be.
    """
    if not all(size):
        raise ValueError("needs height and width of its image in the annotations")
    if isinstance(stated, list):
        polygons = sound_polygons(stated, REACH * max(size))
        drawn: RunLengths = coco_mask.merge(coco_mask.frPyObjects(polygons, *size))
        return drawn
    if not isinstance(stated, dict):
        raise ValueError("expects polygons or run lengths (size and counts)")
    if stated.get("size") != list(size):
        raise ValueError(f"size is {shown(stated.get('size'))}, its image has [{size[0]}, {size[1]}] (height, width)")
    counts = stated.get("counts")
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    if not sound_counts(counts, math.prod(size)):
        raise ValueError(f"counts must be COCO's run lengths and add up to the {math.prod(size)} pixels of the image")
    if isinstance(counts, str):
        return {"size": list(size), "counts": counts.encode()}
    rle: RunLengths = coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size)
    return rle
