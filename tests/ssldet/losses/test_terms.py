import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import generalized_box_iou_loss

from ssldet.boxes import cxcywh_to_xyxy
from ssldet.losses.terms import BoxGIoUTerm, BoxL1Term, ClassTerm, sum_by_layer
from ssldet.types import Matches, Predictions, Targets

LAYERS, BATCH, QUERIES, CLASSES = 3, 2, 6, 4


def problem() -> tuple[Predictions, Targets, Matches]:
    """Ragged targets (3 and 1), every layer matched differently."""
    predictions = Predictions(
        logits=torch.randn(LAYERS, BATCH, QUERIES, CLASSES + 1, requires_grad=True),
        boxes=(torch.rand(LAYERS, BATCH, QUERIES, 4) * 0.5 + 0.2).requires_grad_(),
        states=torch.zeros(LAYERS, BATCH, QUERIES, 2),
    )
    targets = Targets(boxes=torch.rand(4, 4) * 0.5 + 0.2, labels=torch.tensor([3, 0, 3, 1]))
    matches = Matches(
        layer=torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]),
        image=torch.tensor([0, 0, 0, 1] * 3),
        query=torch.tensor([5, 1, 2, 0, 0, 1, 2, 4, 3, 5, 1, 1]),
        target=torch.tensor([0, 1, 2, 3, 2, 1, 0, 3, 0, 2, 1, 3]),
    )
    return predictions, targets, matches


@pytest.mark.parametrize("weight", [0.1, 0.5, 1.0])
def test_classes_are_pytorchs_weighted_mean_of_each_layer(weight: float) -> None:
    predictions, targets, matches = problem()
    found = ClassTerm(no_object_weight=weight)(predictions, targets, matches, 4.0)
    for layer in range(LAYERS):
        wanted = torch.full((BATCH, QUERIES), CLASSES)
        for n in range(len(matches.layer)):
            if matches.layer[n] == layer:
                wanted[matches.image[n], matches.query[n]] = targets.labels[matches.target[n]]
        weights = torch.tensor([1.0] * CLASSES + [weight])
        expected = F.cross_entropy(predictions.logits[layer].flatten(0, 1), wanted.flatten(), weight=weights)
        torch.testing.assert_close(found[layer], expected)


def test_boxes_are_summed_over_matches_and_divided_by_the_number_of_boxes() -> None:
    predictions, targets, matches = problem()
    l1 = BoxL1Term()(predictions, targets, matches, 2.5)
    giou = BoxGIoUTerm()(predictions, targets, matches, 2.5)
    for layer in range(LAYERS):
        here = matches.layer == layer
        found = predictions.boxes[layer, matches.image[here], matches.query[here]]
        true = targets.boxes[matches.target[here]]
        torch.testing.assert_close(l1[layer], F.l1_loss(found, true, reduction="sum") / 2.5)
        expected = generalized_box_iou_loss(cxcywh_to_xyxy(found), cxcywh_to_xyxy(true), reduction="sum") / 2.5
        torch.testing.assert_close(giou[layer], expected)


@pytest.mark.parametrize("term", [ClassTerm(), BoxL1Term(), BoxGIoUTerm()])
def test_no_match_is_finite_and_still_reaches_the_heads(term: ClassTerm | BoxL1Term | BoxGIoUTerm) -> None:
    predictions, _, _ = problem()
    none = torch.zeros(0, dtype=torch.long)
    targets = Targets(boxes=torch.zeros(0, 4), labels=none)
    values = term(predictions, targets, Matches(layer=none, image=none, query=none, target=none), 1.0)
    assert values.shape == (LAYERS,)
    values.sum().backward()
    reached = predictions.logits if isinstance(term, ClassTerm) else predictions.boxes
    assert reached.grad is not None
    assert reached.grad.isfinite().all()


@pytest.mark.parametrize("term", [ClassTerm(), BoxL1Term(), BoxGIoUTerm()])
def test_a_layer_has_gradients_of_its_own_value_only(term: ClassTerm | BoxL1Term | BoxGIoUTerm) -> None:
    predictions, targets, matches = problem()
    term(predictions, targets, matches, 4.0)[1].backward()
    reached = predictions.logits if isinstance(term, ClassTerm) else predictions.boxes
    assert reached.grad is not None
    moved = reached.grad.abs().sum((1, 2, 3)) > 0
    assert moved.tolist() == [False, True, False]


def test_no_weight_on_no_object_and_no_match_is_zero_not_nan() -> None:
    predictions, _, _ = problem()
    none = torch.zeros(0, dtype=torch.long)
    targets = Targets(boxes=torch.zeros(0, 4), labels=none)
    matches = Matches(layer=none, image=none, query=none, target=none)
    assert ClassTerm(no_object_weight=0.0)(predictions, targets, matches, 1.0).tolist() == [0.0] * LAYERS


def test_terms_are_in_32_bits() -> None:
    predictions, targets, matches = problem()
    half = Predictions(
        logits=predictions.logits.bfloat16(), boxes=predictions.boxes.bfloat16(), states=predictions.states
    )
    for term in (ClassTerm(), BoxL1Term(), BoxGIoUTerm()):
        assert term(half, targets, matches, 4.0).dtype == torch.float32


def test_values_are_added_up_within_their_layer() -> None:
    _, _, matches = problem()
    assert sum_by_layer(torch.arange(12.0), matches, LAYERS).tolist() == [6.0, 22.0, 38.0]
