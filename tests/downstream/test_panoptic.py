"""Panoptic segmentation: stuff and things from data to figures, mask heads on a detector at rest, the road of verbs."""

import json
import pickle
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ssldet
from downstream.annotations.coco import open_coco
from downstream.annotations.panoptic import PanopticImages, open_panoptic
from downstream.annotations.pngs import read_ids
from downstream.annotations.shapes import write_shapes
from downstream.metrics.segmentation import SegmentationFigures
from downstream.panoptic import MaskPrediction, Panoptic
from downstream.recipes.panoptic import r50, r50_boxes, tiny, tiny_boxes
from ssldet.data.collate import collate
from ssldet.data.images import ImageRules
from ssldet.data.joining import ConcatSource
from ssldet.data.sources import take_fraction
from ssldet.detectors.detr import DETRConfig
from ssldet.errors import ConfigError, DataError
from ssldet.nn.backbones import BackboneConfig
from ssldet.recipe import check, dumps, load, override
from ssldet.task import learning_sections, transferred_sections
from ssldet.types import Batch, Detections, Segmentation

TASK = Panoptic(scales=(48, 56), max_size=80, eval_scale=48, crop_scales=(60,), crop_range=(40, 60))
DETECTOR = DETRConfig(
    backbone=BackboneConfig(name="tiny", frozen_norm=False, frozen_stages=0, tiny_channels=(8, 12, 12)),
    num_classes=5,
    num_queries=7,
    width=32,
    heads=4,
    encoder_layers=1,
    decoder_layers=2,
    feedforward=24,
    dropout=0.1,
    masks=True,
)
CLASSES = ("circle", "square", "triangle", "sky", "ground")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("panoptic")
    write_shapes(place / "set", images=6, objects=(0, 3), object_scale=(0.3, 0.5), stuff=True, hues=True)
    return place


@pytest.fixture(scope="module")
def source(place: Path) -> PanopticImages:
    return open_panoptic(f"{place}/set/panoptic.json", ImageRules(min_side=17, max_pixels=10**6), masks=True)


@pytest.fixture
def batch(source: PanopticImages) -> Batch:
    views = TASK.views(training=False)
    return collate([views(source[number], torch.Generator()) for number in range(4)])


def perfect(source: PanopticImages) -> tuple[list[Detections], Batch]:
    """The truth as an answer, with a confident box and mask of stuff, too, that AP must not look at."""
    samples = [source[number] for number in range(len(source))]
    found = []
    for sample in samples:
        masks = sample.targets.masks
        assert masks is not None
        height, width = sample.original_size
        middle, sides = sample.targets.boxes[:, :2], sample.targets.boxes[:, 2:]
        boxes = torch.cat([middle - sides / 2, middle + sides / 2], dim=1)
        found.append(
            Detections(
                boxes=boxes * torch.tensor([width, height, width, height]),
                scores=torch.ones(len(masks)),
                labels=sample.targets.labels,
                masks=masks,
                segmentation=source.truth(sample.key),
            )
        )
    return found, collate(samples)


def test_the_mask_head_learns_alone_or_with_all() -> None:
    detector = DETECTOR.build()
    assert learning_sections(TASK, detector) == ("mask_head",)
    assert transferred_sections(TASK, detector) == tuple(detector.sections)
    together = replace(TASK, freeze_detector=False)
    assert learning_sections(together, detector) == tuple(detector.sections)
    assert "backbone" not in learning_sections(replace(together, freeze_backbone=True), detector)


def test_the_training_set_says_what_is_stuff(source: PanopticImages, place: Path) -> None:
    assert source.classes == CLASSES
    assert TASK.stage.learns_from(TASK, source).stuff == (3, 4)
    for other in (take_fraction(source, 0.5, 0), ConcatSource([source, source])):
        assert TASK.stage.learns_from(TASK, other).stuff == (3, 4)
    things = open_coco(f"{place}/set/instances.json", ImageRules(min_side=17, max_pixels=10**6), masks=True)
    assert TASK.stage.learns_from(TASK, things).stuff == ()


def test_a_detector_without_masks_is_given_a_head_or_refused() -> None:
    bare = replace(DETECTOR, masks=False)
    assert TASK.stage.receives(bare) == DETECTOR
    (problem,) = TASK.problems_with(bare)
    assert "detector.masks=true" in problem
    assert TASK.problems_with(DETECTOR) == []


def test_shapes_have_masks_that_fill_their_boxes(source: PanopticImages, place: Path) -> None:
    things = open_coco(f"{place}/set/instances.json", ImageRules(min_side=17, max_pixels=10**6), masks=True)
    for number in range(len(source)):
        truth = source.truth(source.keys[number])
        assert truth.segments.min() >= 1, "every pixel is told"
        masks = things[number].targets.masks
        assert masks is not None
        assert torch.equal(
            masks, torch.stack([truth.segments == n + 1 for n in range(len(masks))]) if len(masks) else masks
        )
    assert {label for n in range(len(source)) for label in source[n].targets.labels.tolist()} == set(range(5))


