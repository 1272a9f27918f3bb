"""Detections -> one-shot AP50: each class's AP at an overlap of one half, and its mean over seen and unseen classes.

Published figures only use queries of classes that the image contains. That is easier than detection, because a false
answer in an image without the class can't occur. `EvaluationPairs(absent=True)` uses queries of all classes, so that
such answers count as mistakes. Figures of the two kinds must not be compared.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from downstream.annotations.one_shot import EvaluationPairs
from downstream.metrics.average_precision import MAX_DETS, Rows, finite_rows
from downstream.metrics.predictions import figures_of
from ssldet.errors import DataError
from ssldet.source import GroundTruth, Source
from ssldet.types import Batch, Detections

AT_HALF = {"coco": "AP50", "voc": "voc07_ap"}
"""Metric -> name of its AP at an overlap of one half; VOC's is the 11-point AP of 2007, as published."""


class OneShotAP:
    """AP50 of every class over all pairs of a source.

    A pair that never came in a batch counts as a pair without detections; a pair that came twice counts once. The order
    of pairs has no influence.

    Attributes:
        source: The pairs that are evaluated.
    """

    def __init__(self, source: Source, metric: str, *, max_dets: int = MAX_DETS) -> None:
        """Start without detections.

        Args:
            source: Pairs of image and query.
            metric: `coco` or `voc`.
            max_dets: Detections per image and class that count in COCO's AP.

        Raises:
            DataError: The source does not consist of pairs.
        """
        if not isinstance(source, EvaluationPairs):
            raise DataError("one-shot detection is measured on pairs; make them by the task's `prepare`")
        self.source = source
        self._figures, self._name = figures_of(metric, max_dets=max_dets), AT_HALF[metric]
        self._found: dict[int, Rows] = {}

    def update(self, detections: list[Detections], batch: Batch) -> None:
        """Take in one batch.

        Args:
            detections: One entry per pair, absolute xyxy in pixels of the image on disk.
            batch: The pairs of the detections.

        Raises:
            DivergedError: A box or score is not finite.
        """
        for found, key in zip(detections, batch.keys, strict=True):
            self._found[self.source.number_of(key)] = finite_rows(found, f"pair {key}")

    def take_rows(self) -> dict[int, Rows]:
        """Return the detections of each pair since the last call, and forget them."""
        taken, self._found = self._found, {}
        return taken

    def add_rows(self, rows: Mapping[int, Rows]) -> None:
        """Take in detections that another evaluator of the same source has taken."""
        self._found.update(rows)

    def results(self) -> dict[str, Any]:
        """Return `AP50_unseen`, `AP50_seen` and `per_class`; a figure is -1 if the data has no object for it."""
        truth, images = self.source.ground_truth(), self.source.source
        objects: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for row in truth["annotations"]:
            objects[row["category_id"]].append(row)
        numbers: dict[int, list[int]] = defaultdict(list)
        for number, (_, label) in enumerate(self.source.pairs):
            numbers[label].append(number)
        named = {row["id"]: row for row in truth["categories"]}
        per_class = {}
        for label, (name, category) in enumerate(zip(images.classes, images.category_ids, strict=True)):
            own = {**truth, "annotations": objects[category], "categories": [named[category]]}
            per_class[name] = self._of_class(own, self._rows(numbers[label]))
        seen = [value for value, kept in zip(per_class.values(), self.source.seen, strict=True) if kept]
        held_out = [value for value, kept in zip(per_class.values(), self.source.seen, strict=True) if not kept]
        return {"AP50_unseen": _mean(held_out), "AP50_seen": _mean(seen), "per_class": per_class}

    def _rows(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Return the detections of some pairs as COCO results, in the order of the source."""
        images = self.source.source
        rows = []
        for number in numbers:
            image, label = self.source.pairs[number]
            for *box, score, _ in self._found[number].tolist() if number in self._found else ():
                ids = {"image_id": images.image_ids[image], "category_id": images.category_ids[label]}
                rows.append({**ids, "bbox": box, "score": score})
        return rows

    def _of_class(self, truth: GroundTruth, rows: Sequence[Mapping[str, Any]]) -> float:
        if all(row["iscrowd"] or row.get("difficult") for row in truth["annotations"]):
            return -1.0
        return float(self._figures(truth, rows)[self._name])


def _mean(values: Sequence[float]) -> float:
    measured = [value for value in values if value >= 0]
    return float(np.mean(measured)) if measured else -1.0
