"""Detections -> VOC AP: the challenge's own metrics at one overlap threshold, 11-point (2007) and all-point (2010).

They agree with the challenge's development kit. Its boxes count pixels from 1 and include the last one, hence its "+ 1"
in every width; ours begin at 0 and end after the last pixel, so that plain geometry gives the same overlaps. The names
of the results distinguish them from COCO's figures, with which they must not be compared.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ssldet.source import GroundTruth

NAMES = ("voc07_ap", "voc_ap")
"""The 11-point metric of 2007 and the all-point one since 2010."""

LEVELS: Float[np.ndarray, " 11"] = np.arange(0.0, 1.1, 0.1)
"""Levels of recall of the 2007 metric, in floating point as in the kit: 0.3 is slightly more than 3 of 10."""


def voc_ap(truth: GroundTruth, detections: Sequence[Mapping[str, Any]], *, iou: float = 0.5) -> dict[str, Any]:
    """Compute the VOC metrics: the best precision at eleven levels of recall, and the area under the monotone curve.

    Args:
        truth: As `LabelledImages.ground_truth` returns it; `difficult` and `iscrowd` objects are ignored.
        detections: COCO results: `image_id`, `category_id`, `bbox` in absolute xywh and `score`.
        iou: Overlap from which an object counts as found.

    Returns:
        `voc07_ap` (11-point) and `voc_ap` (all-point), means over the classes that have objects, or -1 if no class
        has any; `per_class` holds both by class name, -1 for a class without objects.
    """
    objects: dict[Any, dict[Any, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in truth["annotations"]:
        objects[row["category_id"]][row["image_id"]].append(row)
    answers: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for answer in detections:
        answers[answer["category_id"]].append(answer)
    per_class = {
        category["name"]: _class_ap(objects[category["id"]], answers[category["id"]], iou)
        for category in truth["categories"]
    }
    return {
        **{name: _mean([figures[name] for figures in per_class.values()]) for name in NAMES},
        "per_class": per_class,
    }


def _mean(values: Sequence[float]) -> float:
    measured = [value for value in values if value >= 0]
    return float(np.mean(measured)) if measured else -1.0


def _class_ap(
    objects: Mapping[Any, Sequence[Mapping[str, Any]]], answers: Sequence[Mapping[str, Any]], iou: float
) -> dict[str, float]:
    """Return both figures of one class, given its objects by image."""
    total = sum(not _ignored(row) for rows in objects.values() for row in rows)
    if not total:
        return dict.fromkeys(NAMES, -1.0)
    hits, misses = _judge(objects, sorted(answers, key=lambda row: -row["score"]), iou)
    found, wrong = np.cumsum(hits), np.cumsum(misses)
    precision, recall = found / np.maximum(found + wrong, 1), found / total
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return {
        "voc07_ap": float(np.mean([precision[recall >= level].max(initial=0.0) for level in LEVELS])),
        "voc_ap": float((np.diff(recall, prepend=0.0) * envelope).sum()),
    }


def _judge(
    objects: Mapping[Any, Sequence[Mapping[str, Any]]], answers: Sequence[Mapping[str, Any]], iou: float
) -> tuple[Bool[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
    """Return which answers, best first, are hits and which are misses; one that matches an ignored object is neither.

    Each answer is compared with the object that it overlaps most, and only the first answer of an object is a hit.
    """
    hits, misses = np.zeros(len(answers), dtype=bool), np.zeros(len(answers), dtype=bool)
    taken: set[tuple[Any, int]] = set()
    for number, answer in enumerate(answers):
        rows = objects.get(answer["image_id"], ())
        overlaps = [_iou_xywh(answer["bbox"], row["bbox"]) for row in rows]
        best = int(np.argmax(overlaps)) if overlaps else -1
        if best < 0 or overlaps[best] < iou:
            misses[number] = True
        elif not _ignored(rows[best]):
            first = (answer["image_id"], best) not in taken
            taken.add((answer["image_id"], best))
            hits[number], misses[number] = first, not first
    return hits, misses


def _ignored(row: Mapping[str, Any]) -> bool:
    return bool(row.get("iscrowd") or row.get("difficult"))


def _iou_xywh(first: Sequence[int | float], second: Sequence[int | float]) -> float:
    width = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    height = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    common = max(width, 0.0) * max(height, 0.0)
    union = first[2] * first[3] + second[2] * second[3] - common
    # Two boxes without area have nothing in common, wherever they lie.
    return common / union if union > 0 else 0.0
