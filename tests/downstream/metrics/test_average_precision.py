"""The figures are pycocotools' own; the traps around them are closed."""

import contextlib
import copy
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from downstream.annotations.coco import open_coco
from downstream.annotations.labelled import LabelledImages
from downstream.annotations.shapes import write_shapes
from downstream.annotations.voc import open_voc
from downstream.metrics.average_precision import NAMES, BoxAP, MaskAP, box_ap
from downstream.metrics.voc import voc_ap
from ssldet.boxes import to_absolute
from ssldet.data.collate import collate
from ssldet.data.images import ImageRules, open_images
from ssldet.errors import AnnotationError, DataError, DivergedError
from ssldet.types import Batch, Detections

Document = dict[str, Any]


def random_set(seed: int) -> tuple[Document, list[Document]]:
    """Crowds, all sizes, odd category ids, images without objects, and detections good and bad."""
    chance = np.random.default_rng(seed)
    categories = [{"id": key, "name": f"c{key}"} for key in (3, 17, 90)]
    images = [{"id": int(key), "height": 480, "width": 640} for key in chance.permutation(30)[:12]]
    annotations: list[Document] = []
    detections: list[Document] = []
    for image in images:
        for _ in range(chance.integers(0, 9)):
            x, y, w, h = chance.uniform(0, 1, 4) * (400, 300, 240, 180) ** np.array([1, 1, chance.uniform(0.3, 1), 1])
            key, crowd = int(chance.choice([3, 17, 90])), int(chance.random() < 0.15)
            row = {"image_id": image["id"], "category_id": key, "bbox": [x, y, w, h]}
            annotations.append(
                row | {"id": len(annotations) + 1, "area": w * h * chance.uniform(0.5, 1), "iscrowd": crowd}
            )
            for _ in range(chance.integers(0, 4)):
                noisy = (np.array([x, y, w, h]) + chance.normal(0, 0.1, 4) * min(w, h)).clip(0.1)
                key = int(chance.choice([key, 3]))
                detections.append(row | {"category_id": key, "bbox": noisy.tolist(), "score": chance.random()})
    return {"images": images, "annotations": annotations, "categories": categories}, detections


