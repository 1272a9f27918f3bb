from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from ssldet.boxes import cxcywh_to_xyxy, elementwise_iou
from ssldet.class_scores import SigmoidScores
from ssldet.errors import DivergedError
from ssldet.losses.criterion import Criterion
from ssldet.losses.terms import BoxGIoUTerm, BoxL1Term, ClassTerm
from ssldet.matching import Matcher
from ssldet.types import Matches, Predictions, Targets, concatenate

LAYERS, BATCH, QUERIES, CLASSES = 3, 2, 12, 4

Part = tuple[Predictions, list[Targets]]


def problem(counts: tuple[int, int] = (3, 0)) -> tuple[Predictions, list[Targets]]:
    predictions = Predictions(
        logits=torch.randn(LAYERS, BATCH, QUERIES, CLASSES + 1, requires_grad=True),
        boxes=(torch.rand(LAYERS, BATCH, QUERIES, 4) * 0.5 + 0.2).requires_grad_(),
        states=torch.randn(LAYERS, BATCH, QUERIES, 2),
    )
    targets = [Targets(boxes=torch.rand(n, 4) * 0.5 + 0.2, labels=torch.randint(CLASSES, (n,))) for n in counts]
    return predictions, targets


def detrs() -> Criterion:
    return Criterion(Matcher(), [ClassTerm(), BoxL1Term(), BoxGIoUTerm()])


def test_every_term_has_one_value_a_layer_and_its_weight() -> None:
    losses = detrs()(*problem())
    assert {name: value.shape for name, value in losses.terms.items()} == dict.fromkeys(
        ("class", "box_l1", "box_giou"), (LAYERS,)
    )
    assert losses.weights == {"class": 1.0, "box_l1": 5.0, "box_giou": 2.0}
    by_hand = sum(losses.weights[name] * value.sum() for name, value in losses.terms.items())
    torch.testing.assert_close(losses.total, torch.as_tensor(by_hand))


def test_each_layer_is_matched_for_itself() -> None:
    predictions, targets = problem((3, 5))
    whole = detrs()(predictions, targets)
    for layer in range(LAYERS):
        part = Predictions(
            logits=predictions.logits[layer : layer + 1],
            boxes=predictions.boxes[layer : layer + 1],
            states=predictions.states[layer : layer + 1],
        )
        alone = detrs()(part, targets)
        for name, value in alone.terms.items():
            torch.testing.assert_close(value[0], whole.terms[name][layer])


def test_a_task_brings_its_own_term() -> None:
    class Quiet:
        name: ClassVar[str] = "quiet"
        weight = 0.25

        def __call__(self, predictions: Predictions, targets: Targets, matches: Matches, num_boxes: float) -> Tensor:
            return predictions.states.square().sum((1, 2, 3)) / num_boxes

    predictions, targets = problem()
    losses = Criterion(Matcher(), [Quiet()])(predictions, targets)
    torch.testing.assert_close(losses.total, 0.25 * predictions.states.square().sum() / 3)


def test_two_terms_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="share a name"):
        Criterion(Matcher(), [ClassTerm(), ClassTerm(weight=2.0)])


def test_a_batch_without_any_target_is_finite() -> None:
    predictions, targets = problem((0, 0))
    losses = detrs()(predictions, targets)
    losses.total.backward()
    assert losses.total.isfinite()
    assert all(value.isfinite() for value in losses.metrics.values())
    assert predictions.boxes.grad is not None
    assert predictions.boxes.grad.abs().max() == 0


def test_right_answers_have_no_error() -> None:
    targets = [
        Targets(boxes=torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.3, 0.4]]), labels=torch.tensor([2, 0])),
        Targets(boxes=torch.tensor([[0.5, 0.5, 0.4, 0.2]]), labels=torch.tensor([3])),
    ]
    logits, boxes = torch.zeros(1, 2, 4, CLASSES + 1), torch.full((1, 2, 4, 4), 0.1)
    logits[..., CLASSES] = 20
    for image, query, entry, n in [(0, 3, targets[0], 0), (0, 1, targets[0], 1), (1, 2, targets[1], 0)]:
        logits[0, image, query, entry.labels[n]] = 40
        boxes[0, image, query] = entry.boxes[n]
    losses = detrs()(Predictions(logits=logits, boxes=boxes, states=boxes), targets)
    assert losses.total.item() == pytest.approx(0, abs=1e-5)
    metrics = {name: value.item() for name, value in losses.metrics.items()}
    assert metrics == pytest.approx({"class_error": 0, "matched_iou": 1, "cardinality_error": 0}, abs=1e-5)


