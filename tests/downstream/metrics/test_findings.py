"""Mistakes and their costs on cases made by hand; hits against COCO's own metric on random ones."""

from typing import Any

import numpy as np
import pytest

from downstream.metrics.average_precision import box_ap
from downstream.metrics.coco_engines import Numbers, Results, columns_of
from downstream.metrics.constant_boxes import constant_boxes
from downstream.metrics.error_kinds import ErrorKind, _Counted, error_kinds
from downstream.metrics.findings import findings
from downstream.metrics.hits import Hits, hits

NAMES = ("cup", "tea")


def _truth(*objects: tuple[int, int, list[float]], images: int = 2, **marks: int) -> dict[str, list[dict[str, Any]]]:
    """Annotations of (image, class, xywh); `marks` sets a field of the last object."""
    rows = [
        {"id": n, "image_id": image, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for n, (image, label, box) in enumerate(objects)
    ]
    rows[-1] |= marks
    return {
        "images": [{"id": n, "width": 100, "height": 100} for n in range(images)],
        "annotations": rows,
        "categories": [{"id": n, "name": name} for n, name in enumerate(NAMES)],
    }


def _found(*rows: tuple[int, int, list[float], float], images: int = 2) -> Results:
    table = np.array([[*box, score, label] for _, label, box, score in rows], float).reshape(-1, 6)
    return Results(list(range(images)), [0, 1], np.array([row[0] for row in rows], int), table)


def _hits(truth: dict[str, list[dict[str, Any]]], found: Results) -> Hits:
    numbers = Numbers.of(truth)
    return hits(columns_of(truth["annotations"], numbers, "bbox"), columns_of(found, numbers, "bbox"))


def _costs(truth: dict[str, list[dict[str, Any]]], found: Results) -> dict[str, tuple[int, float]]:
    kinds: list[ErrorKind] = error_kinds(_hits(truth, found))
    return {one.kind: (one.count, round(one.cost, 4)) for one in kinds if one.count or one.cost}


BOX, FAR, OFF, GHOST = [10.0, 10, 20, 20], [60.0, 60, 20, 20], [18.0, 10, 20, 20], [70.0, 5, 9, 9]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(0, 0, BOX, 0.9), (1, 0, FAR, 0.8)], {}),
        ([(0, 0, BOX, 0.9), (1, 0, OFF, 0.8)], {"background": (1, 0.0), "missed": (1, 0.495)}),
        ([(0, 0, OFF, 0.9), (1, 0, FAR, 0.8)], {"localisation": (1, 0.7475)}),
        ([(0, 1, BOX, 0.9), (1, 0, FAR, 0.8)], {"class": (1, 0.495)}),
        ([(0, 0, BOX, 0.9), (0, 0, BOX, 0.8), (1, 0, FAR, 0.7)], {"duplicate": (1, 0.165)}),
        ([(0, 0, GHOST, 0.9), (0, 0, BOX, 0.8), (1, 0, FAR, 0.7)], {"background": (1, 0.3333)}),
        ([(0, 1, OFF, 0.9), (0, 0, BOX, 0.8), (1, 0, FAR, 0.7)], {"class and localisation": (1, 0.0)}),
    ],
)
def test_a_mistake_made_by_hand_has_its_kind_and_its_cost(rows: Any, expected: dict[str, tuple[int, float]]) -> None:
    costs = _costs(_truth((0, 0, BOX), (1, 0, FAR)), _found(*rows))
    assert costs.keys() == expected.keys()
    for kind, (count, cost) in expected.items():
        assert costs[kind] == (count, pytest.approx(cost, abs=2e-3)), kind


def test_a_mistake_about_an_object_that_is_found_wins_nothing_when_it_is_mended() -> None:
    costs = _costs(_truth((0, 0, BOX)), _found((0, 0, BOX, 0.9), (0, 0, OFF, 0.5)))
    assert costs == {"localisation": (1, 0.0)}


def test_a_class_mistake_counts_in_its_own_class_too() -> None:
    costs = _costs(_truth((0, 0, BOX), (1, 1, FAR)), _found((0, 1, BOX, 0.9), (1, 1, FAR, 0.8)))
    # Mended, class 0 goes from 0 to 1 and class 1 from 1/2 to 1.
    assert costs["class"] == (1, 0.75)


