"""logits of masks -> masks and segmentations in pixels of the image on disk: pure functions for one image.

Known differences from the authors' code (`models/segmentation.py`, `PostProcessPanoptic`), which correct two faults:

    topic            their code                                  here
    padding          resized with the image, which it distorts   cut off first, so that the batch has no influence
    small segments   once one is dropped, stuff is split again,  stuff is joined again in every round
                     and joined parts count as empty
"""

from collections.abc import Collection

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ssldet.types import Segmentation


def without_padding(
    logits: Float[Tensor, "N h w"], size: tuple[int, int], canvas: tuple[int, int]
) -> Float[Tensor, "N _ _"]:
    """Return the cells that the image would have without padding.

    Args:
        logits: Mask logits over the padded canvas.
        size: Height and width of the image on the canvas, in pixels.
        canvas: Height and width of the canvas, in pixels.
    """
    # Strided layers round up: cells = ceil(pixels / stride), for the canvas as for the image alone.
    cells = logits.shape[1:]
    strides = [-(-whole // count) for whole, count in zip(canvas, cells, strict=True)]
    height, width = (-(-side // stride) for side, stride in zip(size, strides, strict=True))
    return logits[:, :height, :width]


def masks_of(logits: Float[Tensor, "N h w"], size: tuple[int, int]) -> Bool[Tensor, "N H W"]:
    """Return the pixels at which each mask has a probability above one half; masks may overlap.

    Args:
        logits: Mask logits over the image, without padding.
        size: Height and width of the image on disk.
    """
    masks = torch.zeros(len(logits), *size, dtype=torch.bool, device=logits.device)
    for mask, cells in zip(masks, logits, strict=True):
        # One at a time: a hundred masks of a large image in floating point would not fit into memory.
        mask.copy_(_resized(cells, size) > 0)
    return masks


def segmentation_of(
    logits: Float[Tensor, "N h w"],
    labels: Int[Tensor, " N"],
    size: tuple[int, int],
    *,
    stuff: Collection[int],
    largest_dropped: int = 4,
) -> Segmentation:
    """Assign every pixel to the query with the largest logit there, and join stuff of the same class.

    Segments that are too small are dropped and their pixels assigned anew, until no segment is too small.

    Args:
        logits: Mask logits over the image, without padding, of the queries with a confident class.
        labels: Class of each query.
        size: Height and width of the image on disk.
        stuff: Classes that have at most one segment per image.
        largest_dropped: Segments of up to this many pixels are dropped.

    Returns:
        Segments in the order of their first queries; every pixel is void if no query is left.
    """
    kept = torch.arange(len(labels), device=labels.device)
    while len(kept):
        # A softmax over queries keeps the order of the logits, so it is not computed.
        winner = _winners(logits[kept], size)
        first = _joined_to(labels[kept], stuff)
        areas = torch.bincount(first[winner].flatten(), minlength=len(kept))
        large = areas[first] > largest_dropped
        if large.all():
            numbers, segments = torch.unique(first, return_inverse=True)
            return Segmentation(segments=segments[winner] + 1, labels=labels[kept[numbers]])
        kept = kept[large]
    nothing = torch.zeros(size, dtype=torch.int64, device=logits.device)
    return Segmentation(segments=nothing, labels=labels[kept])


def _winners(logits: Float[Tensor, "N h w"], size: tuple[int, int]) -> Int[Tensor, "H W"]:
    """Return the number of the mask with the largest logit at each pixel, the first one if several are equal."""
    best = _resized(logits[0], size)
    winner = torch.zeros(size, dtype=torch.int64, device=logits.device)
    for number, cells in enumerate(logits[1:], start=1):
        pixels = _resized(cells, size)
        better = pixels > best
        winner[better] = number
        best = torch.maximum(best, pixels)
    return winner


def _joined_to(labels: Int[Tensor, " N"], stuff: Collection[int]) -> Int[Tensor, " N"]:
    """Return the query that each query is joined to: the first one of the same stuff class; a thing stays by itself."""
    first_of: dict[int, int] = {}
    first = [
        first_of.setdefault(label, number) if label in stuff else number for number, label in enumerate(labels.tolist())
    ]
    return torch.tensor(first, dtype=torch.int64, device=labels.device)


def _resized(cells: Float[Tensor, "h w"], size: tuple[int, int]) -> Float[Tensor, "H W"]:
    return F.interpolate(cells[None, None].float(), size=size, mode="bilinear", align_corners=False)[0, 0]