def test_what_is_watched_is_the_last_layer() -> None:
    predictions, targets = problem((3, 5))
    metrics = detrs()(predictions, targets).metrics
    matches, everything = Matcher()(predictions, targets), concatenate(targets)
    last = matches.layer == LAYERS - 1
    image, query, target = matches.image[last], matches.query[last], matches.target[last]
    said = predictions.logits[-1, image, query].argmax(-1)
    wrong = (said != everything.labels[target]).float().mean()
    overlap = elementwise_iou(
        cxcywh_to_xyxy(predictions.boxes[-1, image, query]), cxcywh_to_xyxy(everything.boxes[target])
    )
    objects = (predictions.logits[-1].argmax(-1) < CLASSES).sum(1)
    torch.testing.assert_close(metrics["class_error"], wrong)
    torch.testing.assert_close(metrics["matched_iou"], overlap.mean().detach())
    assert metrics["cardinality_error"].item() == ((objects[0] - 3).abs() + (objects[1] - 5).abs()).item() / 2
    assert not any(value.requires_grad for value in metrics.values())


def in_one_of(monkeypatch: pytest.MonkeyPatch, everywhere: list[list[float]]) -> None:
    """Let this process be one of several ranks, which exchange what is given."""
    monkeypatch.setattr("ssldet.ranks.connected", lambda: True)
    monkeypatch.setattr("ssldet.ranks.world", lambda: len(everywhere))
    monkeypatch.setattr(
        "ssldet.ranks.totals", lambda mine, device: [sum(each) for each in zip(*everywhere, strict=True)]
    )


def exchanged(monkeypatch: pytest.MonkeyPatch, criterion: Criterion, parts: list[Part]) -> list[list[float]]:
    """Return what each rank would tell the others."""
    told: list[list[float]] = []

    def note(mine: list[float], device: torch.device) -> list[float]:
        told.append(list(mine))
        return list(mine)

    with monkeypatch.context() as patch:
        in_one_of(patch, [[], []])
        patch.setattr("ssldet.ranks.totals", note)
        for predictions, targets in parts:
            criterion(predictions, targets)
    return told


def of_image(predictions: Predictions, targets: list[Targets], image: int) -> Part:
    return predictions.of_images([image]), [targets[image]]


@pytest.mark.parametrize("counts", [(3, 0), (0, 0), (1, 0), (5, 2), (15, 3)])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_the_mean_of_the_losses_of_two_ranks_is_that_of_one(
    monkeypatch: pytest.MonkeyPatch, counts: tuple[int, int], sigmoid: bool
) -> None:
    # More targets than queries, none at all, and numbers that differ between the ranks, in a weighted mean of queries.
    predictions, targets = problem(counts)
    if sigmoid:
        predictions = replace(predictions, logits=predictions.logits[..., :-1], scores=SigmoidScores())
    whole = detrs()(predictions, targets)
    parts = [of_image(predictions, targets, image) for image in (0, 1)]
    in_one_of(monkeypatch, exchanged(monkeypatch, detrs(), parts))
    shared = [detrs()(*part) for part in parts]
    for name, value in whole.terms.items():
        torch.testing.assert_close((shared[0].terms[name] + shared[1].terms[name]) / 2, value, msg=name)


def test_proposals_are_shared_out_by_their_own_number_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    predictions, targets = problem((4, 1))
    proposals = Predictions(
        logits=torch.randn(1, BATCH, 7, 2), boxes=torch.rand(1, BATCH, 7, 4), states=torch.randn(1, BATCH, 7, 2)
    )
    predictions = replace(predictions, proposals=proposals)
    criterion = Criterion(Matcher(), [ClassTerm(), BoxL1Term()], proposals=Criterion(Matcher(), [ClassTerm()]))
    whole = criterion(predictions, targets)
    parts = [of_image(predictions, targets, image) for image in (0, 1)]
    in_one_of(monkeypatch, exchanged(monkeypatch, criterion, parts))
    shared = [criterion(*part) for part in parts]
    for name, value in whole.terms.items():
        torch.testing.assert_close((shared[0].terms[name] + shared[1].terms[name]) / 2, value, msg=name)


