import time
from itertools import permutations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssldet.boxes import cxcywh_to_xyxy, pairwise_giou
from ssldet.errors import ConfigError, DataError, DivergedError
from ssldet.matching import BoxGIoUCost, BoxL1Cost, ClassCost, Matcher, PaddedTargets
from ssldet.types import Matches, Predictions, Targets

CLASSES = 4


def some_boxes(*shape: int) -> Tensor:
    return torch.rand(*shape, 4) * 0.5 + 0.2


def predict(layers: int = 3, batch: int = 2, queries: int = 12, groups: int | None = None) -> Predictions:
    return Predictions(
        logits=torch.randn(layers, batch, queries, CLASSES + 1),
        boxes=some_boxes(layers, batch, queries),
        states=torch.zeros(layers, batch, queries, 2),
        groups=None if groups is None else torch.arange(groups).repeat_interleave(queries // groups),
    )


def wanted(count: int, groups: list[int] | None = None) -> Targets:
    return Targets(
        boxes=some_boxes(count),
        labels=torch.randint(CLASSES, (count,)),
        groups=None if groups is None else torch.tensor(groups, dtype=torch.long),
    )


def by_hand(predictions: Predictions, targets: Targets, layer: int, image: int) -> Tensor:
    """DETR's cost of one image, by the formula of its section 3.1."""
    probability = predictions.logits[layer, image].softmax(-1)[:, targets.labels]
    boxes = predictions.boxes[layer, image]
    distance = (boxes[:, None] - targets.boxes[None]).abs().sum(-1)
    overlap = pairwise_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets.boxes))
    return -probability + 5 * distance - 2 * overlap


