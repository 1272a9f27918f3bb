"""Batch with tiles -> detections of whole images: each tile is answered like an image, then duplicates are removed.

An object in the overlap of two tiles is found twice, and one on the border of a tile is seen in part. `merge` states
the rule by which one detection is left of each. Without tiles nothing is merged: answers are those of the objective.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from downstream.tiles import Layout, Place, Tiles
from ssldet.boxes import pairwise_iou
from ssldet.data.collate import collate, take
from ssldet.data.geometry import crop, resize
from ssldet.types import Batch, Detections, Sample

TILES_AT_ONCE = 8
"""Tiles that are answered together, so that memory does not grow with the image."""
SAME = 0.5
"""Overlap above which two detections of one class from different tiles are one object."""
BORDER = 0.01
"""Distance from the border of a tile, in sides of the tile, within which a box counts as cut by it."""
CUT = 0.5
"""Factor of the confidence with which a cut box is compared: half an object is easily taken for a whole one."""

Answering = Callable[[Batch], list[Detections]]


def answer_tiled(batch: Batch, answer: Answering) -> list[Detections]:
    """Answer images that may have tiles.

    Args:
        batch: Images whose problem is `Tiles`, or that have none.
        answer: Answers images without tiles.

    Returns:
        One entry per image, in pixels of the image on disk.
    """
    tiles = batch.problem
    if not isinstance(tiles, Tiles):
        return answer(batch)
    originals, layouts = tiles.original, tiles.layout
    assert isinstance(originals, list)
    assert isinstance(layouts, list)
    needed = [row for row, layout in enumerate(layouts) if layout.with_whole or not layout.places]
    seen = dict(zip(needed, answer(take(batch, needed)), strict=True)) if needed else {}
    return [
        seen[row] if original is None else _merged(original, layout, seen.get(row), batch.images.device, answer)
        for row, (original, layout) in enumerate(zip(originals, layouts, strict=True))
    ]


def _merged(
    original: Sample, layout: Layout, whole: Detections | None, device: torch.device, answer: Answering
) -> Detections:
    """Answer all tiles of one image and merge what was found."""
    places, found = layout.places, list[Detections]()
    for first in range(0, len(places), TILES_AT_ONCE):
        cut = [_cut(original, place, layout.size) for place in places[first : first + TILES_AT_ONCE]]
        found += answer(collate(cut).to(device))
    parts = [_moved(one.to("cpu"), place) for one, place in zip(found, places, strict=True)]
    height, width = original.original_size
    if whole is not None:
        places, parts = (*places, Place(0, 0, height, width)), [*parts, whole.to("cpu")]
    return merge(parts, places, (height, width)).to(device)


def _cut(original: Sample, place: Place, size: tuple[int, int]) -> Sample:
    tile = resize(crop(original, *place), size)
    return replace(tile, original_size=(place.height, place.width), problem=None)


def _moved(found: Detections, place: Place) -> Detections:
    return replace(found, boxes=found.boxes + torch.tensor([place.left, place.top, place.left, place.top]))


def merge(parts: Sequence[Detections], places: Sequence[Place], size: tuple[int, int]) -> Detections:
    """Return what is left of the detections of overlapping tiles, the most confident first.

    A box is *cut* if it reaches to within `BORDER` of a border of its tile that is not a border of the image.
    Detections are taken in descending order of confidence, where a cut box counts `CUT` times its own. Each one is
    kept, unless it is of the same class as a detection from *another* tile that was kept before, and overlaps it: by an
    IoU above `SAME` or, where it is cut itself, by more than `SAME` of the smaller of the two. Detections of one tile
    never remove one another. Confidences are not changed.

    Args:
        parts: Detections of each tile on the CPU, in pixels of the image.
        places: Where each tile lies.
        size: Height and width of the image.
    """
    boxes = torch.cat([part.boxes for part in parts]).float()
    scores, labels = torch.cat([part.scores for part in parts]), torch.cat([part.labels for part in parts])
    first = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0).tolist()
    cut = torch.cat([_is_cut(part.boxes, place, size) for part, place in zip(parts, places, strict=True)])
    order = torch.where(cut, CUT * scores, scores).argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    weaker_than: dict[int, list[int]] = {}
    for one, other in _overlapping(places):
        rows, columns = slice(first[one], first[one + 1]), slice(first[other], first[other + 1])
        here_wins = rank[rows, None] < rank[None, columns]
        loser_is_cut = torch.where(here_wins, cut[None, columns], cut[rows, None])
        iou, of_smaller = _overlaps(boxes[rows], boxes[columns])
        clash = (labels[rows, None] == labels[None, columns]) & ((iou > SAME) | (loser_is_cut & (of_smaller > SAME)))
        for here, there in clash.nonzero().tolist():
            pair = (first[one] + here, first[other] + there)
            winner, loser = pair if here_wins[here, there] else pair[::-1]
            weaker_than.setdefault(winner, []).append(loser)
    removed: set[int] = set()
    for number in order.tolist():
        if number not in removed:
            removed.update(weaker_than.get(number, ()))
    kept = [number for number in scores.argsort(descending=True, stable=True).tolist() if number not in removed]
    return Detections(boxes=boxes[kept], scores=scores[kept], labels=labels[kept])


def _is_cut(boxes: Float[Tensor, "N 4"], place: Place, size: tuple[int, int]) -> Bool[Tensor, " N"]:
    """Return which boxes reach to an inner border of their tile."""
    (height, width), far = size, torch.inf
    bottom, right = place.top + place.height, place.left + place.width
    low = torch.tensor([place.left if place.left else -far, place.top if place.top else -far])
    high = torch.tensor([right if right < width else far, bottom if bottom < height else far])
    slack = BORDER * torch.tensor([place.width, place.height])
    return ((boxes[:, :2] <= low + slack) | (boxes[:, 2:] >= high - slack)).any(1)


def _overlapping(places: Sequence[Place]) -> Iterator[tuple[int, int]]:
    """Yield the numbers of two tiles that have pixels in common, each pair once."""
    corners = torch.tensor([[left, top, left + width, top + height] for top, left, height, width in places]).float()
    yield from (pairwise_iou(corners, corners) > 0).triu(1).nonzero().tolist()


def _overlaps(a: Float[Tensor, "N 4"], b: Float[Tensor, "M 4"]) -> tuple[Tensor, Tensor]:
    """Return the overlap of all pairs as a share of their union, and of the smaller one."""
    iou = pairwise_iou(a, b)
    areas, others = ((boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1) for boxes in (a, b))
    # What two boxes share follows from their areas and the IoU.
    inner = iou / (1 + iou) * (areas[:, None] + others[None])
    return iou, inner / torch.minimum(areas[:, None], others[None]).clamp(min=1e-6)
