"""objects, detections -> which detection found which object, by COCO's rule, and what else each overlaps."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from downstream.metrics.coco_engines import IGNORED_AREA, Columns

NOTHING = -1
"""Stands where a detection has no object."""


@dataclass(frozen=True, kw_only=True)
class Hits:
    """What became of the detections of a set, most confident first, and of its objects.

    Attributes:
        objects: The objects.
        detections: Those that count, sorted by confidence; ties keep the order of images, then their own.
        found: The object that each detection found, or `NOTHING`.
        ignored: Whether a detection counts neither as right nor as wrong: it found a crowd or a difficult object.
        same: Largest overlap of each detection with an object of its class.
        same_object: That object, or `NOTHING`.
        other: Largest overlap of each detection with an object of another class.
        other_object: That object, or `NOTHING`.
        counts: Whether each object must be found: crowds and difficult objects need not.
        iou: Overlap from which an object counts as found.
    """

    objects: Columns
    detections: Columns
    found: Int[np.ndarray, " N"]
    ignored: Bool[np.ndarray, " N"]
    same: Float[np.ndarray, " N"]
    same_object: Int[np.ndarray, " N"]
    other: Float[np.ndarray, " N"]
    other_object: Int[np.ndarray, " N"]
    counts: Bool[np.ndarray, " M"]
    iou: float

    @property
    def right(self) -> Bool[np.ndarray, " N"]:
        """Whether each detection found an object that must be found."""
        right: Bool[np.ndarray, " N"] = (self.found != NOTHING) & ~self.ignored
        return right

    @property
    def wrong(self) -> Bool[np.ndarray, " N"]:
        """Whether each detection is a mistake."""
        wrong: Bool[np.ndarray, " N"] = self.found == NOTHING
        return wrong


def hits(objects: Columns, detections: Columns, *, iou: float = 0.5, max_dets: int = 100) -> Hits:
    """Match detections with objects, image by image and class by class, the most confident detections first.

    Args:
        objects: Objects of all images.
        detections: Detections of all images.
        iou: Overlap from which an object counts as found.
        max_dets: Detections per image and class that count, the most confident ones.
    """
    detections = _counting(detections, max_dets)
    counts = (objects.crowd == 0) & (objects.areas != IGNORED_AREA)
    total = len(detections)
    matched = Hits(
        objects=objects,
        detections=detections,
        found=np.full(total, NOTHING),
        ignored=np.zeros(total, bool),
        same=np.zeros(total),
        same_object=np.full(total, NOTHING),
        other=np.zeros(total),
        other_object=np.full(total, NOTHING),
        counts=counts,
        iou=iou,
    )
    by_image = _rows_by(detections.images)
    for image, here in _rows_by(objects.images).items():
        if image in by_image:
            _match_image(matched, by_image[image], here)
    return matched


def _match_image(matched: Hits, rows: Int[np.ndarray, " n"], here: Int[np.ndarray, " m"]) -> None:
    """Fill in what became of the detections of one image."""
    overlaps = _overlaps(matched.detections.boxes[rows], matched.objects.boxes[here], matched.objects.crowd[here])
    same = matched.detections.categories[rows, None] == matched.objects.categories[here]
    real = matched.counts[here]
    for mask, best, best_object in (
        (same, matched.same, matched.same_object),
        (~same, matched.other, matched.other_object),
    ):
        allowed = np.where(mask & real, overlaps, 0.0)
        place = allowed.argmax(1)
        best[rows] = allowed.max(1)
        best_object[rows] = np.where(best[rows] > 0, here[place], NOTHING)
    free, least = np.ones(len(here), bool), min(matched.iou, 1 - 1e-10)
    for number in np.flatnonzero(((overlaps >= least) & same).any(1)):
        row = rows[number]
        # An ignored object is taken only where no other one is found; of equal overlaps the last counts, as in COCO.
        for pool in (real & free, ~real & (free | (matched.objects.crowd[here] == 1))):
            allowed = np.where(pool & same[number], overlaps[number], -1.0)
            place = len(here) - 1 - int(allowed[::-1].argmax())
            if allowed[place] >= least:
                matched.found[row], matched.ignored[row], free[place] = here[place], not real[place], False
                break


def _counting(detections: Columns, max_dets: int) -> Columns:
    """Return the most confident detections per image and class, sorted by confidence."""
    order = np.lexsort((np.arange(len(detections)), detections.images, -detections.scores))
    pairs = np.stack([detections.images[order], detections.categories[order]])
    groups = np.lexsort(pairs[::-1])  # stable, so that each group stays sorted by confidence
    starts = np.ones(len(order), bool)
    starts[1:] = (np.diff(pairs[:, groups], axis=1) != 0).any(0)
    first = np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))
    kept = np.zeros(len(order), bool)
    kept[groups] = np.arange(len(order)) - first < max_dets
    return _rows_of(detections, order[kept])


def _rows_of(columns: Columns, rows: Any) -> Columns:
    names = ("images", "categories", "boxes", "areas", "scores", "crowd")
    return replace(columns, masks=None, **{name: getattr(columns, name)[rows] for name in names})


def _rows_by(keys: Int[np.ndarray, " N"]) -> dict[int, Int[np.ndarray, " _"]]:
    """Return key -> the rows that have it, in order."""
    order = np.argsort(keys, kind="stable")
    values, starts = np.unique(keys[order], return_index=True)
    return dict(zip(values.tolist(), np.split(order, starts[1:]), strict=True)) if len(keys) else {}


def _overlaps(
    found: Float[np.ndarray, "n 4"], objects: Float[np.ndarray, "m 4"], crowd: Int[np.ndarray, " m"]
) -> Float[np.ndarray, "n m"]:
    """Return the overlap of every detection with every object; with a crowd, the share of the detection inside it."""
    low = np.maximum(found[:, None, :2], objects[None, :, :2])
    high = np.minimum(found[:, None, :2] + found[:, None, 2:], objects[None, :, :2] + objects[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(-1)
    own = found[:, 2:].prod(-1)[:, None]
    union = np.where(crowd == 1, own, own + objects[:, 2:].prod(-1) - common)
    overlaps: Float[np.ndarray, "n m"] = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return overlaps