def reference(truth: Document, detections: list[Document]) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        ours = COCO()
        ours.dataset = copy.deepcopy(truth)
        ours.createIndex()
        evaluation = COCOeval(ours, ours.loadRes(copy.deepcopy(detections)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


@pytest.mark.parametrize("seed", range(4))
def test_the_figures_are_those_of_pycocotools(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    truth, detections = random_set(seed)
    found = box_ap(copy.deepcopy(truth), detections)
    assert capsys.readouterr().out == ""
    assert [found[name] for name in NAMES] == pytest.approx(reference(truth, detections)[:9], abs=1e-12)
    assert 0.02 < found["AP"] < 0.98  # type: ignore[operator]
    classes = found["per_class"]
    assert isinstance(classes, dict)
    assert list(classes) == ["c3", "c17", "c90"]
    assert np.mean([value for value in classes.values() if value >= 0]) == pytest.approx(found["AP"], abs=1e-12)


@pytest.mark.parametrize("max_dets", [1, 7, 10, 300])
def test_any_number_of_detections_may_count(max_dets: int) -> None:
    truth, detections = random_set(5)
    found = box_ap(truth, detections, max_dets=max_dets)
    assert [name for name in found if name.startswith("AR")] == {
        1: ["AR1"],
        7: ["AR1", "AR7"],
        10: ["AR1", "AR10"],
        300: ["AR1", "AR10", "AR300"],
    }[max_dets]
    best: dict[tuple[int, int], list[Document]] = {}
    for row in sorted(detections, key=lambda row: -row["score"]):
        best.setdefault((row["image_id"], row["category_id"]), []).append(row)
    kept = [row for rows in best.values() for row in rows[:max_dets]]
    assert found["AP"] == pytest.approx(reference(truth, kept)[0], abs=1e-12)


def test_more_objects_than_detections_that_count_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    image, category = {"id": 4, "height": 90, "width": 90}, {"id": 1, "name": "dog"}
    row = {"image_id": 4, "category_id": 1, "area": 9, "iscrowd": 0}
    rows = [row | {"bbox": [4 * number, 0, 3, 3]} for number in range(103)]
    truth = {"images": [image], "categories": [category], "annotations": [*rows, row | {"bbox": [0, 9, 3, 3]}]}
    answers = [one | {"score": 0.5} for one in truth["annotations"]]
    for _ in range(2):
        assert box_ap(truth, answers)["AR100"] == pytest.approx(100 / 104)
    (message,) = caplog.messages
    assert "1 times an image holds more than 100 objects of one class (up to 104)" in message
    assert "--max-dets 104" in message
    assert box_ap(truth, answers, max_dets=104)["AR104"] == 1
    assert len(caplog.messages) == 1


def test_classes_of_one_name_are_told_apart_by_id() -> None:
    truth, detections = random_set(0)
    for row in truth["categories"][:2]:
        row["name"] = "twin"
    assert list(box_ap(truth, detections)["per_class"]) == ["twin (3)", "twin (17)", "c90"]


def test_no_detection_at_all_is_zero() -> None:
    truth, _ = random_set(0)
    found = box_ap(truth, [])
    assert {found[name] for name in NAMES} == {0.0}


def test_no_object_at_all_is_refused() -> None:
    truth, detections = random_set(0)
    with pytest.raises(AnnotationError, match="right split"):
        box_ap(truth | {"annotations": []}, detections)


def test_annotation_number_zero_is_found() -> None:
    truth, _ = random_set(1)
    for number, row in enumerate(truth["annotations"]):
        row |= {"id": number, "iscrowd": 0}
    perfect = [row | {"score": 1.0} for row in truth["annotations"]]
    assert reference(truth, perfect)[0] < 0.999, "the trap is gone from pycocotools"
    assert box_ap(truth, perfect)["AP"] == pytest.approx(1.0)


def test_a_difficult_object_is_neither_missed_nor_wrong() -> None:
    image, category = {"id": "a", "height": 90, "width": 90}, {"id": 1, "name": "dog"}
    easy = {"image_id": "a", "category_id": 1, "bbox": [0, 0, 20, 20], "area": 400, "iscrowd": 0, "difficult": 0}
    hard = easy | {"bbox": [50, 50, 30, 30], "area": 900, "difficult": 1}
    truth = {"images": [image], "categories": [category], "annotations": [hard, easy]}
    answers = [row | {"score": score} for row, score in ((hard, 0.9), (easy, 0.5))]
    assert box_ap(truth, answers)["AP"] == pytest.approx(1.0)
    assert box_ap(truth, answers[1:])["AP"] == pytest.approx(1.0)
    hard["difficult"] = 0
    assert box_ap(truth, answers[1:])["AP"] == pytest.approx(51 / 101)


def batch_of(source: LabelledImages, first: int, last: int) -> Batch:
    return collate([source[number] for number in range(first, last)])


def truth_of(batch: Batch, noise: float = 0.0) -> list[Detections]:
    found = []
    for targets, size in zip(batch.targets, batch.original_sizes.tolist(), strict=True):
        boxes = to_absolute(targets.boxes, (size[0], size[1]))
        scores = torch.linspace(1, 0.5, len(targets))
        found.append(Detections(boxes=boxes + noise * torch.randn_like(boxes), scores=scores, labels=targets.labels))
    return found


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    path = write_shapes(tmp_path_factory.mktemp("shapes"), images=7, objects=(0, 3), object_scale=(0.3, 0.45))
    return open_coco(str(path), ImageRules(min_side=17, max_pixels=10**6))


def test_perfect_answers_score_one_and_worse_ones_less(shapes: LabelledImages) -> None:
    scores = []
    for noise in (0.0, 2.0, 40.0):
        metric = BoxAP(shapes)
        for first, last in ((0, 3), (3, 4), (4, 7)):
            batch = batch_of(shapes, first, last)
            metric.update(truth_of(batch, noise), batch)
        scores.append(metric.results()["AP"])
    assert scores[0] == pytest.approx(1.0)
    assert scores[0] > scores[1] > scores[2]  # type: ignore[operator]


def test_an_image_never_shown_counts_as_missed_and_one_shown_twice_once(shapes: LabelledImages) -> None:
    metric = BoxAP(shapes)
    batch = batch_of(shapes, 0, 4)
    for _ in range(2):
        metric.update(truth_of(batch), batch)
    recall = metric.results()["AR100"]
    assert 0 < recall < 1  # type: ignore[operator]
    batch = batch_of(shapes, 4, 7)
    metric.update(truth_of(batch), batch)
    assert metric.results()["AP"] == pytest.approx(1.0)


@pytest.mark.parametrize("field", ["boxes", "scores"])
def test_a_diverged_model_is_not_scored(shapes: LabelledImages, field: str) -> None:
    metric = BoxAP(shapes)
    batch = batch_of(shapes, 0, 2)
    found = truth_of(batch)
    getattr(found[1], field).view(-1)[0] = float("nan")
    with pytest.raises(DivergedError, match="not scored"):
        metric.update(found, batch)


def test_a_class_that_the_data_lacks_is_refused(shapes: LabelledImages) -> None:
    metric = BoxAP(shapes)
    batch = batch_of(shapes, 0, 1)
    found = [Detections(boxes=torch.ones(1, 4), scores=torch.ones(1), labels=torch.tensor([3]))]
    with pytest.raises(DataError, match="class number 3, but the data has 3 classes"):
        metric.update(found, batch)


def test_images_without_labels_are_refused(tmp_path: Path, shapes: LabelledImages) -> None:
    plain = open_images([shapes.folder], ImageRules(min_side=17, max_pixels=10**6))
    with pytest.raises(DataError, match="no labels to measure against"):
        BoxAP(plain)


@pytest.mark.parametrize("name", ["coco_tiny", "cards_voc"])
def test_perfect_answers_on_real_images_score_one(real_data: Path, name: str) -> None:
    if name == "cards_voc":
        source = open_voc(f"{real_data / name}:val", ImageRules(min_side=17, max_pixels=10**8))
    else:
        path = real_data / name / "annotations" / "instances_val.json"
        source = open_coco(str(path), ImageRules(min_side=17, max_pixels=10**8))
    metric = BoxAP(source)
    for number in range(len(source)):
        batch = batch_of(source, number, number + 1)
        metric.update(truth_of(batch), batch)
    found = metric.results()
    assert found["AP"] == pytest.approx(1.0)
    classes = found["per_class"]
    assert isinstance(classes, dict)
    measured = [value for value in classes.values() if value != -1]
    assert measured == pytest.approx([1.0] * len(measured))


def test_results_carry_original_ids(shapes: LabelledImages, tmp_path: Path) -> None:
    batch = batch_of(shapes, 1, 3)
    rows = shapes.to_results(truth_of(batch), batch)
    assert {row["image_id"] for row in rows} <= {2, 3}
    assert json.loads(json.dumps(rows)) == rows
    truth = [row for row in shapes.ground_truth()["annotations"] if row["image_id"] in {2, 3}]
    assert [row["category_id"] for row in rows] == [row["category_id"] for row in truth]
    for row, true in zip(rows, truth, strict=True):
        assert row["bbox"] == pytest.approx(true["bbox"], abs=1e-4)


def test_masks_of_a_model_are_measured_with_their_boxes(real_data: Path) -> None:
    path = real_data / "coco_tiny" / "annotations" / "instances_val.json"
    source = open_coco(str(path), ImageRules(min_side=17, max_pixels=10**8), masks=True)
    metric, forgetful = MaskAP(source), MaskAP(source)
    for number in reversed(range(len(source))):
        sample = source[number]
        batch = collate([replace(sample, targets=replace(sample.targets, masks=None))])
        found = replace(truth_of(batch)[0], masks=sample.targets.masks)
        metric.update([found], batch)
        forgetful.update([replace(found, masks=found.masks & False)], batch)
    results = metric.results()
    assert list(results) == [*NAMES, "per_class", "segm"]
    assert list(results["segm"]) == [*NAMES, "per_class"]
    assert results["AP"] == results["segm"]["AP"] == pytest.approx(1.0)
    assert forgetful.results()["AP"] == pytest.approx(1.0)
    assert forgetful.results()["segm"]["AP"] == 0


def test_detections_without_masks_are_refused(shapes: LabelledImages) -> None:
    batch = batch_of(shapes, 0, 1)
    with pytest.raises(DataError, match="without masks"):
        MaskAP(shapes).update(truth_of(batch), batch)


def test_the_order_of_images_is_without_influence(shapes: LabelledImages) -> None:
    answers = []
    for number in range(len(shapes)):
        batch = batch_of(shapes, number, number + 1)
        (found,) = truth_of(batch, noise=3.0)
        answers.append(([replace(found, scores=torch.full_like(found.scores, 0.5))], batch))
    figures = []
    for order in (answers, answers[::-1]):
        for metric in (BoxAP(shapes), BoxAP(shapes, voc_ap)):
            for found, batch in order:
                metric.update(found, batch)
            figures.append(metric.results())
    assert figures[:2] == figures[2:]
    assert 0 < figures[1]["voc_ap"] < 1
