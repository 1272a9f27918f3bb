"""Supervised detection: what it trains, what its views give, that it learns, and what it refuses."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import ssldet
from downstream.annotations.coco import open_coco
from downstream.annotations.labelled import LabelledImages
from downstream.annotations.shapes import write_shapes
from downstream.detection import Detection, SetPrediction
from downstream.recipes import detection as recipes
from downstream.recipes.detection import r50
from ssldet.data.collate import collate
from ssldet.data.images import ImageRules
from ssldet.detectors.detr import DETRConfig
from ssldet.engine.evaluate import require_measurable, unpadded
from ssldet.engine.run import DataConfig
from ssldet.errors import ConfigError, DataError
from ssldet.nn.backbones import BackboneConfig
from ssldet.recipe import check, dumps, from_document, load, override, to_document
from ssldet.registry import find, names
from ssldet.task import Task
from ssldet.types import Batch, Sample, Targets

TASK = Detection(scales=(48, 56), max_size=80, eval_scale=48, crop_scales=(60,), crop_range=(40, 60))
DETECTOR = DETRConfig(
    backbone=BackboneConfig(name="tiny", frozen_norm=False, frozen_stages=0, tiny_channels=(8, 12)),
    num_classes=3,
    num_queries=12,
    width=16,
    heads=2,
    encoder_layers=1,
    decoder_layers=2,
    feedforward=24,
    dropout=0.0,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    path = write_shapes(tmp_path_factory.mktemp("shapes"), images=6, objects=(0, 3), object_scale=(0.3, 0.5))
    return open_coco(str(path), ImageRules(min_side=17, max_pixels=10**6))


@pytest.fixture
def batch(source: LabelledImages) -> Batch:
    views = TASK.views(training=False)
    samples = [views(source[number], torch.Generator()) for number in range(4)]
    assert 0 in {len(sample.targets) for sample in samples}
    return collate(samples)


def test_all_sections_learn_or_all_but_the_backbone() -> None:
    sections = [*DETECTOR.build().sections, "mask_head", "never heard of"]
    assert [section for section in sections if TASK.rests(section)] == ["mask_head"]
    frozen = replace(TASK, freeze_backbone=True)
    assert [section for section in sections if frozen.rests(section)] == ["backbone", "mask_head"]
    for task in (TASK, frozen):
        assert [section for section in sections if task.stays_behind(section)] == ["mask_head"]


def test_training_views_vary_with_the_generator_alone(source: LabelledImages) -> None:
    views = pickle.loads(pickle.dumps(TASK.views()))
    sample = source[1]
    first, again, other = (views(sample, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first.image, again.image)
    assert first.image.shape != other.image.shape or not torch.equal(first.image, other.image)
    sizes = {min(views(sample, torch.Generator().manual_seed(seed)).image.shape[1:]) for seed in range(30)}
    assert sizes <= {48, 56}
    assert len(sizes) == 2


def test_evaluation_sees_the_image_whole(source: LabelledImages) -> None:
    seen = TASK.views(training=False)(source[2], torch.Generator())
    assert seen.image.shape == (3, 48, 48)
    assert torch.equal(seen.targets.boxes, source[2].targets.boxes)


def test_one_batch_can_be_learned(batch: Batch) -> None:
    objective = TASK.objective(DETECTOR.build())
    optimiser = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    totals = []
    for _ in range(30):
        losses = objective(batch)
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
        totals.append(losses.total.item())
    assert set(losses.terms) == {"class", "box_l1", "box_giou"}
    assert all(len(term) == DETECTOR.decoder_layers for term in losses.terms.values())
    assert totals[-1] < 0.6 * totals[0]
    assert all(value.grad is not None and value.grad.isfinite().all() for value in objective.parameters())


def test_answers_are_in_pixels_of_the_images_on_disk(batch: Batch, source: LabelledImages) -> None:
    objective = TASK.objective(DETECTOR.build()).eval()
    found = objective.answer(batch)
    assert [len(one) for one in found] == [12] * 4
    enlarged = objective.answer(replace(batch, original_sizes=batch.original_sizes * 10))
    assert torch.allclose(enlarged[1].boxes, 10 * found[1].boxes)
    metric = TASK.evaluator(source)
    metric.update(found, batch)
    assert TASK.headline in metric.results()


def test_the_batch_has_no_influence_on_the_answers() -> None:
    """Images of different sizes share a canvas, but none of them sees another one's padding."""
    objective, views = TASK.objective(DETECTOR.build()).eval(), TASK.views(training=False)
    generator = torch.Generator().manual_seed(5)
    sizes = [(64, 64), (48, 70), (64, 64), (70, 48)]
    samples = [
        views(
            Sample(
                image=torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8),
                targets=Targets(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64)),
                key=str(number),
                original_size=size,
            ),
            generator,
        )
        for number, size in enumerate(sizes)
    ]
    with torch.no_grad():
        together = unpadded(objective.answer, collate(samples))
        alone = [objective.answer(collate([sample]))[0] for sample in samples]
        padded = objective.answer(collate(samples))
    for one, other in zip(together, alone, strict=True):
        assert torch.allclose(one.boxes, other.boxes, atol=1e-4)
        assert torch.allclose(one.scores, other.scores, atol=1e-6)
        assert torch.equal(one.labels, other.labels)
    assert any(
        not torch.allclose(one.scores, other.scores, atol=1e-6) for one, other in zip(padded, alone, strict=True)
    )


