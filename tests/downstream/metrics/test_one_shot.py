"""One-shot AP50: perfect answers, mistakes in images without the class, whose metric, and what is refused."""

import pickle
from pathlib import Path

import pytest
import torch

from downstream.annotations.coco import open_coco
from downstream.annotations.labelled import LabelledImages
from downstream.annotations.one_shot import EvaluationPairs
from downstream.annotations.shapes import write_shapes
from downstream.metrics.one_shot import OneShotAP
from ssldet.boxes import to_absolute
from ssldet.data.collate import collate
from ssldet.data.images import ImageRules
from ssldet.errors import DataError, DivergedError
from ssldet.task import SharesRows
from ssldet.types import Batch, Detections


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    path = write_shapes(tmp_path_factory.mktemp("shapes"), images=9, objects=(1, 2), seed=2)
    return open_coco(str(path), ImageRules(min_side=17, max_pixels=10**6))


def truth_of(pairs: EvaluationPairs, number: int, score: float) -> tuple[Detections, Batch]:
    """Answer with the true boxes, or, where the class is absent, with one box anywhere."""
    sample = pairs[number]
    boxes = to_absolute(sample.targets.boxes, sample.original_size)
    boxes = boxes if len(boxes) else torch.tensor([[4.0, 4.0, 30.0, 30.0]])
    labels = torch.zeros(len(boxes), dtype=torch.int64)
    return Detections(boxes=boxes, scores=torch.full((len(boxes),), score), labels=labels), collate([sample])


def measured(pairs: EvaluationPairs, metric: str = "voc", *, backwards: bool = False) -> dict[str, float]:
    evaluator = OneShotAP(pairs, metric)
    order = range(len(pairs))
    for number in reversed(order) if backwards else order:
        found, batch = truth_of(pairs, number, score=0.5)
        evaluator.update([found], batch)
    return evaluator.results()


@pytest.mark.parametrize("metric", ["voc", "coco"])
def test_true_answers_are_perfect_until_absent_classes_are_asked_for(images: LabelledImages, metric: str) -> None:
    results = measured(EvaluationPairs(images, ("circle",), patch_size=16), metric)
    assert results["AP50_unseen"] == results["AP50_seen"] == pytest.approx(1.0)
    strict = measured(EvaluationPairs(images, ("circle",), patch_size=16, absent=True), metric)
    assert 0 < strict["AP50_unseen"] < 0.95
    assert 0 < strict["AP50_seen"] < 0.95


def test_rows_of_several_ranks_give_the_figures_of_one(images: LabelledImages) -> None:
    pairs = EvaluationPairs(images, ("circle",), patch_size=16, absent=True)
    first, ranks = OneShotAP(pairs, "coco"), [OneShotAP(pairs, "coco") for _ in range(2)]
    assert isinstance(first, SharesRows)
    for number in range(len(pairs)):
        found, batch = truth_of(pairs, number, score=0.5)
        ranks[number % 2].update([found], batch)
        first.add_rows(pickle.loads(pickle.dumps(ranks[number % 2].take_rows())))  # our own bytes
        assert ranks[number % 2].take_rows() == {}
    assert first.results() == measured(pairs, "coco")


def test_the_order_of_pairs_is_without_influence(images: LabelledImages) -> None:
    pairs = EvaluationPairs(images, ("circle",), patch_size=16, absent=True)
    assert measured(pairs) == measured(pairs, backwards=True)


def test_means_are_over_the_seen_and_over_the_held_out_classes(images: LabelledImages) -> None:
    pairs = EvaluationPairs(images, ("circle",), patch_size=16)
    evaluator = OneShotAP(pairs, "voc")
    for number, (_, label) in enumerate(pairs.pairs):
        if label == 1:
            found, batch = truth_of(pairs, number, score=0.9)
            evaluator.update([found], batch)
    assert evaluator.results() == {
        "AP50_unseen": 0.0,
        "AP50_seen": pytest.approx(0.5),
        "per_class": {"circle": 0.0, "square": pytest.approx(1.0), "triangle": 0.0},
    }


def test_a_class_without_objects_is_not_measured(images: LabelledImages) -> None:
    results = measured(EvaluationPairs(images, (), patch_size=16))
    assert results["AP50_unseen"] == -1.0


def test_what_can_not_be_scored_is_refused(images: LabelledImages, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="measured on pairs"):
        OneShotAP(images, "voc")
    pairs = EvaluationPairs(images, (), patch_size=16)
    found, batch = truth_of(pairs, 0, score=float("nan"))
    with pytest.raises(DivergedError, match=r"pair 1:.* not finite"):
        OneShotAP(pairs, "voc").update([found], batch)
