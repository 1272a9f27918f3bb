"""The challenge's own metrics, on cases that can be computed by hand."""

from typing import Any

import pytest

from downstream.metrics.voc import voc07_ap, voc_ap

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
    assert voc_ap(truth(0, 0, 0, 0), found)["VOC_mAP"] == pytest.approx(0.25 + 0.25 * 2 / 3)
    assert voc07_ap(truth(0, 0, 0, 0), found)["VOC07_mAP"] == pytest.approx((3 * 1 + 3 * 2 / 3) / 11)


def test_each_level_of_recall_counts_from_where_it_is_reached() -> None:
    # Three of ten: levels 0, 0.1, 0.2 and 0.3, the last of which is not a round number in binary.
    found = answers((0, 0, 0.9), (1, 0, 0.8), (2, 0, 0.7))
    assert voc07_ap(truth(*[0] * 10), found)["VOC07_mAP"] == pytest.approx(4 / 11)


def test_a_second_answer_for_one_object_is_wrong() -> None:
    found = answers((0, 0, 0.9), (0, 1, 0.8), (1, 0, 0.7))
    assert voc_ap(truth(0, 0), found)["VOC_mAP"] == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_half_an_overlap_is_enough() -> None:
    (found,) = answers((0, 0, 0.9))
    assert voc_ap(truth(0), [found | {"bbox": [0, 0, 10, 20]}])["VOC_mAP"] == pytest.approx(1.0)
    assert voc_ap(truth(0), [found | {"bbox": [0, 0, 10, 20.1]}])["VOC_mAP"] == 0


def test_difficult_objects_are_ignored() -> None:
    for metric, name in ((voc_ap, "VOC_mAP"), (voc07_ap, "VOC07_mAP")):
        assert metric(truth(0, 1), answers((1, 0, 0.9), (0, 0, 0.8)))[name] == pytest.approx(1.0)
        assert metric(truth(0, 1), answers((0, 0, 0.8)))[name] == pytest.approx(1.0)
        assert metric(truth(0, 0), answers((0, 0, 0.8)))[name] < 1  # type: ignore[operator]


def test_a_class_without_objects_has_no_part_in_the_mean() -> None:
    found = voc_ap(truth(0), answers((0, 0, 0.9)))
    assert found == {"VOC_mAP": pytest.approx(1.0), "per_class": {"dog": pytest.approx(1.0), "cat": -1.0}}
    assert voc_ap(truth(1), [])["VOC_mAP"] == -1
