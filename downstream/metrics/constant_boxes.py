"""ground truth -> the detections of a program that sees no image: the same boxes everywhere, the best that there are.

A detector must beat them to show that it looks at its images. They are chosen from the very objects that they are then
measured on, so that no blind detector does much better.
"""

from collections import defaultdict
from typing import Any

import numpy as np
from jaxtyping import Float

from downstream.metrics.coco_engines import Results
from ssldet.source import GroundTruth

BOXES_PER_CLASS = 10
"""Boxes for each class."""
BOXES_PER_IMAGE = 100
"""Boxes of all classes together; those that are right most often are kept."""
MOST_CANDIDATES = 400
"""Objects of a class from which its boxes are chosen; of more, evenly many are left out."""


def constant_boxes(truth: GroundTruth) -> Results:
    """Return the same boxes, in sides of the image, for every image whose size is known.

    Each next box of a class is the one that covers most objects which no earlier one does; its score is their number
    for each image.

    Args:
        truth: COCO's `images`, `annotations` and `categories`.
    """
    sizes = {row["id"]: (row["width"], row["height"]) for row in truth["images"] if row["width"] and row["height"]}
    ids = [row["id"] for row in truth["categories"]]
    boxes: dict[Any, list[list[float]]] = defaultdict(list)
    for row in truth["annotations"]:
        if row["image_id"] in sizes and not (row["iscrowd"] or row.get("difficult")):
            width, height = sizes[row["image_id"]]
            left, top, across, down = row["bbox"]
            sides = [left / width, top / height, (left + across) / width, (top + down) / height]
            boxes[row["category_id"]].append(sides)
    rows = [
        (*box, score / max(1, len(sizes)), label)
        for label, key in enumerate(ids)
        for box, score in _covering(np.array(boxes[key]).reshape(-1, 4))
    ]
    rows.sort(key=lambda row: -row[4])
    return _everywhere(np.array(rows[:BOXES_PER_IMAGE]).reshape(-1, 6), sizes, ids)


def _covering(boxes: Float[np.ndarray, "N 4"]) -> list[tuple[Float[np.ndarray, "4"], int]]:
    """Return the boxes that together cover most of all, best first, each with the number that it adds."""
    candidates = boxes[:: max(1, -(-len(boxes) // MOST_CANDIDATES))]
    covered = _iou(candidates, boxes) >= 0.5
    chosen: list[tuple[Float[np.ndarray, 4], int]] = []
    while len(chosen) < BOXES_PER_CLASS and covered.any():
        best = int(covered.sum(1).argmax())
        chosen.append((candidates[best], int(covered[best].sum())))
        covered &= ~covered[best]
    return chosen


def _everywhere(rows: Float[np.ndarray, "N 6"], sizes: dict[Any, tuple[int, int]], ids: list[int]) -> Results:
    """Return rows of xyxy in sides of an image, score and label as detections in every image."""
    table = np.tile(rows, (len(sizes), 1))
    scale = np.repeat(np.array(list(sizes.values()), float).reshape(-1, 2), len(rows), axis=0)
    low, high = table[:, :2] * scale, table[:, 2:4] * scale
    table = np.concatenate([low, high - low, table[:, 4:]], axis=1)
    return Results(list(sizes), ids, np.repeat(np.arange(len(sizes)), len(rows)), table)


def _iou(first: Float[np.ndarray, "N 4"], second: Float[np.ndarray, "M 4"]) -> Float[np.ndarray, "N M"]:
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1] - common
    overlaps: Float[np.ndarray, "N M"] = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return overlaps