def test_crowds_and_difficult_objects_are_neither_right_nor_wrong() -> None:
    for mark in ({"iscrowd": 1}, {"difficult": 1}):
        truth = _truth((0, 0, BOX), (1, 0, FAR), **mark)
        assert _costs(truth, _found((0, 0, BOX, 0.9), (1, 0, FAR, 0.95))) == {}
        assert int(_hits(truth, _found((1, 0, FAR, 0.95))).counts.sum()) == 1


def _random(seed: int) -> tuple[dict[str, list[dict[str, Any]]], Results]:
    draw = np.random.default_rng(seed)

    def box() -> list[float]:
        return [*draw.uniform(0, 50, 2), *draw.uniform(8, 40, 2)]

    objects = [(int(draw.integers(5)), int(draw.integers(2)), box()) for _ in range(23)]
    truth = _truth(*objects, images=5, iscrowd=1)
    truth["annotations"][3]["difficult"] = 1
    moved = [
        (image, label if draw.random() < 0.8 else 1 - label, list(np.array(given) + draw.normal(0, 4, 4)))
        for image, label, given in objects * 3
    ]
    ghosts = [(int(draw.integers(5)), int(draw.integers(2)), box()) for _ in range(9)]
    # Few scores, so that there are ties.
    return truth, _found(*((*row, float(draw.integers(1, 9)) / 9) for row in moved + ghosts), images=5)


@pytest.mark.parametrize("seed", range(6))
def test_average_precision_of_the_hits_is_that_of_coco(seed: int) -> None:
    truth, found = _random(seed)
    assert _Counted.of(_hits(truth, found)).average_precision() == pytest.approx(box_ap(truth, found)["AP50"], abs=1e-9)


def test_findings_tell_the_balance_the_baseline_and_examples() -> None:
    truth = _truth((0, 0, BOX), (1, 0, BOX), (1, 1, FAR))
    rows = [(0, 0, BOX, 0.9), (1, 0, BOX, 0.8), (1, 0, FAR, 0.7), (0, 0, GHOST, 0.6)]
    told = findings(truth, _found(*rows), {0: "a.jpg", 1: "b.jpg"}, box_ap)
    assert told.figures["balance"] == {"score": 0.8, "recall": pytest.approx(2 / 3), "precision": 1.0}
    assert told.figures["classes"] == {"cup": 2, "tea": 1}
    assert told.figures["sizes"] == {"small": 3, "medium": 0, "large": 0}
    # The cups lie in one place: boxes without a look at the images find them, and the tea, which lies alone.
    assert told.figures["baseline"]["AP50"] == pytest.approx(1, abs=0.3)
    assert all(len(curve) == 101 for curve in told.figures["curves"].values())
    assert [(one.outcome, one.key, one.score, one.error) for one in told.examples] == [
        ("found", "a.jpg", 0.9, ""),
        ("found", "b.jpg", 0.8, ""),
        ("missed", "b.jpg", 0.7, "taken for cup"),
    ]
    assert told.examples[2].name == "tea"
    assert told.examples[2].object == (60.0, 60.0, 80.0, 80.0)


def test_nothing_detected_is_all_missed() -> None:
    told = findings(_truth((0, 0, BOX), (1, 1, FAR)), _found(), {0: "a", 1: "b"}, box_ap)
    assert told.figures["balance"] == {"score": 0.0, "recall": 0.0, "precision": 0.0}
    assert [(one.outcome, one.error) for one in told.examples] == [("missed", "nothing near it")] * 2
    assert {row["kind"]: row["count"] for row in told.figures["errors"]}["missed"] == 2


def test_constant_boxes_are_the_same_in_every_image_in_sides_of_it() -> None:
    truth = _truth((0, 0, [10, 10, 20, 20]), (1, 0, [20, 20, 40, 40]))
    truth["images"][1] |= {"width": 200, "height": 200}
    rows = list(constant_boxes(truth))
    assert [(row["image_id"], row["bbox"]) for row in rows] == [(0, [10, 10, 20, 20]), (1, [20, 20, 40, 40])]
    assert {row["score"] for row in rows} == {1.0}
    assert box_ap(truth, constant_boxes(truth))["AP50"] == pytest.approx(1)