def test_the_weights_of_the_terms_are_the_tasks(batch: Batch) -> None:
    objective = replace(TASK, class_weight=2.0, box_l1_weight=3.0, box_giou_weight=0.5).objective(DETECTOR.build())
    assert objective(batch).weights == {"class": 2.0, "box_l1": 3.0, "box_giou": 0.5}
    assert [cost.weight for cost in objective.criterion.matcher.costs] == [2.0, 3.0, 0.5]


def test_the_objective_owns_nothing_that_is_thrown_away() -> None:
    objective = TASK.objective(DETECTOR.build())
    assert isinstance(objective, SetPrediction)
    assert all(name.startswith("detector.") for name in objective.state_dict())


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"scales": ()}, "task.scales"),
        ({"crop_scales": (4,)}, "task.crop_scales"),
        ({"crop_range": (600, 384)}, "task.crop_range"),
        ({"max_size": 100}, "task.max_size: 100 is below"),
    ],
)
def test_choices_that_do_not_fit_are_refused(changes: dict[str, object], advice: str) -> None:
    run = override(r50(), {f"task.{name}": value for name, value in changes.items()})
    with pytest.raises(ConfigError, match=advice):
        check(run)


NAMED = [name.partition("/")[2] for name in names("ssldet.recipes") if name.startswith("detection/")]


def test_files_of_earlier_versions_still_load() -> None:
    task = Detection(max_dets=300)
    assert from_document(Task, {**to_document(task), "accelerate": True}) == task  # type: ignore[type-abstract]


@pytest.mark.parametrize("name", NAMED)
def test_recipes_are_sound_and_survive_as_text(name: str, tmp_path: Path) -> None:
    run = find("ssldet.recipes", f"detection/{name}")()
    check(run)
    (tmp_path / "run.toml").write_text(dumps(run))
    assert load(type(run), tmp_path / "run.toml") == run


@pytest.mark.parametrize(
    ("name", "epochs", "images", "total", "drop"),
    [
        ("voc-150", 150, 16551, 155_166, 100),
        ("coco-300", 300, 117_266, 2_198_738, 200),
        ("deformable-coco-50", 50, 117_266, 183_228, 40),
        ("deformable-voc", 100, 16551, 51_722, 70),
    ],
)
def test_rates_drop_after_the_published_epoch(name: str, epochs: int, images: int, total: int, drop: int) -> None:
    run = find("ssldet.recipes", f"detection/{name}")()
    steps = run.budget.total_steps(images, run.data.batch_size)
    assert (run.budget.epochs, steps) == (epochs, total)
    assert round(run.optim.drops[0] * steps) * run.data.batch_size / images == pytest.approx(drop, abs=1e-3)


def test_few_labels_are_the_same_for_everybody() -> None:
    runs = (
        recipes.coco_1_percent(),
        recipes.coco_2_percent(),
        recipes.coco_5_percent(),
        recipes.coco_10_percent(),
        recipes.coco_tiny_10_percent(),
    )
    assert [run.data.fraction for run in runs] == [0.01, 0.02, 0.05, 0.1, 0.1]
    assert {run.data.fraction_seed for run in runs} == {0}
    for share, run in zip((1, 2, 5, 10), runs, strict=False):
        deformable = find("ssldet.recipes", f"detection/deformable-coco-{share}-percent")()
        assert (deformable.data.fraction, deformable.data.fraction_seed) == (run.data.fraction, 0)
        assert (deformable.budget, deformable.optim.schedule) == (run.budget, "constant")


@pytest.mark.parametrize("name", ["voc-tiny", "coco-tiny-10-percent", "deformable-tiny"])
def test_tiny_recipes_run_with_the_classes_of_the_data(name: str, tmp_path: Path) -> None:
    made = write_shapes(tmp_path / "made", images=20, size=48, classes=("circle", "star"))
    data = f"coco:{made}:{made.parent / 'images'}"
    small = {"data.batch_size": 2, "task.scales": (48,), "task.eval_scale": 48, "task.max_size": 64}
    run = ssldet.finetune("scratch", data, recipe=f"detection/{name}", steps=1, out=tmp_path / "run", overrides=small)
    assert run.detector().num_classes == 2


def test_r50_is_the_published_recipe() -> None:
    run = r50()
    assert (run.optim.lr, run.optim.lr_backbone, run.optim.clip, run.data.batch_size) == (1e-4, 5e-5, 0.1, 16)
    assert (run.budget.epochs, run.optim.drops) == (300, (2 / 3,))
    assert run.task.scales == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)  # type: ignore[attr-defined]


def test_a_set_without_any_object_is_refused_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "images" / "a.png")
    document: dict[str, list[dict[str, object]]] = {
        "images": [{"id": 5, "file_name": "a.png", "width": 40, "height": 30}],
        "categories": [{"id": 2, "name": "cat"}],
        "annotations": [],
    }
    box = {"id": 3, "image_id": 5, "category_id": 2, "bbox": [4, 5, 10, 12], "area": 120, "iscrowd": 0}
    run = replace(r50(), task=TASK, data=DataConfig(val=("coco:ann.json:images",)))
    for boxes, fine in (([], False), ([box], True)):
        (tmp_path / "ann.json").write_text(json.dumps({**document, "annotations": boxes}))
        source = open_coco(f"{tmp_path / 'ann.json'}:{tmp_path / 'images'}", ImageRules())
        if fine:
            require_measurable(run, source)
            continue
        with pytest.raises(DataError, match="images: not one object in 1 images"):
            require_measurable(run, source)
