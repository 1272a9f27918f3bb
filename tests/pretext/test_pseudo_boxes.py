"""The mathematics of pseudo boxes: clusters, rounds, and what a teacher's boxes become."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from pretext.pseudo_boxes import ClusterDetection, Clusters, PseudoBoxes
from pretext.recipes.pseudo_boxes import tiny
from ssldet.chance import generator
from ssldet.data.collate import collate
from ssldet.recipe import check
from ssldet.task import learning_sections
from ssldet.testing.tasks import _photo
from ssldet.types import Batch, Predictions

TASK = tiny().task
assert isinstance(TASK, PseudoBoxes)


def objective_of(task: PseudoBoxes) -> ClusterDetection:
    torch.manual_seed(0)
    detector = replace(tiny().detector, num_classes=task.clusters).build()  # type: ignore[call-arg]
    detector.train_only(learning_sections(task, detector))
    return task.objective(detector).train()


def batch_of(task: PseudoBoxes) -> Batch:
    views = task.views()
    return collate([views(_photo(number), generator(number)) for number in range(3)])


def test_clusters_find_the_groups_of_vectors_that_differ() -> None:
    middles = F.normalize(torch.randn(4, 12, generator=generator(1)), dim=1)
    belongs = torch.randint(0, 4, (200,), generator=generator(2))
    vectors = 3 * (middles[belongs] + 0.05 * torch.randn(200, 12, generator=generator(3)))
    clusters = Clusters(4, 12)
    for part in vectors.split(50):
        clusters.form(part)
    found = clusters(vectors)
    for group in range(4):
        assert len(found[belongs == group].unique()) == 1
    assert len(found.unique()) == 4
    torch.testing.assert_close(clusters.centres.norm(dim=1), torch.ones(4))
    alike = clusters.centres @ middles.T
    assert alike.max(1).values.min() > 0.99
    assert float(clusters.counts.sum()) == 200 + 4
    assert 3.5 < float(clusters.in_use()) <= 4


def test_clusters_without_a_vector_are_never_chosen_and_get_their_first_later() -> None:
    clusters = Clusters(5, 3)
    clusters.form(torch.zeros(0, 3))
    clusters.form(torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]))
    assert clusters(torch.randn(50, 3, generator=generator(0))).max() < 2
    clusters.form(torch.tensor([[0, 0, 1.0], [-1.0, 0, 0], [0, -1.0, 0]]))
    assert (clusters.counts > 0).all()


def test_the_first_round_takes_clusters_as_classes() -> None:
    objective, batch = objective_of(TASK), batch_of(TASK)
    objective.begin(0, 100)
    seen = []
    objective.criterion.matcher = _Spy(objective.criterion.matcher, seen)  # type: ignore[assignment]
    losses = objective(batch)
    vectors = objective.describe(batch)
    assert torch.equal(torch.cat([targets.labels for targets in seen[0]]), objective.clusters(vectors))
    assert torch.equal(torch.cat([targets.boxes for targets in seen[0]]), torch.cat([t.boxes for t in batch.targets]))
    assert float(losses.metrics["taught_share"]) == 0
    before = objective.clusters.centres.clone()
    objective.begin(10, 100)
    objective(batch)
    assert torch.equal(objective.clusters.centres, before), "clusters moved after the share of the run that forms them"


class _Spy:
    def __init__(self, matcher: object, seen: list) -> None:  # type: ignore[type-arg]
        self._matcher, self._seen = matcher, seen

    def __call__(self, predictions: Predictions, targets: list) -> object:  # type: ignore[type-arg]
        self._seen.append(targets)
        return self._matcher(predictions, targets)  # type: ignore[operator]


def test_a_round_begins_with_the_detector_as_its_own_teacher() -> None:
    task = replace(TASK, rounds=3)
    objective = objective_of(task)
    assert objective.teacher is not None
    first = objective.teacher.state_dict()["class_head.bias"].clone()
    with torch.no_grad():
        objective.detector.get_parameter("class_head.bias").add_(1.0)
    for step in (0, 1, 3):
        objective.begin(step, 10)
        assert torch.equal(objective.teacher.state_dict()["class_head.bias"], first)
    objective.begin(4, 10)
    torch.testing.assert_close(objective.teacher.state_dict()["class_head.bias"], first + 1)
    with torch.no_grad():
        objective.detector.get_parameter("class_head.bias").add_(1.0)
    objective.begin(5, 10)
    torch.testing.assert_close(objective.teacher.state_dict()["class_head.bias"], first + 1)
    objective.begin(7, 10)
    torch.testing.assert_close(objective.teacher.state_dict()["class_head.bias"], first + 2)
    assert not objective.teacher.training
    assert not any(parameter.requires_grad for parameter in objective.teacher.parameters())


def test_confident_boxes_replace_regions_and_doubles_count_once() -> None:
    objective, batch = objective_of(TASK), batch_of(TASK)
    queries, classes = 20, TASK.clusters
    logits = torch.full((2, 3, queries, classes + 1), -9.0)
    logits[..., -1] = 9.0
    boxes = torch.rand(2, 3, queries, 4, generator=generator(4)) * 0.2 + 0.3
    # Two answers to one object, another object that crosses the border, and an unsure answer, all in the second image.
    for query, (box, label, score) in enumerate(
        [([0.3, 0.3, 0.2, 0.2], 5, 12.0), ([0.31, 0.3, 0.2, 0.2], 5, 11.0), ([0.95, 0.5, 0.2, 0.4], 2, 12.0)]
    ):
        boxes[-1, 1, query] = torch.tensor(box)
        logits[-1, 1, query, label] = score
    logits[-1, 1, 3, 7] = 8.0
    given = Predictions(logits=logits, boxes=boxes, states=torch.zeros(2, 3, queries, 4))
    objective.ask = lambda batch, detector: given  # type: ignore[method-assign,assignment]
    assert objective.teacher is not None
    found = objective._taught(batch, objective.teacher)
    assert [len(targets) for targets in found] == [0, 2, 0]
    assert sorted(found[1].labels.tolist()) == [2, 5]
    clipped = found[1].boxes[found[1].labels == 2][0]
    torch.testing.assert_close(clipped, torch.tensor([0.925, 0.5, 0.15, 0.4]))


def test_a_detector_with_other_classes_is_refused() -> None:
    problems = TASK.problems_with(replace(tiny().detector, num_classes=3))  # type: ignore[call-arg]
    assert problems == [
        "clusters: 16 clusters are the classes of the detector, which has 3; set detector.num_classes=16"
    ]
    check(TASK)


@pytest.mark.parametrize("rounds", [1, 2])
def test_the_teacher_travels_with_a_checkpoint(rounds: int) -> None:
    task = replace(TASK, rounds=rounds)
    names = objective_of(task).state_dict()
    assert any(name.startswith("teacher.") for name in names) == (rounds > 1)
    assert {"clusters.centres", "clusters.counts"} <= set(names)
