"""Detections -> VOC AP: the challenge's own metrics at one overlap threshold, 11-point (2007) and all-point (2010).

They are never mixed into a table with COCO's figures: the names of the results tell them apart.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool

from downstream.metrics.average_precision import GroundTruth


def voc07_ap(truth: GroundTruth, detections: Sequence[Mapping[str, Any]]) -> dict[str, float | dict[str, float]]:
    """Compute the VOC 2007 metric: the mean of the best precision at eleven levels of recall, at overlap 0.5.

    Args:
        truth: As `LabelledImages.ground_truth` returns it; `difficult` and `iscrowd` objects are ignored.
        detections: COCO results: `image_id`, `category_id`, `bbox` in absolute xywh and `score`.

    Returns:
        `VOC07_mAP`, and `per_class` by name; -1 for a class without objects, which has no part in the mean.
    """
    return _mean_over_classes(truth, detections, "VOC07_mAP", "eleven")


def voc_ap(truth: GroundTruth, detections: Sequence[Mapping[str, Any]]) -> dict[str, float | dict[str, float]]:
    """Compute the VOC metric since 2010: the area under the monotone precision-recall curve, at overlap 0.5.

    Args:
        truth: As `LabelledImages.ground_truth` returns it; `difficult` and `iscrowd` objects are ignored.
        detections: COCO results: `image_id`, `category_id`, `bbox` in absolute xywh and `score`.

    Returns:
        `VOC_mAP`, and `per_class` by name; -1 for a class without objects, which has no part in the mean.
    """
    return _mean_over_classes(truth, detections, "VOC_mAP", "all")


def _mean_over_classes(
    truth: GroundTruth, detections: Sequence[Mapping[str, Any]], name: str, points: Literal["eleven", "all"]
) -> dict[str, float | dict[str, float]]:
    objects: dict[tuple[Any, Any], list[Mapping[str, Any]]] = defaultdict(list)
    for row in truth["annotations"]:
        objects[row["category_id"], row["image_id"]].append(row)
    answers: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for answer in detections:
        answers[answer["category_id"]].append(answer)
    per_class = {
        category["name"]: _class_ap(
            {image: rows for (owner, image), rows in objects.items() if owner == category["id"]},
            answers[category["id"]],
            points,
        )
        for category in truth["categories"]
    }
    measured = [value for value in per_class.values() if value >= 0]
    return {name: float(np.mean(measured)) if measured else -1.0, "per_class": per_class}


def _class_ap(
    objects: Mapping[Any, Sequence[Mapping[str, Any]]],
    answers: Sequence[Mapping[str, Any]],
    points: Literal["eleven", "all"],
) -> float:
    """Return the average precision of one class; `objects` is by image."""
    total = sum(not _ignored(row) for rows in objects.values() for row in rows)
    if not total:
        return -1.0
    hits, misses = _judge(objects, sorted(answers, key=lambda row: -row["score"]))
    found, wrong = np.cumsum(hits), np.cumsum(misses)
    precision = found / np.maximum(found + wrong, 1)
    if points == "eleven":
        # In whole numbers: 0.3 as a level is a little more than 3 of 10.
        return float(np.mean([precision[10 * found >= level * total].max(initial=0.0) for level in range(11)]))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(found / total, prepend=0.0) * envelope).sum())


def _judge(
    objects: Mapping[Any, Sequence[Mapping[str, Any]]], answers: Sequence[Mapping[str, Any]]
) -> tuple[Bool[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
    """Call each answer, best first, a hit, a miss or (neither) an ignored object found.

    An answer counts for the object that it overlaps most, and only the first answer of each object is a hit.
    """
    hits, misses = np.zeros(len(answers), dtype=bool), np.zeros(len(answers), dtype=bool)
    taken: set[tuple[Any, int]] = set()
    for number, answer in enumerate(answers):
        rows = objects.get(answer["image_id"], ())
        overlaps = [_iou_xywh(answer["bbox"], row["bbox"]) for row in rows]
        best = int(np.argmax(overlaps)) if overlaps else -1
        if best < 0 or overlaps[best] < 0.5:
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
    return common / (first[2] * first[3] + second[2] * second[3] - common)
