"""A detector that does not learn is said, with figures; one that learns is not."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ssldet.engine.symptoms import BoxVariance, blindness, recipe_that_knows_photographs, symptoms
from ssldet.recipe import override
from ssldet.report.page import write_report
from ssldet.types import Batch, Detections, Targets
from ssldet.verbs.choosing import resolve

IMAGES, QUERIES, SIDES = 6, 5, (40, 80)


def batch_of(images: int) -> Batch:
    nothing = Targets(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    return Batch(
        images=torch.zeros(images, 3, 1, 1, dtype=torch.uint8),
        padding=torch.zeros(images, 1, 1, dtype=torch.bool),
        sizes=torch.ones(images, 2, dtype=torch.int64),
        original_sizes=torch.tensor([SIDES] * images),
        targets=[nothing] * images,
        keys=[f"image-{number}" for number in range(images)],
    )


def variance_of(between: float, within: float, images: int = IMAGES) -> BoxVariance:
    """Boxes whose deviation from image to image, and among the queries, is given in sides of the image."""
    generator = torch.Generator().manual_seed(0)
    queries = 0.5 + within * torch.randn(1, QUERIES, 4, generator=generator)
    boxes = queries + between * torch.randn(images, QUERIES, 4, generator=generator)
    height, width = SIDES
    scale, label = torch.tensor([width, height, width, height]), torch.zeros(QUERIES, dtype=torch.int64)
    variance = BoxVariance()
    found = [Detections(boxes=one * scale, scores=torch.rand(QUERIES), labels=label) for one in boxes]
    variance.update(found, batch_of(images))
    return variance


def lines(first: float, last: float, steps: int = 20) -> list[dict[str, Any]]:
    rate = (last / first) ** (1 / (steps - 1))
    return [{"kind": "train", "step": step + 1, "loss": first * rate**step} for step in range(steps)]


@pytest.fixture
def run(fakes: ModuleType) -> Any:
    return fakes.a_run()


@pytest.mark.parametrize(("between", "within"), [(0.005, 0.2), (0.004, 0.0), (0.0, 0.0)])
def test_boxes_that_do_not_follow_the_image_are_said_with_their_share(run: Any, between: float, within: float) -> None:
    clause = blindness(run.task, {"score": 0.02}, variance_of(between, within))
    assert "hardly depend on the image" in clause
    assert "score is 0.020" in clause


@pytest.mark.parametrize(
    ("score", "between", "images"),
    [(0.02, 0.1, IMAGES), (0.4, 0.005, IMAGES), (0.02, 0.005, 3)],
    ids=["follows the image", "finds objects", "too few images"],
)
def test_nothing_is_said_of_a_detector_that_sees(run: Any, score: float, between: float, images: int) -> None:
    assert not blindness(run.task, {"score": score}, variance_of(between, 0.2, images))


def test_the_share_is_that_of_the_variance(run: Any) -> None:
    between, whole = variance_of(0.1, 0.2, images=400).between_images() or (0, 0)
    assert between == pytest.approx(0.01, rel=0.1)
    assert between < whole < 0.12


def test_a_score_of_zero_is_said_when_half_of_the_budget_is_spent(run: Any) -> None:
    sees = variance_of(0.1, 0.2)
    assert not symptoms(run, 41, lines(9, 4), {"score": 0.0}, sees)
    (sentence,) = symptoms(run, 40, lines(9, 4), {"score": 0.0}, sees)
    assert "score is 0.000 after 50% of the budget, step 20 of 40" in sentence
    assert "--steps 80" in sentence


@pytest.mark.parametrize("name", ["score_constant", "score_chance"])
def test_a_score_is_judged_by_what_is_reached_without_looking(run: Any, name: str) -> None:
    sees, alike, falls = variance_of(0.1, 0.2), variance_of(0.0, 0.2), lines(9, 4)
    (sentence,) = symptoms(run, 20, falls, {"score": 0.47, name: 0.471}, sees)
    assert "score is 0.470, where" in sentence
    assert "would reach 0.471, after 100% of the budget" in sentence
    assert not symptoms(run, 41, falls, {"score": 0.47, name: 0.471}, sees), "said too early"
    assert not symptoms(run, 20, falls, {"score": 0.48, name: 0.471}, sees)
    # A score that is high without looking is no sign of sight, and one that is low may be.
    assert "hardly depend on the image" in blindness(run.task, {"score": 0.48, name: 0.471}, alike)
    assert not blindness(run.task, {"score": 0.25, name: 0.1}, alike)


def test_a_loss_that_has_not_fallen_is_said_with_both_figures(run: Any) -> None:
    (sentence,) = symptoms(run, 20, lines(9, 8.5), {}, BoxVariance())
    assert "8.99 in the first tenth" in sentence
    assert "8.51 in the last" in sentence
    assert not symptoms(run, 20, lines(9, 8.5), {"score": 0.6}, variance_of(0.1, 0.2))


@pytest.mark.parametrize(
    ("recipe", "metrics", "said"),
    [
        ("self_training/tiny", {"pseudo_boxes": 0.04}, "sure of 0.04 boxes per unlabelled image"),
        ("self_training/tiny", {"pseudo_boxes": 0.4}, ""),
        (
            "pseudo_boxes/tiny",
            {"taught_share": 0.0, "clusters_in_use": 9.0},
            "of the boxes come from the detector",
        ),
        ("pseudo_boxes/tiny", {"taught_share": 0.4, "clusters_in_use": 1.1}, "regions lie in 1.1 clusters of 16"),
        ("pseudo_boxes/tiny", {"taught_share": 0.4, "clusters_in_use": 9.0}, ""),
    ],
)
def test_a_task_says_what_its_own_metrics_show(recipe: str, metrics: dict[str, float], said: str) -> None:
    run = resolve(recipe)
    # What was long ago counts little: a teacher begins unsure.
    early = [line | {"metric/pseudo_boxes": 2.0, "metric/taught_share": 0.5} for line in lines(9, 5, 30)]
    late = [line | {f"metric/{name}": value for name, value in metrics.items()} for line in lines(5, 3, 60)]
    found = symptoms(run, 60, [*early, *late], {}, BoxVariance())
    if not said:
        assert not found
        return
    (sentence,) = found
    assert said in sentence
    assert not symptoms(run, 121, [*early, *late], {}, BoxVariance()), "said too early"


def test_what_may_help_is_said_once(run: Any) -> None:
    blind, late = symptoms(run, 20, lines(9, 4), {"score": 0.0}, variance_of(0.0, 0.2))
    assert "hardly depend on the image" in blind
    assert "score is 0.000 after" in late
    assert "--steps 40" in late
    assert "--steps" not in blind


@pytest.mark.parametrize(
    ("recipe", "option"),
    [
        ("detection/tiny", "--recipe detection/small"),
        ("one_shot/tiny", "--recipe one_shot/small"),
        ("self_training/tiny", "--recipe self_training/small"),
        ("panoptic/tiny", "--set detector.backbone.name=timm/tf_efficientnet_lite0 detector.backbone.weights=imagenet"),
    ],
)
def test_the_remedy_suits_the_task(recipe: str, option: str) -> None:
    run = resolve(recipe)
    assert recipe_that_knows_photographs(run.task) == option
    kind, _, words = option.partition(" ")
    better = resolve(words) if kind == "--recipe" else override(run, dict(word.split("=") for word in words.split()))
    assert type(better.task) is type(run.task)
    assert better.detector.backbone.weights == "imagenet"  # type: ignore[attr-defined]


def test_a_healthy_run_hears_nothing(run: Any) -> None:
    assert not symptoms(run, 20, lines(9, 3), {"score": 0.31}, variance_of(0.1, 0.2))
    assert not symptoms(run, 20, lines(9, 3), {}, BoxVariance())


def test_the_run_the_log_and_the_page_say_it(
    train: Any, fakes: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    still = replace(fakes.a_run(optim__lr=0.0, optim__lr_backbone=0.0), data=fakes.a_run().data)
    train(tmp_path / "still", still)
    assert "the loss has hardly fallen" in caplog.text
    assert "the loss has hardly fallen" in (tmp_path / "still" / "run.json").read_text()
    page = write_report(tmp_path / "still").read_text()
    assert "the loss has hardly fallen" in page
