"""FP-DETR's pretraining by a class token: supervised classification, contrast without labels, and the hand-over."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ssldet
from downstream.annotations.shapes import write_shapes
from pretext.class_token import UNTAUGHT, ClassToken
from pretext.folders import open_folders
from pretext.fp_detr import ImageClassification
from pretext.fp_detr_contrast import TokenContrast
from pretext.top_one import TopOne
from ssldet import testing
from ssldet.data.collate import collate
from ssldet.data.images import ImageRules
from ssldet.data.sources import open_source
from ssldet.detectors.detr import DETRConfig
from ssldet.detectors.fp_detr import BASE, LITE, SMALL
from ssldet.errors import ConfigError, DataError
from ssldet.recipe import check
from ssldet.registry import find
from ssldet.source import Source
from ssldet.task import learning_sections
from ssldet.testing.law import seeded
from ssldet.types import Batch, Detections
from tests.models import SMALL_FP_DETR

TINY = replace(SMALL_FP_DETR, strides=(4, 8, 16), encoder_layers=1, joined_layers=2, dropout=0.0)
TASK = ImageClassification(
    crop_size=32, min_scale=0.5, colours=0, erase=0.0, mixup=0.0, cutmix=0.0, eval_side=32, categories=3
)
SHORT: dict[str, object] = {"data.batch_size": 16, "data.workers": 0, "optim.warmup_steps": 5}
PATCH_LAWS = (
    testing.tasks.gradient_reaches_what_trains,
    testing.tasks.answers_are_measured,
    testing.tasks.weights_come_back,
)
TAUGHT = {"backbone", "projection", "encoder", "joined_encoder"}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated scenes of one object in a hue of its class: `coco` with boxes, `folders` sorted by class."""
    place = tmp_path_factory.mktemp("scenes")
    write_shapes(place / "coco", images=48, size=32, objects=(1, 1), object_scale=(0.5, 0.8), hues=True)
    source = open_source([f"coco:{place / 'coco' / 'instances.json'}"], ImageRules())
    for index in range(len(source)):
        path, targets = source.path_of(index), source.targets_of(index)
        assert path is not None
        assert targets is not None
        folder = place / "folders" / source.classes[int(targets.labels[0])]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).write_bytes(path.read_bytes())
    return place


@pytest.fixture(scope="module")
def source(scenes: Path) -> Source:
    return opened(scenes / "folders")


@pytest.fixture(scope="module")
def taught(scenes: Path) -> ssldet.Trained:
    """A short run of supervised classification."""
    folders = f"folders:{scenes / 'folders'}"
    return ssldet.finetune(
        "scratch",
        folders,
        val=folders,
        recipe="fp_detr/tiny",
        steps=60,
        out=scenes / "supervised",
        overrides=SHORT | {"task.crop_size": 32, "task.eval_side": 32, "optim.lr": 2e-3, "optim.lr_backbone": 2e-3},
    )


def opened(folder: Path) -> Source:
    return open_folders(str(folder), ImageRules())


def a_batch(source: Source, task: Any, *, training: bool = True) -> Batch:
    views = task.views(training=training)
    return collate([views(source[index], seeded(index)) for index in range(6)])


def test_folders_name_classes(source: Source) -> None:
    assert source.classes == ("circle", "square", "triangle")
    for index in (0, len(source) - 1):
        path, sample = source.path_of(index), source[index]
        assert path is not None
        assert source.classes[int(sample.targets.labels)] == path.parent.name
        assert sample.targets.boxes.tolist() == [[0.5, 0.5, 1, 1]]


def test_what_is_no_folder_of_classes_is_refused(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        opened(tmp_path / "none")
    with pytest.raises(DataError, match=r"lie in no folder of it, such as .*\.jpg"):
        opened(next((scenes / "folders").iterdir()))
    with pytest.raises(DataError, match="no masks"):
        open_folders(str(scenes / "folders"), ImageRules(), masks=True)
    with pytest.raises(DataError, match="no image in"):
        opened(tmp_path)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="0 of 1 images usable"):
        opened(tmp_path)


def test_the_task_wants_one_class_per_image(scenes: Path, source: Source) -> None:
    assert TASK.prepare(source) is source
    boxes = open_source([f"coco:{scenes / 'coco' / 'instances.json'}"], ImageRules())
    plain = open_source([str(scenes / "folders")], ImageRules())
    for other in (boxes, plain):
        with pytest.raises(DataError, match="folders:ROOT"):
            TASK.prepare(other)


