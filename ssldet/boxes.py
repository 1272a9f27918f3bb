"""boxes -> boxes, overlaps: pure geometry; the name or the arguments of every function say its box format.

Normalised boxes are fractions of the valid image, padding excluded; absolute boxes are pixels.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

SMALLEST_AREA = 1e-12
"""Floor of every divisor below: far under any real box (a millionth of the image, squared), yet safe to square."""


def cxcywh_to_xyxy(boxes: Float[Tensor, "*N 4"]) -> Float[Tensor, "*N 4"]:
    """Turn centre and size into corners."""
    return _converted(boxes, "cxcywh", "xyxy")


def xyxy_to_cxcywh(boxes: Float[Tensor, "*N 4"]) -> Float[Tensor, "*N 4"]:
    """Turn corners into centre and size."""
    return _converted(boxes, "xyxy", "cxcywh")


def xyxy_to_xywh(boxes: Float[Tensor, "*N 4"]) -> Float[Tensor, "*N 4"]:
    """Turn corners into the upper left corner and size, as COCO writes boxes."""
    return _converted(boxes, "xyxy", "xywh")


def to_absolute(boxes: Float[Tensor, "*N 4"], size: tuple[int, int]) -> Float[Tensor, "*N 4"]:
    """Turn normalised cxcywh into absolute xyxy.

    Args:
        boxes: Normalised cxcywh.
        size: Height and width of the image in pixels.
    """
    return cxcywh_to_xyxy(boxes) * _scale(boxes, size)


def to_normalised(boxes: Float[Tensor, "*N 4"], size: tuple[int, int]) -> Float[Tensor, "*N 4"]:
    """Turn absolute xyxy into normalised cxcywh.

    Args:
        boxes: Absolute xyxy.
        size: Height and width of the image in pixels.
    """
    return xyxy_to_cxcywh(boxes / _scale(boxes, size))


def pairwise_iou(a: Float[Tensor, "*#B N 4"], b: Float[Tensor, "*#B M 4"]) -> Float[Tensor, "*B N M"]:
    """Return the overlap of every box with every other, without gradient; boxes without area overlap nothing.

    Args:
        a: Corners, xyxy.
        b: Corners, xyxy.
    """
    with torch.no_grad():
        inner, union, _ = _shared(a, b)
        return inner.div_(union.clamp_(min=SMALLEST_AREA)).mT


def pairwise_giou(a: Float[Tensor, "*#B N 4"], b: Float[Tensor, "*#B M 4"]) -> Float[Tensor, "*B N M"]:
    """Return the generalised overlap, in -1..1, of every box with every other (Rezatofighi et al. 2019).

    It has no gradient; `elementwise_giou` has one.

    Args:
        a: Corners, xyxy.
        b: Corners, xyxy.
    """
    with torch.no_grad():
        inner, union, ((ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2)) = _shared(a, b)
        outer = torch.maximum(ax2, bx2).sub_(torch.minimum(ax1, bx1)).clamp_(min=0)
        outer.mul_(torch.maximum(ay2, by2).sub_(torch.minimum(ay1, by1)).clamp_(min=0))
        iou = inner.div_(union.clamp(min=SMALLEST_AREA))
        excess = outer.sub(union).div_(outer.clamp_(min=SMALLEST_AREA))
        return iou.sub_(excess).mT


def elementwise_iou(a: Float[Tensor, "*N 4"], b: Float[Tensor, "*N 4"]) -> Float[Tensor, "*N"]:
    """Return the overlap of each box with its partner.

    Args:
        a: Corners, xyxy.
        b: Corners, xyxy.
    """
    return _overlap(a, b)[0]


def elementwise_giou(a: Float[Tensor, "*N 4"], b: Float[Tensor, "*N 4"]) -> Float[Tensor, "*N"]:
    """Return the generalised overlap, in -1..1, of each box with its partner.

    Args:
        a: Corners, xyxy.
        b: Corners, xyxy.
    """
    return _overlap(a, b)[1]


def _converted(boxes: Tensor, before: str, after: str) -> Tensor:
    from torchvision.ops import box_convert  # here, because torchvision takes as long to import as torch

    converted: Tensor = box_convert(boxes, before, after)
    return converted


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and GIoU of broadcastable xyxy boxes; unlike torchvision's, finite also where boxes have no area."""
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    outer = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    union = _area(a) + _area(b) - inner
    iou = inner / union.clamp(min=SMALLEST_AREA)
    return iou, iou - (outer - union) / outer.clamp(min=SMALLEST_AREA)


def _shared(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, tuple[Sequence[Tensor], Sequence[Tensor]]]:
    """Return intersection and union of all pairs of xyxy boxes, transposed, and the coordinates as they were paired.

    Each coordinate is a plane of its own, with the many boxes of `a` next to one another in memory, and every step
    overwrites the one before: three to seven times faster than pairs of boxes side by side, with the same bits as
    `_overlap`. Hence without gradient.
    """
    ax1, ay1, ax2, ay2 = one = a.movedim(-1, 0).contiguous().unsqueeze(-2).unbind()
    bx1, by1, bx2, by2 = other = b.movedim(-1, 0).contiguous().unsqueeze(-1).unbind()
    inner = torch.minimum(ax2, bx2).sub_(torch.maximum(ax1, bx1)).clamp_(min=0)
    inner.mul_(torch.minimum(ay2, by2).sub_(torch.maximum(ay1, by1)).clamp_(min=0))
    union = (_area(a).unsqueeze(-2) + _area(b).unsqueeze(-1)).sub_(inner)
    return inner, union, (one, other)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def _scale(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = size
    return boxes.new_tensor([width, height, width, height])