def test_images_that_stand_in_for_none_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[float]] = []
    in_one_of(monkeypatch, [[], []])
    monkeypatch.setattr("ssldet.ranks.totals", lambda mine, device: told.append(mine) or mine)
    predictions, targets = problem((0, 0))
    losses = detrs()(predictions, targets, counted=False)
    assert told == [[0, 0, 0, 0]]
    assert losses.total.isfinite()


def test_boxes_are_counted_before_a_rank_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[float] = []

    def totals(numbers: list[float], device: torch.device) -> list[float]:
        counted.extend(numbers)
        return numbers

    in_one_of(monkeypatch, [[], []])
    monkeypatch.setattr("ssldet.ranks.totals", totals)
    predictions, targets = problem((3, 5))
    with pytest.raises(DivergedError, match="matching cost"):
        detrs()(replace(predictions, boxes=predictions.boxes * torch.nan), targets)
    assert counted[0] == 8


def test_losses_are_the_same_under_autocast() -> None:
    predictions, targets = problem((3, 5))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = detrs()(predictions, targets)
    torch.testing.assert_close(mixed.total, detrs()(predictions, targets).total)


@pytest.mark.parametrize("channels", [2, 0])
def test_the_proposals_of_a_group_are_compared_with_its_own_targets(channels: int) -> None:
    predictions, targets = problem((3, 2))
    targets = [replace(entry, groups=torch.arange(len(entry))) for entry in targets]
    cells, groups = 5, 3
    proposals = Predictions(
        logits=torch.randn(1, BATCH, groups * cells, 1),
        boxes=torch.rand(1, BATCH, groups * cells, 4) * 0.5 + 0.2,
        states=torch.randn(1, BATCH, groups * cells, channels),
        groups=torch.arange(groups).repeat_interleave(cells),
        scores=SigmoidScores(),
    )
    terms = [ClassTerm(), BoxL1Term(), BoxGIoUTerm()]
    criterion = Criterion(Matcher(), terms, proposals=Criterion(Matcher(), terms))
    losses = criterion(replace(predictions, proposals=proposals), targets)
    # By hand: the proposals of one group of one image at a time, each divided by all boxes.
    for name, value in losses.terms.items():
        if name.startswith("proposal_"):
            by_hand = torch.zeros(1)
            for image, entry in enumerate(targets):
                for group in range(groups):
                    own = [
                        part[:, image, group * cells : (group + 1) * cells].unsqueeze(1)
                        for part in (proposals.logits, proposals.boxes, proposals.states)
                    ]
                    one = Predictions(logits=own[0], boxes=own[1], states=own[2], scores=SigmoidScores())
                    boxes = entry.boxes[group : group + 1]
                    alone = [Targets(boxes=boxes, labels=torch.zeros(len(boxes), dtype=torch.int64))]
                    by_hand += Criterion(Matcher(), terms)(one, alone).terms[name.removeprefix("proposal_")]
            torch.testing.assert_close(value, by_hand / 5, msg=name)


def test_targets_of_no_group_may_be_answered_by_all() -> None:
    predictions, targets = problem((3, 2))
    proposals = Predictions(
        logits=torch.randn(1, BATCH, 5, 2), boxes=torch.rand(1, BATCH, 5, 4), states=torch.randn(1, BATCH, 5, 2)
    )
    criterion = Criterion(Matcher(), [BoxL1Term()], proposals=Criterion(Matcher(), [BoxL1Term()]))
    ungrouped = criterion(replace(predictions, proposals=proposals), targets)
    one_group = replace(proposals, groups=torch.zeros(5, dtype=torch.int64))
    losses = criterion(replace(predictions, proposals=one_group), targets)
    torch.testing.assert_close(losses.terms["proposal_box_l1"], ungrouped.terms["proposal_box_l1"])