def test_one_class_alone_teaches_nothing(scenes: Path, tmp_path: Path) -> None:
    only = scenes / "folders" / "circle"
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "circle").symlink_to(only)
    with pytest.raises(DataError, match="all images are of one class, 'circle'"):
        TASK.prepare(opened(tmp_path / "all"))


def test_a_view_is_a_crop_with_the_class_of_its_image(source: Source) -> None:
    sample = source[5]
    task = replace(TASK, colours=9, erase=1.0)
    first, again, other = (task.views()(sample, seeded(seed)) for seed in (1, 1, 2))
    assert first.image.shape == (3, 32, 32)
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.image, other.image)
    assert torch.equal(first.targets.labels, sample.targets.labels)
    middle = task.views(training=False)
    assert torch.equal(middle(sample, seeded(1)).image, middle(sample, seeded(2)).image)


def test_loss_and_answer_are_those_of_the_classifier(source: Source) -> None:
    torch.manual_seed(0)
    objective = TASK.objective(TINY.build()).eval()
    batch = a_batch(source, TASK)
    labels = torch.cat([targets.labels for targets in batch.targets])
    state = objective.token(objective.detector, batch.images)
    logits = objective.classifier(state)
    found = objective(batch)
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(found.total, expected)
    answers = objective.answer(batch)
    assert [one.labels[0].item() for one in answers] == logits.argmax(1).tolist()
    torch.testing.assert_close(answers[0].scores, logits[0].softmax(0).sort(descending=True).values)
    assert answers[0].boxes.tolist() == [[0, 0, 32, 32]] * 3