def test_stuff_does_not_move_the_objects(place: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path, images=6, objects=(0, 3), object_scale=(0.3, 0.5), hues=True)
    with_stuff, without = (json.loads((folder / "instances.json").read_text()) for folder in (place / "set", tmp_path))
    assert with_stuff == without
    assert not (tmp_path / "panoptic.json").exists()


@pytest.mark.parametrize("frozen", [True, False])
def test_one_batch_can_be_learned(batch: Batch, frozen: bool) -> None:
    objective = replace(TASK, freeze_detector=frozen).objective(DETECTOR.build())
    objective.detector.train_only(learning_sections(objective.task, objective.detector))  # type: ignore[attr-defined]
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    optimiser = torch.optim.AdamW([value for value in objective.parameters() if value.requires_grad], lr=1e-2)
    totals = []
    for _ in range(25):
        losses = objective(batch)
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
        totals.append((losses.terms["mask_focal"][-1] + losses.terms["mask_dice"][-1]).item())
    assert set(losses.terms) == {"class", "box_l1", "box_giou", "mask_focal", "mask_dice"}
    assert totals[-1] < 0.9 * totals[0]
    moved = {name for name, value in objective.state_dict().items() if not torch.equal(value, before[name])}
    heads = {name for name in before if name.split(".")[1] in {"mask_head", "mask_attention"}}
    assert moved == heads if frozen else heads < moved


def test_a_frozen_detector_is_at_rest(batch: Batch) -> None:
    """Its dropout is off, as documented: the same batch gives the same losses in training."""
    objective = TASK.objective(DETECTOR.build())
    objective.detector.train_only(learning_sections(TASK, objective.detector))
    objective.train()
    assert objective(batch).total == objective(batch).total


def test_a_batch_without_any_target_can_be_learned_from(batch: Batch) -> None:
    nothing = [replace(t, boxes=t.boxes[:0], labels=t.labels[:0], masks=t.masks[:0]) for t in batch.targets]  # type: ignore[index]
    objective = TASK.objective(DETECTOR.build())
    objective.detector.train_only(learning_sections(TASK, objective.detector))
    losses = objective(replace(batch, targets=nothing))
    losses.total.backward()
    assert losses.terms["mask_dice"].tolist() == [0, 0]


def test_masks_are_compared_in_32_bits_whatever_the_detector_runs_in(batch: Batch) -> None:
    objective = replace(TASK, freeze_detector=False).objective(replace(DETECTOR, dropout=0.0).build())
    whole = objective(batch)
    with torch.autocast("cpu", torch.bfloat16):
        half = objective(batch)
    half.total.backward()
    for name in ("mask_focal", "mask_dice"):
        assert half.terms[name].dtype == torch.float32
        torch.testing.assert_close(half.terms[name], whole.terms[name], rtol=0.05, atol=0.01)


def test_an_average_of_an_objective_draws_its_own_masks(batch: Batch) -> None:
    objective = TASK.objective(replace(DETECTOR, dropout=0.0).build())
    average = deepcopy(objective)
    before = average(batch).total
    with torch.no_grad():
        for value in objective.parameters():
            value.mul_(1.5)
    assert average(batch).total == before != objective(batch).total


def test_answers_are_on_the_images_on_disk(batch: Batch) -> None:
    objective = replace(TASK, stuff=(3, 4), least_score=0.0).objective(DETECTOR.build()).eval()
    larger = replace(batch, original_sizes=torch.tensor([[70, 90]] * 4))
    for found in objective.answer(larger):
        assert found.masks is not None
        assert found.masks.shape == (7, 70, 90)
        assert found.segmentation is not None
        assert found.segmentation.segments.shape == (70, 90)
        counted = torch.bincount(found.segmentation.labels, minlength=5)
        assert (counted[3:] <= 1).all()


