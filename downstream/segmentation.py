"""logits of masks -> masks and segmentations on the image on disk: pure functions, one image at a time.

Known differences from the authors' code (`models/segmentation.py`, `PostProcessPanoptic`), both faults there:

    topic            their code                                  here
    padding          resized with the image, which it distorts   cut off first: the batch has no influence
    small segments   once one is dropped, stuff falls apart       stuff is joined again in every round
                     again, and joined parts count as empty
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
    """Cut off the cells that lie on padding, so that what remains is what the image alone would have.

    Args:
        logits: Masks over a whole canvas.
        size: Height and width of the image on it, in pixels.
        canvas: Height and width of the canvas, in pixels.
    """
    # Strided layers round up: cells = ceil(pixels / stride), for the canvas as for the image alone.
    cells = logits.shape[1:]
    strides = [-(-whole // count) for whole, count in zip(canvas, cells, strict=True)]
    height, width = (-(-side // stride) for side, stride in zip(size, strides, strict=True))
    return logits[:, :height, :width]


def masks_of(logits: Float[Tensor, "N h w"], size: tuple[int, int]) -> Bool[Tensor, "N H W"]:
    """Return where each mask is more likely than not; masks may overlap.

    Args:
        logits: Masks over the image, without padding.
        size: Height and width of the image on disk.
    """
    masks = torch.zeros(len(logits), *size, dtype=torch.bool, device=logits.device)
    for mask, cells in zip(masks, logits, strict=True):
        # One by one: a hundred masks of a large image in floating point would fill the memory.
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
    """Give every pixel to the query with the largest logit there, and join what is stuff of one class.

    Segments that end up too small are dropped, and their pixels shared out anew, until none is left.

    Args:
        logits: Masks over the image, without padding, of queries that are sure of something.
        labels: Class of each.
        size: Height and width of the image on disk.
        stuff: Classes that have at most one segment an image.
        largest_dropped: Segments up to this many pixels are dropped.

    Returns:
        Segments in the order of their first queries; everything is void where no query is left.
    """
    kept = torch.arange(len(labels), device=labels.device)
    while len(kept):
        # Shares of a softmax over queries have the order of the logits themselves.
        winner = _winners(logits[kept], size)
        first = _first_of_its_stuff(labels[kept], stuff)
        areas = torch.bincount(first[winner].flatten(), minlength=len(kept))
        large = areas[first] > largest_dropped
        if large.all():
            numbers, segments = torch.unique(first, return_inverse=True)
            return Segmentation(segments=segments[winner] + 1, labels=labels[kept[numbers]])
        kept = kept[large]
    nothing = torch.zeros(size, dtype=torch.int64, device=logits.device)
    return Segmentation(segments=nothing, labels=labels[kept])


def _winners(logits: Float[Tensor, "N h w"], size: tuple[int, int]) -> Int[Tensor, "H W"]:
    """Return which mask has the largest logit at each pixel, the first of equals."""
    best = _resized(logits[0], size)
    winner = torch.zeros(size, dtype=torch.int64, device=logits.device)
    for number, cells in enumerate(logits[1:], start=1):
        pixels = _resized(cells, size)
        better = pixels > best
        winner[better] = number
        best = torch.maximum(best, pixels)
    return winner


def _first_of_its_stuff(labels: Int[Tensor, " N"], stuff: Collection[int]) -> Int[Tensor, " N"]:
    """Return which query each one is joined to: the first of the same stuff, itself where it is a thing."""
    seen: dict[int, int] = {}
    first = [
        seen.setdefault(label, number) if label in stuff else number for number, label in enumerate(labels.tolist())
    ]
    return torch.tensor(first, dtype=torch.int64, device=labels.device)


def _resized(cells: Float[Tensor, "h w"], size: tuple[int, int]) -> Float[Tensor, "H W"]:
    return F.interpolate(cells[None, None].float(), size=size, mode="bilinear", align_corners=False)[0, 0]
