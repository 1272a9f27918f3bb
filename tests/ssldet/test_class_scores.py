"""The two ways of reading class logits: rows, probabilities, cost, loss."""

import math

import pytest
import torch
import torch.nn.functional as F

from ssldet.class_scores import ClassScores, SigmoidScores, SoftmaxScores

LAYERS, IMAGES, QUERIES, CLASSES = 2, 3, 5, 4
BOTH = [SoftmaxScores(), SigmoidScores()]


def logits(scores: ClassScores) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(LAYERS, IMAGES, QUERIES, CLASSES + scores.extra_rows)


@pytest.mark.parametrize("scores", BOTH)
def test_rows_and_classes_agree(scores: ClassScores) -> None:
    given = logits(scores)
    assert scores.num_classes(given.shape[-1]) == CLASSES
    assert scores.probabilities(given).shape == (LAYERS, IMAGES, QUERIES, CLASSES)
    assert bool(((scores.probabilities(given) > 0) & (scores.probabilities(given) < 1)).all())


def test_a_softmax_shares_one_with_no_object_and_sigmoids_do_not() -> None:
    soft = SoftmaxScores().probabilities(logits(SoftmaxScores())).sum(-1)
    assert bool((soft < 1).all())
    assert bool((SigmoidScores().probabilities(logits(SigmoidScores())).sum(-1) > 1).any())


def test_no_object_is_the_last_row_of_a_softmax_and_no_row_of_sigmoids() -> None:
    silent = torch.tensor([[0.0, 0.0, 0.0, 0.0, 9.0], [0.0, 0.0, 5.0, 0.0, 1.0]])
    assert SoftmaxScores().says_object(silent).tolist() == [False, True]
    assert SoftmaxScores().most_likely(silent).tolist() == [CLASSES, 2]
    unlikely = torch.tensor([[-4.0, -3.0, -2.0, -5.0], [-1.0, 0.1, -9.0, -9.0]])
    assert SigmoidScores().says_object(unlikely).tolist() == [False, True]
    assert SigmoidScores().most_likely(unlikely).tolist() == [2, 1]


@pytest.mark.parametrize("scores", BOTH)
def test_the_cost_is_lowest_for_the_class_that_a_query_is_sure_of(scores: ClassScores) -> None:
    given = torch.full((1, 1, 3, CLASSES + scores.extra_rows), -3.0)
    for query, label in enumerate((2, 0, 3)):
        given[0, 0, query, label] = 3.0
    cost = scores.cost(given, torch.tensor([[0, 2]]))
    assert cost.shape == (1, 1, 3, 2)
    assert cost[0, 0].argmin(0).tolist() == [1, 0]


@pytest.mark.parametrize("scores", BOTH)
def test_labels_without_a_row_cost_nan(scores: ClassScores) -> None:
    cost = scores.cost(logits(scores), torch.tensor([[0, CLASSES], [1, -1], [CLASSES - 1, 2]]))
    assert cost.isnan().flatten(2).any(2).tolist() == [[True, True, False]] * LAYERS
    assert cost[:, 0, :, 0].isfinite().all()


def test_the_focal_cost_is_that_of_the_formula() -> None:
    scores = SigmoidScores(alpha=0.3, gamma=1.5)
    probability = torch.tensor([0.2, 0.9], dtype=torch.float64)
    cost = scores.cost(probability.logit().view(1, 1, 2, 1), torch.zeros(1, 1, dtype=torch.int64)).flatten()
    for value, p in zip(cost.tolist(), probability.tolist(), strict=True):
        present = 0.3 * (1 - p) ** 1.5 * -math.log(p)
        absent = 0.7 * p**1.5 * -math.log(1 - p)
        assert value == pytest.approx(present - absent, rel=1e-6)


def test_the_focal_loss_is_that_of_the_formula_and_divides_by_boxes() -> None:
    scores = SigmoidScores(alpha=0.3, gamma=1.5)
    given = logits(scores).double()
    labels = torch.randint(0, CLASSES + 1, (LAYERS, IMAGES, QUERIES))
    labels[0, 0, 0] = CLASSES
    p = given.sigmoid()
    right = F.one_hot(labels, CLASSES + 1)[..., :CLASSES].bool()
    each = torch.where(right, 0.3 * (1 - p) ** 1.5 * -p.log(), 0.7 * p**1.5 * -(1 - p).log())
    found = scores.loss(given, labels, no_object_weight=0.5, num_boxes=7.0)
    torch.testing.assert_close(found, each.sum((1, 2, 3)) / 7)


def test_the_cross_entropy_weighs_no_object_and_ignores_the_number_of_boxes() -> None:
    scores = SoftmaxScores()
    given = logits(scores)
    labels = torch.randint(0, CLASSES + 1, (LAYERS, IMAGES, QUERIES))
    weights = torch.ones(CLASSES + 1)
    weights[-1] = 0.25
    for layer in range(LAYERS):
        wanted = F.cross_entropy(given[layer].flatten(0, 1), labels[layer].flatten(), weight=weights)
        for boxes in (1.0, 9.0):
            found = scores.loss(given, labels, no_object_weight=0.25, num_boxes=boxes)
            torch.testing.assert_close(found[layer], wanted)


def test_sigmoid_heads_start_by_finding_nothing() -> None:
    assert SoftmaxScores().first_bias() is None
    assert SigmoidScores(prior=0.01).first_bias() == pytest.approx(-math.log(99))