def chosen(matches: Matches, targets: list[Targets]) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Return (layer, image) -> pairs of query and target within the image."""
    first = torch.tensor([0, *[len(entry) for entry in targets]]).cumsum(0)
    pairs: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for layer, image, query, target in zip(
        *(getattr(matches, name).tolist() for name in ("layer", "image", "query", "target")), strict=True
    ):
        pairs.setdefault((layer, image), []).append((query, target - int(first[image])))
    return pairs


def best(cost: Tensor, allowed: Tensor) -> float:
    """Return the cheapest total over all ways of matching as many targets as possible, by trying them all."""
    queries, targets = cost.shape
    found: dict[int, float] = {}
    slots = [*range(queries), *[-1] * targets]
    for answer in set(permutations(slots, targets)):
        used = [(query, target) for target, query in enumerate(answer) if query >= 0]
        if all(allowed[pair] for pair in used):
            total = sum(cost[pair].item() for pair in used)
            found[len(used)] = min(found.get(len(used), total), total)
    return found[max(found)]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.lists(st.integers(0, 4), min_size=1, max_size=3), st.integers(0, 10_000))
def test_no_other_assignment_is_cheaper(queries: int, counts: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    predictions, targets = predict(2, len(counts), queries), [wanted(count) for count in counts]
    pairs = chosen(Matcher()(predictions, targets), targets)
    for layer in range(2):
        for image, count in enumerate(counts):
            mine = pairs.get((layer, image), [])
            assert len(mine) == min(queries, count)
            assert len({query for query, _ in mine}) == len({target for _, target in mine}) == len(mine)
            cost = by_hand(predictions, targets[image], layer, image)
            total = sum(cost[pair].item() for pair in mine)
            assert total == pytest.approx(best(cost, torch.ones_like(cost, dtype=torch.bool)), abs=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), max_size=4), min_size=1, max_size=3), st.integers(0, 10_000))
def test_within_own_groups_no_other_assignment_is_cheaper(groups: list[list[int]], seed: int) -> None:
    torch.manual_seed(seed)
    predictions = predict(2, len(groups), 6, groups=3)
    predictions = Predictions(
        logits=predictions.logits,
        boxes=predictions.boxes,
        states=predictions.states,
        groups=torch.tensor([2, 0, 1, 1, 0, 2]),
    )
    targets = [wanted(len(each), each) for each in groups]
    pairs = chosen(Matcher(scope="own_group")(predictions, targets), targets)
    assert predictions.groups is not None
    for layer in range(2):
        for image, each in enumerate(groups):
            mine = pairs.get((layer, image), [])
            allowed = predictions.groups[:, None] == torch.tensor(each, dtype=torch.long)[None]
            assert all(allowed[pair] for pair in mine)
            assert len(mine) == sum(min(2, each.count(group)) for group in range(3))
            cost = by_hand(predictions, targets[image], layer, image)
            total = sum(cost[pair].item() for pair in mine)
            assert total == pytest.approx(best(cost, allowed), abs=1e-4)


def test_one_target_a_group_is_matched_as_the_general_solution_would() -> None:
    predictions = predict(3, 2, 12, groups=3)
    targets = [wanted(3, [2, 0, 1]), wanted(2, [1, 2])]
    matches = Matcher(scope="own_group")(predictions, targets)
    for (layer, image), pairs in chosen(matches, targets).items():
        cost = by_hand(predictions, targets[image], layer, image)
        for query, target in pairs:
            group = int(targets[image].groups[target])  # type: ignore[index]
            assert query == 4 * group + int(cost[4 * group : 4 * group + 4, target].argmin())
    assert len(matches.layer) == 3 * 5


@pytest.mark.parametrize("scope", ["global", "own_group"])
def test_images_without_targets_have_no_match(scope: Any) -> None:
    predictions = predict(groups=3)
    matches = Matcher(scope=scope)(predictions, [wanted(0, []), wanted(2, [0, 2])])
    assert matches.image.tolist() == [1] * 6
    assert sorted(set(matches.target.tolist())) == [0, 1]
    nothing = Matcher(scope=scope)(predictions, [wanted(0, []), wanted(0, [])])
    assert nothing.query.shape == (0,)
    assert nothing.query.dtype == torch.int64


def test_targets_are_counted_through_the_batch() -> None:
    predictions = predict(1, 3, 12)
    matches = Matcher()(predictions, [wanted(2), wanted(0), wanted(3)])
    assert sorted(matches.target.tolist()) == [0, 1, 2, 3, 4]
    assert [image for _, image in sorted(zip(matches.target, matches.image, strict=True))] == [0, 0, 2, 2, 2]


def test_more_targets_than_queries_match_as_many_as_there_are_queries() -> None:
    predictions = predict(2, 1, 3)
    matches = Matcher()(predictions, [wanted(7)])
    assert matches.layer.tolist() == [0, 0, 0, 1, 1, 1]
    assert sorted(matches.query[:3].tolist()) == [0, 1, 2]


def test_costs_are_an_open_list() -> None:
    class FarthestFirst:
        weight = 1.0

        def __call__(self, predictions: Predictions, targets: PaddedTargets) -> Tensor:
            return -BoxL1Cost()(predictions, targets)

    predictions, targets = predict(1, 1, 12), [wanted(1)]
    match = Matcher([FarthestFirst()])(predictions, targets)
    distance = (predictions.boxes[0, 0] - targets[0].boxes).abs().sum(-1)
    assert match.query.tolist() == [distance.argmax().item()]


def test_weights_scale_their_cost() -> None:
    predictions, targets = predict(1, 2, 12), [wanted(3), wanted(2)]
    by_class = Matcher([ClassCost(weight=1000.0), BoxL1Cost(), BoxGIoUCost()])(predictions, targets)
    assert torch.equal(by_class.query, Matcher([ClassCost()])(predictions, targets).query)


def test_costs_are_in_32_bits_under_autocast() -> None:
    predictions, targets = predict(), [wanted(4), wanted(5)]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = Matcher()(predictions, targets)
    assert torch.equal(mixed.query, Matcher()(predictions, targets).query)


def test_a_cost_that_is_not_finite_names_its_layer_and_image() -> None:
    predictions = predict()
    predictions.boxes[2, 1, 5, 0] = torch.nan
    with pytest.raises(DivergedError, match="decoder layer 2, image 1 of the batch"):
        Matcher()(predictions, [wanted(3), wanted(2)])
    predictions = predict()
    predictions.logits[0, 1, 5, 0] = torch.inf
    with pytest.raises(DivergedError, match="decoder layer 0, image 1 of the batch"):
        Matcher()(predictions, [wanted(3), wanted(0)])


@pytest.mark.parametrize("label", [CLASSES, -1])
def test_a_label_that_the_detector_does_not_know_is_a_matter_of_data(label: int) -> None:
    """A label equal to the number of classes would silently mean "no object"."""
    strange = Targets(boxes=some_boxes(2), labels=torch.tensor([0, label]))
    with pytest.raises(DataError, match=rf"image 1 of the batch has label {label}, .* classes 0 to 3"):
        Matcher()(predict(), [wanted(3), strange])
    broken = Targets(boxes=torch.full((1, 4), torch.nan), labels=torch.tensor([0]))
    with pytest.raises(DataError, match="image 0 of the batch has a target box that is not finite"):
        Matcher()(predict(), [broken, wanted(3)])


def test_own_groups_need_groups() -> None:
    with pytest.raises(ConfigError, match="the queries have none; use scope='global'"):
        Matcher(scope="own_group")(predict(), [wanted(1, [0]), wanted(1, [0])])
    with pytest.raises(ConfigError, match="the targets have none"):
        Matcher(scope="own_group")(predict(groups=3), [wanted(1, [0]), wanted(1)])


@pytest.mark.timing
def test_many_small_images_are_matched_at_once() -> None:
    """Work in Python a pair would show here: 64 images take about as long as a few calls of the solver."""
    predictions = predict(2, 64, 20, groups=5)
    targets = [wanted(5, [0, 1, 2, 3, 4]) for _ in range(64)]
    matcher = Matcher(scope="own_group")
    matcher(predictions, targets)
    started = time.process_time()
    for _ in range(5):
        matcher(predictions, targets)
    assert (time.process_time() - started) / 5 < 0.05
