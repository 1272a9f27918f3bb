"""The challenge's own metrics, on cases that can be computed by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from downstream.annotations.labels import ground_truth
from downstream.annotations.voc import read_voc
from downstream.metrics.voc import voc_ap

Document = dict[str, Any]


def truth(*difficult: int) -> Document:
    """One dog a picture, each 10 x 10."""
    return {
        "images": [{"id": f"i{n}"} for n in range(len(difficult))],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {"image_id": f"i{n}", "category_id": 1, "bbox": [0, 0, 10, 10], "difficult": flag, "iscrowd": 0}
            for n, flag in enumerate(difficult)
        ],
    }


def answers(*rows: tuple[int, float, float]) -> list[Document]:
    """Picture, shift to the right, score."""
    return [
        {"image_id": f"i{n}", "category_id": 1, "bbox": [shift, 0, 10, 10], "score": score} for n, shift, score in rows
    ]


def test_hits_and_misses_by_hand() -> None:
    # Hit, miss, hit of four: precision 1 up to recall 1/4, then 2/3 up to 1/2.
    found = answers((0, 0, 0.9), (1, 9, 0.8), (2, 0, 0.7))
    assert voc_ap(truth(0, 0, 0, 0), found)["voc_ap"] == pytest.approx(0.25 + 0.25 * 2 / 3)
    assert voc_ap(truth(0, 0, 0, 0), found)["voc07_ap"] == pytest.approx((3 * 1 + 3 * 2 / 3) / 11)


def test_levels_of_recall_are_the_floating_point_numbers_of_the_kit() -> None:
    # Three of ten: levels 0, 0.1 and 0.2; the next one, 3 * 0.1, is a little more than 0.3.
    found = answers((0, 0, 0.9), (1, 0, 0.8), (2, 0, 0.7))
    assert voc_ap(truth(*[0] * 10), found)["voc07_ap"] == pytest.approx(3 / 11)
    assert voc_ap(truth(*[0] * 4), found[:1])["voc07_ap"] == pytest.approx(3 / 11)
    assert voc_ap(truth(*[0] * 4), found[:2])["voc07_ap"] == pytest.approx(6 / 11)


def test_a_second_answer_for_one_object_is_wrong() -> None:
    found = answers((0, 0, 0.9), (0, 1, 0.8), (1, 0, 0.7))
    assert voc_ap(truth(0, 0), found)["voc_ap"] == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_half_an_overlap_is_enough() -> None:
    (found,) = answers((0, 0, 0.9))
    assert voc_ap(truth(0), [found | {"bbox": [0, 0, 10, 20]}])["voc_ap"] == pytest.approx(1.0)
    assert voc_ap(truth(0), [found | {"bbox": [0, 0, 10, 20.1]}])["voc_ap"] == 0


def test_the_overlap_is_a_choice() -> None:
    (found,) = answers((0, 0, 0.9))
    for iou, ap in ((0.25, 1.0), (0.8, 1.0), (0.81, 0.0)):
        assert voc_ap(truth(0), [found | {"bbox": [0, 0, 8, 10]}], iou=iou)["voc_ap"] == ap


def test_difficult_objects_are_ignored() -> None:
    for name in ("voc_ap", "voc07_ap"):
        assert voc_ap(truth(0, 1), answers((1, 0, 0.9), (0, 0, 0.8)))[name] == pytest.approx(1.0)
        assert voc_ap(truth(0, 1), answers((0, 0, 0.8)))[name] == pytest.approx(1.0)
        assert voc_ap(truth(0, 0), answers((0, 0, 0.8)))[name] < 1


def test_a_class_without_objects_has_no_part_in_the_mean() -> None:
    found = voc_ap(truth(0), answers((0, 0, 0.9)))
    assert found["voc_ap"] == pytest.approx(1.0)
    assert found["per_class"]["cat"] == {"voc07_ap": -1.0, "voc_ap": -1.0}
    assert voc_ap(truth(1), [])["voc_ap"] == -1


Corners = tuple[float, float, float, float]


def kit_overlap(first: Corners, second: Corners) -> float:
    """Corners count pixels from 1 and belong to the box."""
    width = min(first[2], second[2]) - max(first[0], second[0]) + 1
    height = min(first[3], second[3]) - max(first[1], second[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(x2 - x1 + 1) * (y2 - y1 + 1) for x1, y1, x2, y2 in (first, second)]
    return width * height / (sum(areas) - width * height)


def kit(
    objects: dict[str, list[tuple[Corners, bool]]], found: list[tuple[str, float, Corners]], iou: float
) -> tuple[float, float]:
    """The challenge's evaluation of one class, as its kit words it: 11-point and all-point AP."""
    total = sum(not difficult for rows in objects.values() for _, difficult in rows)
    detected: set[tuple[str, int]] = set()
    hits, misses, recall, precision = 0, 0, [], []
    for image, _, box in sorted(found, key=lambda row: -row[1]):
        best, where = -1.0, -1
        for number, (true, _) in enumerate(objects.get(image, [])):
            if (overlap := kit_overlap(box, true)) > best:
                best, where = overlap, number
        if best >= iou:
            if not objects[image][where][1]:
                if (image, where) in detected:
                    misses += 1
                else:
                    hits += 1
                    detected.add((image, where))
        else:
            misses += 1
        recall.append(hits / total)
        precision.append(hits / (hits + misses) if hits + misses else 0.0)
    eleven = 0.0
    for level in range(11):
        reached = [p for r, p in zip(recall, precision, strict=True) if r >= level * 0.1]
        eleven += max(reached, default=0.0) / 11
    recall, precision = [0.0, *recall, 1.0], [0.0, *precision, 0.0]
    for number in range(len(precision) - 2, -1, -1):
        precision[number] = max(precision[number], precision[number + 1])
    steps = [number for number in range(1, len(recall)) if recall[number] != recall[number - 1]]
    return eleven, sum((recall[n] - recall[n - 1]) * precision[n] for n in steps)