def test_mixed_images_have_mixed_labels(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of one image and half of another are half of either class."""
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda *_: torch.tensor([0.5]))
    torch.manual_seed(0)
    task = replace(TASK, mixup=1.0, smoothing=0.0)
    objective = task.objective(TINY.build()).train()
    batch = a_batch(source, task)
    labels = torch.cat([targets.labels for targets in batch.targets])
    images = batch.images.float() / 255
    logits = objective.classifier(objective.token(objective.detector, (images + images.roll(1, 0)) / 2))
    halves = [torch.nn.functional.cross_entropy(logits, wanted) for wanted in (labels, labels.roll(1))]
    torch.testing.assert_close(objective(batch).total, (halves[0] + halves[1]) / 2)


def test_what_a_token_does_without_rests_and_stays_behind(source: Source) -> None:
    detector = TINY.build()
    objective = TASK.objective(detector)
    detector.train_only(learning_sections(TASK, detector))
    assert set(detector.sections) - UNTAUGHT == TAUGHT
    objective.train()(a_batch(source, TASK)).total.backward()
    for section, parts in detector.sections.items():
        for part in parts:
            reached = [p.grad is not None for p in detector.get_submodule(part).parameters()]
            assert all(reached) == any(reached) == (section in TAUGHT), section


def test_a_token_sees_the_image_and_needs_no_adaptor() -> None:
    detector, token = TINY.build().eval(), ClassToken(64).eval()
    images = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8)
    before = token(detector, images)
    with torch.no_grad():
        for parameter in detector.adaptor.parameters():
            parameter.add_(1)
    torch.testing.assert_close(token(detector, images), before)
    assert (before[0] - before[1]).abs().max() > 1e-3


@pytest.mark.parametrize("task", [TASK, TokenContrast()], ids=("supervised", "contrast"))
def test_a_detector_without_such_layers_is_refused(task: Any) -> None:
    assert task.problems_with(LITE) == []
    (line,) = task.problems_with(DETRConfig())
    assert line.startswith(f"{type(task).__name__}: ")
    assert "choose detector='fp_detr'" in line


def test_top_one_counts(source: Source) -> None:
    batch = a_batch(source, TASK, training=False)
    truths = [int(targets.labels) for targets in batch.targets]

    def answer(*labels: int) -> Detections:
        scores = torch.linspace(1, 0.1, len(labels))
        return Detections(boxes=torch.zeros(len(labels), 4), scores=scores, labels=torch.tensor(labels))

    right, second = (answer(truths[0]), answer((truths[1] + 1) % 3, truths[1]))
    nothing = [Detections(boxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0, dtype=torch.int64))] * 4
    evaluator = TopOne()
    evaluator.update([right, second, *nothing], batch)
    results = evaluator.results()
    assert (results["top1"], results["top5"]) == (1 / 6, 2 / 6)
    assert results["chance"] == max(map(truths.count, truths)) / 6
    with pytest.raises(DataError, match="no image"):
        TopOne().results()


def test_classification_learns(taught: ssldet.Trained, scenes: Path) -> None:
    assert taught.results["top1"] > taught.results["chance"] + 0.25
    again = taught.evaluate(f"folders:{scenes / 'folders'}", workers=0)
    assert again["top1"] == taught.results["top1"]
    assert taught.run.task.categories == 3  # type: ignore[attr-defined]


def test_layers_go_on_to_detection_and_queries_take_the_place_of_the_token(
    taught: ssldet.Trained, scenes: Path, tmp_path: Path
) -> None:
    labelled = f"coco:{scenes / 'coco' / 'instances.json'}"
    fine = taught.finetune(
        labelled, val=labelled, recipe="detection/fp_detr-tiny", steps=2, out=tmp_path / "fine", overrides=SHORT
    )
    rows = json.loads((fine.path / "transfer.json").read_text())["rows"]
    assert {row["section"] for row in rows if row["outcome"] == "loaded"} == TAUGHT
    fresh = {row["section"] for row in rows if row["outcome"] in {"fresh", "reshaped"}}
    assert fresh == UNTAUGHT - {"mask_head"}
    assert "AP" in fine.results
    exported = fine.export("safetensors", tmp_path / "model.safetensors")
    assert exported is not None
    found = ssldet.predict(tmp_path / "model.safetensors", str(scenes / "folders" / "circle"), out=tmp_path / "found")
    # The likeliest pairs of a query and a class: ten queries and three classes have fewer than a hundred.
    assert len(found["predictions"]) == 10 * 3 * found["images"]


def test_pretraining_without_labels_reads_plain_folders(scenes: Path, tmp_path: Path) -> None:
    run = ssldet.pretrain(
        str(scenes / "folders"),
        recipe="fp_detr/self-supervised-tiny",
        steps=2,
        out=tmp_path / "pre",
        overrides=SHORT | {"task.crop_size": 32, "task.eval_side": 32},
        val=str(scenes / "folders"),
    )
    assert run.results["knn_top1"] is not None
    fine = run.finetune(
        f"coco:{scenes / 'coco' / 'instances.json'}",
        recipe="detection/fp_detr-tiny",
        steps=1,
        out=tmp_path / "fine",
        overrides=SHORT,
    )
    rows = json.loads((fine.path / "transfer.json").read_text())["rows"]
    assert {row["section"] for row in rows if row["outcome"] == "loaded"} == TAUGHT


def test_the_verb_that_promises_to_read_no_label_refuses_classification(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reads labels; use finetune"):
        ssldet.pretrain(f"folders:{scenes / 'folders'}", recipe="fp_detr/tiny", out=tmp_path / "pre")


@pytest.mark.parametrize("law", PATCH_LAWS, ids=lambda law: law.__name__)
def test_random_query_patches_are_taught_to_it_too(law: testing.Law) -> None:
    task = find("ssldet.recipes", "random_query_patch/tiny")().task
    law(task, replace(TINY, num_queries=10))


def test_one_shot_detection_runs_on_it(scenes: Path, tmp_path: Path) -> None:
    run = replace(find("ssldet.recipes", "one_shot/tiny")(), detector=replace(TINY, num_classes=1))
    labelled = f"coco:{scenes / 'coco' / 'instances.json'}"
    fine = ssldet.finetune(
        "scratch", labelled, val=labelled, recipe=run, steps=2, out=tmp_path / "one", overrides=SHORT
    )
    assert "AP50_unseen" in fine.results


def test_recipes_are_the_published_ones() -> None:
    for size, detector in (("base", BASE), ("small", SMALL), ("lite", LITE)):
        pretraining, detection = (
            find("ssldet.recipes", f"{name}{size}")() for name in ("fp_detr/", "detection/fp_detr-")
        )
        check(pretraining)
        check(detection)
        assert pretraining.detector == detection.detector == detector
        assert (pretraining.budget.epochs, pretraining.data.batch_size) == (300, 1024)
        assert (detection.budget.epochs, detection.data.batch_size, detection.optim.drops) == (50, 16, (0.8,))
        assert (detection.optim.lr, detection.optim.lr_backbone, detection.optim.clip) == (1e-4, 1e-5, 0.1)
        assert detection.optim.lr_sampling_factor == 0.1
        weights = (detection.task.class_weight, detection.task.box_l1_weight, detection.task.box_giou_weight)
        assert weights == (2, 5, 2)
    tiny = [find("ssldet.recipes", name)() for name in ("fp_detr/tiny", "fp_detr/self-supervised-tiny")]
    assert {run.detector for run in tiny} == {find("ssldet.recipes", "detection/fp_detr-tiny")().detector}
