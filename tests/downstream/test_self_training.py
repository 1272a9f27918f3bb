"""Self-training: who sees what, who teaches whom and from when on, that it resumes, and what it refuses."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ssldet
from downstream.annotations.coco import open_coco
from downstream.annotations.shapes import write_shapes
from downstream.detection import Detection
from downstream.pseudo_labels import Found, PseudoLabels, no_targets
from downstream.self_training import Lesson, SelfTeaching, SelfTraining
from ssldet.data.collate import collate
from ssldet.data.images import ImageRules
from ssldet.data.mixing import MixedSource
from ssldet.data.photometric import Jitter
from ssldet.data.strong import Erasing
from ssldet.detectors.base import DetectorConfig
from ssldet.engine.progress import Progress
from ssldet.engine.run import OptimConfig
from ssldet.errors import ConfigError
from ssldet.recipe import check, dumps, load, override
from ssldet.registry import find, names
from ssldet.types import Batch, Predictions, Sample
from tests.models import SMALL_DEFORMABLE_DETR, TINY_DETR

TASK = SelfTraining(scales=(48,), max_size=64, eval_scale=48, crop=0.0, threshold=0.005, least_threshold=0.001)
TWO_STAGE = replace(SMALL_DEFORMABLE_DETR, num_classes=4, refine_boxes=True, two_stage=True)
DETECTORS = {"detr": TINY_DETR, "deformable": TWO_STAGE}
EMA = OptimConfig(ema=0.9, ema_ramp=10.0)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> MixedSource:
    few, many = (
        open_coco(str(write_shapes(tmp_path_factory.mktemp(name), images=count, size=40)), ImageRules(min_side=8))
        for name, count in (("few", 2), ("many", 4))
    )
    return MixedSource(few, many, 2)


def batch_of(source: MixedSource, places: Sequence[int], task: SelfTraining = TASK) -> Batch:
    views = task.views()
    return collate([views(source[place], torch.Generator().manual_seed(place)) for place in places])


def taught(config: DetectorConfig, task: SelfTraining = TASK) -> tuple[SelfTeaching, Progress]:
    torch.manual_seed(0)
    objective = task.objective(config.build())
    return objective, Progress(objective, EMA, 10)


LABELLED, OTHERS = (0, 1), (2, 3, 4)


def test_both_views_have_one_geometry_and_the_student_sees_changed_pixels(mixed: MixedSource) -> None:
    task = replace(TASK, strong_labelled=0.0, jitter=Jitter(probability=1.0), erasing=Erasing(most=2))
    views = task.views()
    for place in (*LABELLED, *OTHERS):
        seen = views(mixed[place], torch.Generator().manual_seed(5))
        lesson = seen.problem
        assert isinstance(lesson, Lesson)
        assert isinstance(lesson.student, Sample)
        assert lesson.labelled == (place in LABELLED)
        assert lesson.student.image.shape == seen.image.shape
        assert torch.equal(lesson.student.targets.boxes, seen.targets.boxes)
        assert torch.equal(lesson.student.image, seen.image) == (place in LABELLED)
    alone = views(replace(mixed[0], problem=None), torch.Generator()).problem
    assert isinstance(alone, Lesson)
    assert alone.labelled


@pytest.mark.parametrize("name", DETECTORS)
def test_the_average_teaches_after_the_burn_in(name: str, mixed: MixedSource) -> None:
    task = replace(TASK, burn_in=0.5, pseudo_weight=3.0)
    objective, progress = taught(DETECTORS[name], task)
    batch = batch_of(mixed, (*LABELLED, *OTHERS))
    objective.begin(4, 10)
    alone = objective(batch)
    assert alone.weights["pseudo_class"] == 0
    assert not any(bool(term.any()) for key, term in alone.terms.items() if key.startswith("pseudo_"))
    objective.begin(5, 10)
    both = objective(batch)
    assert both.weights["pseudo_class"] == 3 * both.weights["class"]
    assert bool((both.terms["pseudo_class"] > 0).all())
    assert both.metrics["pseudo_boxes"] > 0
    # The teacher is the averaged copy: another student with the same average gets the same pseudo labels.
    objective.eval()
    before = pseudo_boxes(objective, batch)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.mul_(1.5)
    assert all(map(same, before, pseudo_boxes(objective, batch)))
    assert progress.average is not None
    progress.average.update_parameters(objective)
    assert not all(map(same, before, pseudo_boxes(objective, batch)))


def pseudo_boxes(objective: SelfTeaching, batch: Batch) -> list[torch.Tensor]:
    return [one.sure.boxes for one in objective._teach(batch, list(OTHERS))[0]]


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("places", [LABELLED, OTHERS, (0, 2, 3, 4)], ids=["labelled", "unlabelled", "both"])
def test_any_batch_gives_the_same_terms_and_a_gradient(name: str, places: Sequence[int], mixed: MixedSource) -> None:
    objective, _ = taught(DETECTORS[name])
    losses = objective(batch_of(mixed, places))
    own = {key for key in losses.terms if not key.startswith("pseudo_")}
    assert {"class", "box_l1", "box_giou"} <= own
    assert {key.removeprefix("pseudo_") for key in losses.terms} == own
    assert len(losses.terms) == 2 * len(own)
    assert bool(losses.total.isfinite())
    losses.total.backward()
    assert all(value.grad is not None for value in objective.detector.class_head.parameters())


def test_nothing_is_learned_from_images_in_which_the_teacher_is_sure_of_nothing(mixed: MixedSource) -> None:
    objective, _ = taught(TINY_DETR, replace(TASK, threshold=1.0, least_threshold=1.0))
    losses = objective(batch_of(mixed, OTHERS))
    assert losses.metrics["pseudo_boxes"] == 0
    assert bool(losses.total.isfinite())
    assert not any(bool(term.any()) for name, term in losses.terms.items() if name.startswith("pseudo_"))


def test_unlabelled_images_weigh_as_many_as_the_teacher_is_sure_of(
    mixed: MixedSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, _ = taught(TINY_DETR)
    batch, each = batch_of(mixed, OTHERS), PseudoLabels.forward

    def terms_if_sure_of_one() -> dict[str, torch.Tensor]:
        def first(self: PseudoLabels, predictions: Predictions) -> list[Found]:
            nothing = no_targets(predictions.boxes.device)
            found = each(self, predictions)
            return [one if place == 0 else replace(one, sure=nothing) for place, one in enumerate(found)]

        monkeypatch.setattr(PseudoLabels, "forward", first)
        return {name: term.detach() for name, term in objective(batch).terms.items() if name.startswith("pseudo_")}

    monkeypatch.setattr(SelfTeaching, "_share_taught", lambda self, taught, others: torch.tensor(1.0))
    unweighted = terms_if_sure_of_one()
    monkeypatch.undo()
    weighted = terms_if_sure_of_one()
    for name, term in unweighted.items():
        torch.testing.assert_close(weighted[name], term / len(OTHERS))


def test_the_average_is_saved_once_and_is_what_is_handed_over(mixed: MixedSource) -> None:
    objective, progress = taught(TINY_DETR)
    plain = Detection().objective(TINY_DETR.build())
    assert set(objective.state_dict()) == {*plain.state_dict(), "pseudo_labels.confidence"}
    assert progress.model is not objective
    objective(batch_of(mixed, OTHERS))
    progress.take_step(torch.zeros(()))
    assert torch.equal(progress.model.state_dict()["pseudo_labels.confidence"], objective.pseudo_labels.confidence)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    few, many = (
        write_shapes(tmp_path_factory.mktemp(name), images=count, size=40) for name, count in (("a", 5), ("b", 9))
    )
    return f"coco:{few}", str(many.parent / "images")


SMALL = {"task.threshold": 0.005, "task.least_threshold": 0.001, "data.batch_size": 4, "optim.schedule": "constant"} | {
    "task.scales": (32,),
    "task.max_size": 48,
    "task.eval_scale": 32,
}


@pytest.mark.parametrize("recipe", ["self_training/tiny", "self_training/deformable-tiny"])
def test_a_resumed_run_is_the_run_that_nobody_interrupted(recipe: str, data: tuple[str, str], tmp_path: Path) -> None:
    choices = {**SMALL, "task.burn_in": 0.0}
    ends = {}
    for name, steps in (("whole", 3), ("halves", 2)):
        out = tmp_path / name
        ssldet.finetune("scratch", data[0], unlabelled=data[1], recipe=recipe, steps=steps, out=out, overrides=choices)
        if name == "halves":
            ssldet.finetune(resume=out, steps=3)
        lines = [line for line in ssldet.Trained(out).metrics if line["step"] == 3]
        timed = {"seconds", "images_per_second", "data_wait"}
        ends[name] = (
            load_file(out / "weights" / "model.safetensors"),
            [{key: value for key, value in line.items() if key not in timed} for line in lines],
        )
    whole, halves = ends["whole"], ends["halves"]
    assert all(torch.equal(whole[0][name], halves[0][name]) for name in whole[0])
    assert whole[1] == halves[1]
    assert whole[1][0]["metric/pseudo_boxes"] >= 0


def test_what_it_needs_is_asked_for(data: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="add --unlabelled IMAGES"):
        ssldet.finetune("scratch", data[0], recipe="self_training/tiny", out=tmp_path / "run")
    refused = [
        ("detection/tiny", {}, "Detection does not learn from unlabelled images"),
        ("self_training/tiny", {"optim.ema": 0}, "SelfTraining learns from averaged weights"),
        ("self_training/tiny", {"data.batch_size": 5}, "choose a multiple of 2"),
        ("self_training/tiny", {"task.threshold": 0.1}, "is above threshold"),
    ]
    for recipe, changes, words in refused:
        with pytest.raises(ConfigError, match=words):
            ssldet.finetune(
                "scratch", data[0], unlabelled=data[1], recipe=recipe, out=tmp_path / "run", overrides=changes
            )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", [name for name in names("ssldet.recipes") if name.startswith("self_training/")])
def test_recipes_are_sound_and_survive_as_text(name: str, tmp_path: Path) -> None:
    run = find("ssldet.recipes", name)()
    check(run)
    (tmp_path / "run.toml").write_text(dumps(run))
    assert load(type(run), tmp_path / "run.toml") == run
    mixed = override(run, {"data.unlabelled": ("images",)})
    check(mixed)
