"""hits -> kinds of mistakes, each with the average precision that it costs.

The kinds, and the cost of one as the average precision that is won by undoing it alone, are those of TIDE (Bolya et
al., 2020, "TIDE: A General Toolbox for Identifying Object Detection Errors").
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from downstream.metrics.hits import NOTHING, Hits

BACKGROUND_IOU = 0.1
"""Overlap below which a wrong detection has nothing to do with any object."""

KINDS = {
    "localisation": "right class, box too far off",
    "class": "good box, wrong class",
    "class and localisation": "wrong class, box too far off",
    "duplicate": "an object that a more confident detection had found",
    "background": "nothing is there",
    "missed": "an object without any detection near it",
}
"""Kind of mistake -> its meaning."""

RECALLS: Float[np.ndarray, " 101"] = np.linspace(0.0, 1.0, 101)
"""Levels of recall at which COCO reads precision."""


@dataclass(frozen=True, kw_only=True)
class ErrorKind:
    """How often a mistake was made, and what it costs.

    Attributes:
        kind: Its name, one of `KINDS`.
        count: Number of detections, or of missed objects.
        cost: Average precision at the overlap of the hits that undoing this kind alone would add, in 0..1.
    """

    kind: str
    count: int
    cost: float


def error_kinds(hits: Hits) -> list[ErrorKind]:
    """Return every kind of mistake, the most expensive first.

    Args:
        hits: What became of detections and objects.
    """
    kinds, missed = kinds_of(hits), _missed(hits)
    before = _Counted.of(hits).average_precision()
    told = []
    for kind in KINDS:
        count = int(missed.sum()) if kind == "missed" else int((kinds == kind).sum())
        after = _without(kind, hits, kinds, missed).average_precision()
        told.append(ErrorKind(kind=kind, count=count, cost=after - before))
    return sorted(told, key=lambda one: -one.cost)


def kinds_of(hits: Hits) -> Shaped[np.ndarray, " N"]:
    """Return the kind of each detection's mistake; empty for those that are right or ignored."""
    wrong = hits.wrong
    near = (hits.same >= BACKGROUND_IOU) & (hits.same < hits.iou)
    conditions = [
        ~wrong,
        near,
        hits.other >= hits.iou,
        hits.same >= hits.iou,
        hits.other >= BACKGROUND_IOU,
    ]
    named = np.select(conditions, ["", "localisation", "class", "duplicate", "class and localisation"], "background")
    return named.astype(np.str_)


def precision_at(right: Bool[np.ndarray, " N"], objects: int) -> Float[np.ndarray, " 101"]:
    """Return the best precision at each level of recall or beyond, as COCO reads it.

    Args:
        right: Whether each detection is right, most confident first; ignored ones are left out.
        objects: Number of objects to find, at least one.
    """
    true = np.cumsum(right)
    precision = true / np.maximum(np.arange(1, len(right) + 1), 1)
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    read: Float[np.ndarray, " 101"] = envelope[np.searchsorted(true / objects, RECALLS, side="left")]
    return read


@dataclass(frozen=True, kw_only=True)
class _Counted:
    """What average precision is computed from: detections that count, and the number of objects of each class."""

    right: Bool[np.ndarray, " N"]
    classes: Int[np.ndarray, " N"]
    kept: Bool[np.ndarray, " N"]
    objects: dict[int, int]

    @classmethod
    def of(cls, hits: Hits) -> "_Counted":
        classes, counts = np.unique(hits.objects.categories[hits.counts], return_counts=True)
        return cls(
            right=hits.right.copy(),
            classes=hits.detections.categories.copy(),
            kept=~hits.ignored,
            objects=dict(zip(classes.tolist(), counts.tolist(), strict=True)),
        )

    def average_precision(self) -> float:
        """Return the mean over classes; one whose objects are all taken out counts if there are detections of it."""
        values = []
        for label, objects in self.objects.items():
            rows = self.kept & (self.classes == label)
            if objects:
                values.append(float(precision_at(self.right[rows], objects).mean()))
            elif rows.any():
                values.append(0.0)
        return float(np.mean(values)) if values else 0.0


def _without(kind: str, hits: Hits, kinds: Shaped[np.ndarray, " N"], missed: Bool[np.ndarray, " M"]) -> _Counted:
    """Undo one kind of mistake."""
    counted = _Counted.of(hits)
    if kind == "missed":
        gone, counts = np.unique(hits.objects.categories[missed], return_counts=True)
        left = dict(counted.objects)
        for label, count in zip(gone.tolist(), counts.tolist(), strict=True):
            left[label] -= count
        return _Counted(right=counted.right, classes=counted.classes, kept=counted.kept, objects=left)
    rows = np.flatnonzero(kinds == kind)
    counted.kept[rows] = False
    if kind in {"localisation", "class"}:
        # Mended, the most confident one finds its object; the others, and all where it is found already, would be
        # duplicates.
        meant = (hits.same_object if kind == "localisation" else hits.other_object)[rows]
        taken = set(hits.found[hits.right].tolist())
        for row, target in zip(rows.tolist(), meant.tolist(), strict=True):
            if target not in taken:
                taken.add(target)
                counted.kept[row], counted.right[row] = True, True
                counted.classes[row] = hits.objects.categories[target]
    return counted


def _missed(hits: Hits) -> Bool[np.ndarray, " M"]:
    """Return which objects nothing found, and which no mistake in place or class explains."""
    kinds = kinds_of(hits)
    explained = np.concatenate(
        [hits.found, hits.same_object[kinds == "localisation"], hits.other_object[kinds == "class"]]
    )
    missed = hits.counts.copy()
    missed[explained[explained != NOTHING]] = False
    return missed