@pytest.mark.parametrize("iou", [0.5, 0.7])
def test_the_figures_are_those_of_the_kit(real_data: Path, iou: float) -> None:
    annotations = ground_truth(read_voc(f"{real_data / 'cards_voc'}:val"))
    chance = np.random.default_rng(5)
    for row in annotations["annotations"]:
        row["difficult"] = int(chance.random() < 0.15)
    found = []
    for row in annotations["annotations"]:
        for _ in range(chance.integers(0, 4)):
            left, top, width, height = np.array(row["bbox"]) + chance.normal(0, 0.12, 4) * row["bbox"][2]
            category = int(chance.choice([row["category_id"], 1, 2]))
            box = [left, top, max(width, 2), max(height, 2)]
            found.append(row | {"bbox": [round(float(side), 1) for side in box], "category_id": category})
            found[-1]["score"] = round(chance.random(), 2)
    result = voc_ap(annotations, found, iou=iou)
    expected = []
    for category in annotations["categories"]:
        objects: dict[str, list[tuple[Corners, bool]]] = {}
        for row in annotations["annotations"]:
            if row["category_id"] == category["id"]:
                objects.setdefault(row["image_id"], []).append((corners(row["bbox"]), bool(row["difficult"])))
        mine = [row for row in found if row["category_id"] == category["id"]]
        rows = [(row["image_id"], row["score"], corners(row["bbox"])) for row in mine]
        expected.append(kit(objects, rows, iou))
        both = result["per_class"][category["name"]]
        assert (both["voc07_ap"], both["voc_ap"]) == pytest.approx(expected[-1], abs=1e-9)
    means = np.mean(expected, axis=0)
    assert (result["voc07_ap"], result["voc_ap"]) == pytest.approx(tuple(means), abs=1e-9)
    assert 0.05 < means.min() < means.max() < 0.95


def corners(box: list[float]) -> Corners:
    left, top, width, height = box
    return left + 1, top + 1, left + width, top + height


def test_boxes_without_area_overlap_nothing() -> None:
    (found,) = answers((0, 0, 0.9))
    document = truth(0, 0)
    document["annotations"][0]["bbox"] = [5, 5, 0, 0]
    assert voc_ap(document, [found | {"bbox": [5, 5, 0, 0]}])["voc_ap"] == 0