def test_the_batch_has_no_influence_on_what_is_drawn(batch: Batch) -> None:
    """With a detector whose answer does not depend on padding, a larger canvas gives the same segmentations."""
    objective = replace(TASK, stuff=(3, 4), least_score=0.0).objective(DETECTOR.build()).eval()
    assert isinstance(objective, MaskPrediction)
    drawn = torch.randn(7, 24, 24)

    def masks(predictions: Any, image: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        height, width = (-(-side // 2) for side in seen.images.shape[2:])
        return torch.nn.functional.pad(drawn, (0, width - 24, 0, height - 24), value=30.0)[query]

    objective.detector.masks = masks  # type: ignore[method-assign]
    predictions = objective.detector(objective.detector.normalise(batch.images), batch.padding)
    objective.detector.forward = lambda *_: predictions  # type: ignore[method-assign]
    answers = []
    for extra in (0, 11):
        images = torch.nn.functional.pad(batch.images, (0, extra, 0, extra))
        seen = replace(
            batch, images=images, padding=torch.nn.functional.pad(batch.padding, (0, extra, 0, extra), value=True)
        )
        answers.append(objective.answer(seen))
    for alone, padded in zip(*answers, strict=True):
        assert alone.segmentation is not None
        assert padded.segmentation is not None
        assert torch.equal(alone.segmentation.segments, padded.segmentation.segments)
        assert alone.masks is not None
        assert torch.equal(alone.masks, padded.masks)  # type: ignore[arg-type]


def test_the_truth_scores_one_and_stuff_is_not_in_ap(source: PanopticImages) -> None:
    figures = TASK.evaluator(source)
    figures.update(*perfect(source))
    results = figures.results()
    assert results["PQ"] == results["things"]["PQ"] == results["stuff"]["PQ"] == 1
    assert results["box"]["AP"] == pytest.approx(1)
    assert results["segm"]["AP"] == pytest.approx(1)
    assert set(results["segm"]["per_class"]) == set(CLASSES[:3])
    assert set(results["per_class"]) == set(CLASSES)
    assert TASK.headline in results


def test_a_thing_taken_for_another_costs_precision_and_quality(source: PanopticImages) -> None:
    found, batch = perfect(source)
    wrong = []
    for one in found:
        assert one.segmentation is not None
        labels = torch.where(one.labels < 3, (one.labels + 1) % 3, one.labels)
        told = torch.where(one.segmentation.labels < 3, (one.segmentation.labels + 1) % 3, one.segmentation.labels)
        wrong.append(replace(one, labels=labels, segmentation=replace(one.segmentation, labels=told)))
    figures = SegmentationFigures(source)
    figures.update(wrong, batch)
    results = figures.results()
    assert results["things"]["PQ"] == results["segm"]["AP"] == 0
    assert results["stuff"]["PQ"] == 1


def test_what_carries_no_masks_or_labels_is_refused(source: PanopticImages) -> None:
    found, batch = perfect(source)
    with pytest.raises(DataError, match="without masks"):
        SegmentationFigures(source).update([replace(one, masks=None) for one in found], batch)
    with pytest.raises(DataError, match="no labels"):
        SegmentationFigures(take_fraction(source, 0.5, 0))
    with pytest.raises(ConfigError, match="metric"):
        replace(TASK, metric="voc").evaluator(source)


@pytest.mark.parametrize("recipe", [r50_boxes, r50, tiny_boxes, tiny])
def test_recipes_are_sound_and_can_be_written_down(recipe: Any, tmp_path: Path) -> None:
    run = override(recipe(), {"data.train": ("panoptic:a.json",), "detector.backbone.weights": "none"})
    check(run)
    (tmp_path / "run.toml").write_text(dumps(run))
    assert load(type(run), tmp_path / "run.toml") == run
    assert pickle.loads(pickle.dumps(run)) == run


SMALL: dict[str, object] = {"data.batch_size": 3, "device": "cpu", "checkpoint.every_steps": 2}


@pytest.fixture(scope="module")
def boxes(place: Path) -> ssldet.Trained:
    spec = f"panoptic:{place}/set/panoptic.json"
    small = {**SMALL, "detector.num_queries": 7, "detector.width": 16, "detector.feedforward": 24}
    return ssldet.finetune("scratch", spec, recipe="panoptic/tiny-boxes", steps=2, out=place / "boxes", overrides=small)


@pytest.fixture(scope="module")
def trained(boxes: ssldet.Trained, place: Path) -> ssldet.Trained:
    spec = f"panoptic:{place}/set/panoptic.json"
    changes = {**SMALL, "task.least_score": 0.0}
    return boxes.finetune(spec, val=spec, recipe="panoptic/tiny", steps=2, out=place / "masks", overrides=changes)


def test_masks_are_put_on_top_of_boxes(boxes: ssldet.Trained, trained: ssldet.Trained) -> None:
    rows = json.loads((trained.path / "transfer.json").read_text())["rows"]
    assert {row["section"] for row in rows if row["outcome"] != "loaded"} == {"mask_head"}
    assert {row["outcome"] for row in rows if row["section"] == "mask_head"} == {"fresh"}
    old, new = boxes.detector().state_dict(), trained.detector().state_dict()
    assert all(torch.equal(new[name], value) for name, value in old.items())
    assert trained.run.task.stuff == (3, 4)  # type: ignore[attr-defined]
    assert 0 <= trained.results["PQ"] <= 1
    assert sorted(path.name for path in (trained.path / "previews").glob("*.png"))


def test_results_do_not_depend_on_the_batch_and_can_be_scored_again(trained: ssldet.Trained, place: Path) -> None:
    spec, path = f"panoptic:{place}/set/panoptic.json", place / "saved.json"
    alone = trained.evaluate(spec, workers=0, batch_size=1, save_predictions=path)
    together = trained.evaluate(spec, workers=0, batch_size=4)
    assert together["per_class"] == trained.results["per_class"]
    for name in ("PQ", "SQ", "RQ"):
        assert together[name] == pytest.approx(alone[name], abs=1e-6)
    for name in ("box", "segm"):
        assert together[name]["AP"] == pytest.approx(alone[name]["AP"], abs=1e-6)
    with pytest.raises(ConfigError, match=r"call the file .*saved.json"):
        trained.evaluate(spec, workers=0, save_predictions=path.with_suffix(""))
    scored = ssldet.evaluate(None, spec, predictions=path)
    assert scored == {name: alone[name] for name in scored}


def test_true_segments_are_never_replaced(trained: ssldet.Trained, place: Path, tmp_path: Path) -> None:
    spec, truth = f"panoptic:{place}/set/panoptic.json", tmp_path / "truth"
    document = json.loads((place / "set" / "panoptic.json").read_text())
    truth.mkdir()
    for entry in document["annotations"]:
        (truth / f"{entry['image_id']}.png").write_bytes((place / "set" / "panoptic" / entry["file_name"]).read_bytes())
    before = {path: path.read_bytes() for path in truth.iterdir()}
    with pytest.raises(ConfigError, match=r"ssldet did not draw it, and so do 5 more; name another file"):
        trained.evaluate(spec, workers=0, save_predictions=tmp_path / "truth.json")
    assert {path: path.read_bytes() for path in truth.iterdir()} == before
    (tmp_path / "stripped.json").write_text(json.dumps({"annotations": document["annotations"]}))
    with pytest.raises(ConfigError, match="exists, and holds no results"):
        trained.evaluate(spec, workers=0, save_predictions=tmp_path / "stripped.json")
    for _ in range(2):
        trained.evaluate(spec, workers=0, save_predictions=tmp_path / "ours.json")


def test_predictions_are_pictures_and_panoptic_results(trained: ssldet.Trained, place: Path) -> None:
    answer = trained.predict(str(place / "set" / "images"), out=place / "seen")
    assert answer["images"] == 6
    document = json.loads((place / "seen" / "panoptic.json").read_text())
    assert len(document["annotations"]) == 6
    for entry in document["annotations"]:
        sizes = {segment["id"]: segment["area"] for segment in entry["segments_info"]}
        pixels = read_ids(place / "seen" / "panoptic" / entry["file_name"], sizes)
        assert {n: int((pixels == n).sum()) for n in sizes} == sizes
        assert all(segment["category"] in CLASSES for segment in entry["segments_info"])
    assert len(list((place / "seen").glob("*.png"))) == 6


def test_things_alone_are_instance_segmentation(boxes: ssldet.Trained, place: Path) -> None:
    spec, path = f"coco:{place}/set/instances.json", place / "things.json"
    run = boxes.finetune(spec, val=spec, recipe="panoptic/tiny", steps=1, out=place / "things", overrides=SMALL)
    assert run.run.task.stuff == ()  # type: ignore[attr-defined]
    measured = run.evaluate(spec, workers=0, save_predictions=path)
    assert "PQ" not in measured
    scored = ssldet.evaluate(None, spec, predictions=path)
    assert scored["segm"]["AP50"] == pytest.approx(measured["segm"]["AP50"], abs=1e-9)
    assert scored["AP"] == pytest.approx(measured["AP"], abs=1e-9)


def test_a_segmentation_is_drawn_whatever_its_size() -> None:
    from ssldet.report.pictures import colour_of, draw_segmentation

    image = torch.full((3, 40, 60), 128, dtype=torch.uint8)
    segments = torch.zeros(20, 30, dtype=torch.int64)
    segments[:, 10:], segments[10:, 20:] = 1, 2
    picture = draw_segmentation(image, Segmentation(segments=segments, labels=torch.tensor([4, 0])), classes=CLASSES)
    assert picture.size == (720, 480)
    for spot, label in (((300, 20), 4), ((690, 465), 0)):
        expected = tuple((128 + side) // 2 for side in colour_of(label))
        assert all(abs(a - b) <= 1 for a, b in zip(picture.getpixel(spot), expected, strict=True))
    assert picture.getpixel((10, 10)) == (128, 128, 128)
    empty = Segmentation(segments=torch.zeros(4, 4, dtype=torch.int64), labels=torch.zeros(0, dtype=torch.int64))
    assert set(np.asarray(draw_segmentation(image, empty)).ravel().tolist()) == {128}
