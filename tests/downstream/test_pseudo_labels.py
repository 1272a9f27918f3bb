"""Pseudo labels: which answers count, how thresholds follow the scores, for both kinds of class heads."""

import pytest
import torch

from downstream.pseudo_labels import Found, PseudoLabels, spared
from ssldet.class_scores import ClassScores, SigmoidScores, SoftmaxScores
from ssldet.types import Predictions, Targets


def labels_of(**choices: float) -> PseudoLabels:
    settings = {"threshold": 0.8, "adaptive": 1.0, "least": 0.3, "momentum": 0.5} | choices
    return PseudoLabels(3, **settings)


def answers(scores: list[list[float]], kind: ClassScores) -> Predictions:
    """Two images whose queries answer with these probabilities of the classes 0, 1, 2, in turn."""
    probability = torch.tensor(scores)
    images, queries = probability.shape
    per_class = torch.full((images, queries, 3 + kind.extra_rows), 1e-6)
    for query in range(queries):
        per_class[:, query, query % 3] = probability[:, query]
        if kind.extra_rows:
            per_class[:, query, 3] = 1 - probability[:, query]
    logits = per_class.log() if kind.extra_rows else per_class.logit()
    centres = torch.stack([torch.arange(queries) / queries + 0.1, torch.full((queries,), 0.5)], dim=1)
    boxes = torch.cat([centres, torch.full((queries, 2), 0.15)], dim=1).expand(images, queries, 4).clone()
    return Predictions(logits=logits[None], boxes=boxes[None], states=boxes[None], scores=kind)


KINDS = [SoftmaxScores(), SigmoidScores()]


@pytest.mark.parametrize("kind", KINDS, ids=["softmax", "sigmoid"])
def test_what_reaches_the_threshold_is_kept(kind: ClassScores) -> None:
    found = answers([[0.9, 0.85, 0.2, 0.79], [0.1, 0.1, 0.1, 0.1]], kind)
    first, second = labels_of()(found)
    assert first.sure.labels.tolist() == [0, 1]
    assert torch.allclose(first.sure.boxes, found.boxes[0, 0, :2], atol=1e-6)
    assert first.scores.tolist() == pytest.approx([0.9, 0.85], abs=1e-4)
    assert torch.allclose(first.unsure, found.boxes[0, 0, 3:], atol=1e-6)
    assert len(second.sure) == len(second.unsure) == 0


@pytest.mark.parametrize("kind", KINDS, ids=["softmax", "sigmoid"])
def test_a_class_of_which_the_teacher_is_less_sure_has_a_lower_threshold(kind: ClassScores) -> None:
    labels = labels_of()
    assert labels.thresholds().tolist() == pytest.approx([0.8, 0.8, 0.8])
    labels.follow(answers([[0.9, 0.45, 0.1], [0.9, 0.45, 0.2]], kind))
    # Class 2 was never found: its scores lie below the least threshold.
    assert labels.confidence.tolist() == pytest.approx([0.9, 0.45, 0.0], abs=1e-4)
    assert labels.thresholds().tolist() == pytest.approx([0.8, 0.4, 0.8], abs=1e-4)
    labels.follow(answers([[0.5, 0.1, 0.1]], kind))
    assert labels.confidence.tolist() == pytest.approx([0.7, 0.45, 0.0], abs=1e-4)
    half = labels_of(adaptive=0.5)
    half.confidence.copy_(torch.tensor([0.9, 0.45, 0.09]))
    assert half.thresholds().tolist() == pytest.approx([0.8, 0.6, 0.44], abs=1e-4)
    fixed, low = labels_of(adaptive=0.0), labels_of()
    for one in (fixed, low):
        one.confidence.copy_(torch.tensor([0.9, 0.45, 0.09]))
    assert fixed.thresholds().tolist() == pytest.approx([0.8, 0.8, 0.8])
    assert low.thresholds().tolist() == pytest.approx([0.8, 0.4, 0.3])


def test_the_means_are_saved_and_need_no_answers() -> None:
    labels, again = labels_of(), labels_of()
    labels.follow(answers([[0.9, 0.6, 0.5]], SoftmaxScores()))
    labels.follow(None)
    assert labels.confidence.tolist() == pytest.approx([0.9, 0.6, 0.5], abs=1e-4)
    again.load_state_dict(labels.state_dict())
    assert torch.equal(again.thresholds(), labels.thresholds())


def test_boxes_are_cut_at_the_border_and_dropped_beyond_it() -> None:
    found = answers([[0.9, 0.9, 0.9]], SoftmaxScores())
    boxes = torch.tensor([[0.0, 0.5, 0.4, 0.2], [1.3, 0.5, 0.2, 0.2], [0.5, 0.5, 0.3, 0.2]])
    found.boxes[0, 0] = boxes
    (one,) = labels_of()(found)
    assert one.sure.labels.tolist() == [0, 2]
    assert torch.allclose(one.sure.boxes, torch.tensor([[0.1, 0.5, 0.2, 0.2], [0.5, 0.5, 0.3, 0.2]]))
    assert len(one.scores) == 2


def test_of_two_answers_for_one_place_the_surer_is_a_label() -> None:
    found = answers([[0.85, 0.9, 0.95]], SoftmaxScores())
    found.boxes[0, 0] = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.31, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]])
    (one,) = labels_of()(found)
    assert one.sure.labels.tolist() == [1, 2]
    assert torch.allclose(one.unsure, found.boxes[0, 0, :1])


def test_a_query_is_not_judged_where_the_teacher_is_unsure() -> None:
    place, nearby, elsewhere = [0.3, 0.3, 0.2, 0.2], [0.32, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]
    shape = (1, 2, 3, 4)
    boxes = torch.tensor([nearby, place, elsewhere]).expand(shape)
    logits = torch.zeros(shape, requires_grad=True)
    student = Predictions(logits=logits, boxes=boxes, states=boxes)
    sure = Targets(boxes=torch.tensor([place]), labels=torch.tensor([0]))
    nothing = Targets(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    doubts = [
        Found(sure=nothing, scores=torch.zeros(0), unsure=torch.tensor([place])),
        Found(sure=sure, scores=torch.ones(1), unsure=torch.tensor([nearby])),
    ]
    for found, judged in (({1: doubts[0]}, [True] * 3 + [False, False, True]), ({0: doubts[1]}, [False] + [True] * 5)):
        logits.grad = None
        spared(student, found).logits.sum().backward()
        assert logits.grad is not None
        assert logits.grad.flatten(0, 2).bool().all(1).tolist() == judged
