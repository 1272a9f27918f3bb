"""ground truth, detections -> Findings: a blind baseline, mistakes and their costs, curves, examples."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from downstream.metrics.coco_engines import Columns, Numbers, Results, columns_of
from downstream.metrics.constant_boxes import constant_boxes
from downstream.metrics.error_kinds import KINDS, error_kinds, kinds_of, precision_at
from downstream.metrics.hits import NOTHING, Hits, hits
from ssldet.findings import Example, Findings
from ssldet.source import GroundTruth

CURVES = (0.5, 0.75)
"""Overlaps of the precision-recall curves over all classes."""
MOST_CLASS_CURVES = 6
"""Classes up to which each has a curve of its own."""
EXAMPLES = 8
"""Examples of each outcome."""
BASELINE_IMAGES = 1000
"""Images on which the baseline is measured; of more, evenly many are left out."""
SMALL, MEDIUM = 32**2, 96**2
"""COCO's limits of sizes in pixels: areas below the first are small, below the second medium."""

Box = tuple[float, float, float, float]


def findings(
    truth: GroundTruth,
    detections: Results,
    keys: Mapping[Any, str],
    figures: Callable[[GroundTruth, Sequence[Mapping[str, Any]]], dict[str, Any]],
    *,
    max_dets: int = 100,
) -> Findings:
    """Explain figures.

    Args:
        truth: COCO's `images`, `annotations` and `categories`, with at least one object to find.
        detections: All detections.
        keys: Id of an image -> its key.
        figures: The function that computes the figures, used for the baseline.
        max_dets: Detections per image and class that count.
    """
    numbers = Numbers.of(truth)
    objects, detected = columns_of(truth["annotations"], numbers, "bbox"), columns_of(detections, numbers, "bbox")
    matched = {iou: hits(objects, detected, iou=iou, max_dets=max_dets) for iou in CURVES}
    half = matched[0.5]
    ids = {number: key for key, number in numbers.categories.items()}
    names = {row["id"]: str(row["name"]) for row in truth["categories"]}
    classes = {number: names[key] for number, key in ids.items()}
    balance = _balance(half)
    counted = half.objects.categories[half.counts]
    areas = half.objects.areas[half.counts]
    told = {
        "images": len(truth["images"]),
        "objects": int(half.counts.sum()),
        "baseline": _baseline(truth, figures),
        "balance": balance,
        "errors": [
            {"kind": one.kind, "meaning": KINDS[one.kind], "count": one.count, "cost": one.cost}
            for one in error_kinds(half)
        ],
        "curves": _curves(matched, classes),
        "classes": {name: int((counted == number).sum()) for number, name in classes.items()},
        "sizes": {
            "small": int((areas < SMALL).sum()),
            "medium": int(((areas >= SMALL) & (areas < MEDIUM)).sum()),
            "large": int((areas >= MEDIUM).sum()),
        },
    }
    image_keys = {number: keys[key] for key, number in numbers.images.items()}
    return Findings(figures=told, examples=list(_examples(half, balance["score"], classes, image_keys)))


def _baseline(truth: GroundTruth, figures: Callable[..., dict[str, Any]]) -> dict[str, float]:
    """Return the plain figures of boxes that are the same in every image."""
    step = -(-len(truth["images"]) // BASELINE_IMAGES)
    images = truth["images"][::step]
    kept = {row["id"] for row in images}
    part = {**truth, "images": images, "annotations": [row for row in truth["annotations"] if row["image_id"] in kept]}
    if not any(not (row["iscrowd"] or row.get("difficult")) for row in part["annotations"]):
        return {}
    measured = figures(part, constant_boxes(part))
    return {name: float(value) for name, value in measured.items() if isinstance(value, int | float)}


def _balance(matched: Hits) -> dict[str, float]:
    """Return the confidence with the best balance (F1) of recall and precision over all classes, and both there."""
    rows = ~matched.ignored
    right, scores = np.cumsum(matched.right[rows]), matched.detections.scores[rows]
    total = int(matched.counts.sum())
    if not len(right) or not right[-1]:
        return {"score": 0.0, "recall": 0.0, "precision": 0.0}
    f1 = 2 * right / (np.arange(1, len(right) + 1) + total)
    # Detections of one score stand or fall together.
    f1[:-1][scores[:-1] == scores[1:]] = 0
    best = int(f1.argmax())
    return {
        "score": float(scores[best]),
        "recall": float(right[best] / total),
        "precision": float(right[best] / (best + 1)),
    }


def _curves(matched: Mapping[float, Hits], classes: Mapping[int, str]) -> dict[str, list[float]]:
    """Return name -> precision at COCO's 101 levels of recall, mean over the classes that have objects."""
    drawn: dict[str, list[float]] = {}
    for iou, one in matched.items():
        precision = {
            name: precision_at(one.right[rows], objects)
            for number, name in classes.items()
            if (objects := int((one.counts & (one.objects.categories == number)).sum()))
            for rows in [~one.ignored & (one.detections.categories == number)]
        }
        drawn[f"all classes, overlap {iou:.2f}"] = _rounded(np.mean(list(precision.values()), axis=0))
        if iou == CURVES[0] and 1 < len(precision) <= MOST_CLASS_CURVES:
            drawn |= {name: _rounded(values) for name, values in precision.items()}
    return drawn


def _rounded(values: Float[np.ndarray, " 101"]) -> list[float]:
    return [round(float(value), 4) for value in values]


def _examples(
    matched: Hits, threshold: float, classes: Mapping[int, str], keys: Mapping[int, str]
) -> Iterator[Example]:
    """Yield examples of each outcome, the most confident first, from as many images as there are."""
    shown, kinds = matched.detections, kinds_of(matched)
    said = shown.scores >= threshold
    for row in _spread(np.flatnonzero(matched.right & said), shown.images):
        yield _of_detection("found", matched, row, int(matched.found[row]), classes, keys)
    for row in _spread(np.flatnonzero(matched.wrong & said), shown.images):
        meant = matched.same_object if matched.same[row] >= matched.other[row] else matched.other_object
        target = NOTHING if kinds[row] == "background" else int(meant[row])
        kind = str(kinds[row])
        if kind.startswith("class"):
            kind = f"is {classes[int(matched.objects.categories[target])]}"
        yield _of_detection("false", matched, row, target, classes, keys, kind)
    for number, row in _nearly_found(matched, said):
        objects = matched.objects
        example = Example(
            outcome="missed",
            key=keys[int(objects.images[number])],
            name=classes[int(objects.categories[number])],
            object=_xyxy(objects, number),
            error="nothing near it" if row == NOTHING else "",
        )
        if row != NOTHING:
            near = _of_detection("missed", matched, row, number, classes, keys)
            said_of_it = f"taken for {near.name}" if near.name != example.name else "too unsure"
            example = Example(**{**near.to_json(), "name": example.name, "error": said_of_it})
        yield example


def _of_detection(
    outcome: Any,
    matched: Hits,
    row: int,
    target: int,
    classes: Mapping[int, str],
    keys: Mapping[int, str],
    error: str = "",
) -> Example:
    shown = matched.detections
    overlap = matched.same if matched.same_object[row] == target else matched.other
    return Example(
        outcome=outcome,
        key=keys[int(shown.images[row])],
        name=classes[int(shown.categories[row])],
        detected=_xyxy(shown, row),
        object=None if target == NOTHING else _xyxy(matched.objects, target),
        score=round(float(shown.scores[row]), 4),
        overlap=None if target == NOTHING else round(float(overlap[row]), 4),
        error=error,
    )


def _nearly_found(matched: Hits, said: Bool[np.ndarray, " N"]) -> list[tuple[int, int]]:
    """Return missed objects, each with the most confident detection near it or `NOTHING`, the most confident first."""
    missed = matched.counts.copy()
    missed[matched.found[matched.right & said]] = False
    nearest: dict[int, int] = {}
    for row in range(len(matched.detections)):
        for overlaps, objects in ((matched.same, matched.same_object), (matched.other, matched.other_object)):
            target = int(objects[row])
            if overlaps[row] >= matched.iou and target != NOTHING and missed[target]:
                nearest.setdefault(target, row)
    near = [*nearest, *(int(number) for number in np.flatnonzero(missed) if int(number) not in nearest)]
    return [(number, nearest.get(number, NOTHING)) for number in _spread(np.array(near, int), matched.objects.images)]


def _spread(rows: Int[np.ndarray, " n"], images: Int[np.ndarray, " N"]) -> list[int]:
    """Return the first rows, one per image as far as there are images enough, in their order."""
    turn: dict[int, int] = {}
    turns = []
    for place, row in enumerate(rows.tolist()):
        image = int(images[row])
        turns.append((turn.get(image, 0), place, row))
        turn[image] = turn.get(image, 0) + 1
    chosen = sorted(turns)[:EXAMPLES]
    return [row for _, _, row in sorted(chosen, key=lambda entry: entry[1])]


def _xyxy(columns: Columns, row: int) -> Box:
    left, top, width, height = (round(float(side), 2) for side in columns.boxes[row])
    return left, top, round(left + width, 2), round(top + height, 2)
