"""Deformable DETR on the whole road: pretrained on patches, fine-tuned, evaluated, looked with, handed on."""

import json
from pathlib import Path

import pytest
from PIL import Image

import ssldet
from downstream.annotations.shapes import write_shapes
from ssldet.detectors.deformable_detr import DeformableDETRConfig
from ssldet.nn.backbones import BackboneConfig
from ssldet.verbs.choosing import resolve

SMALL = {"data.batch_size": 4, "data.workers": 0}
STAGES = {
    "learned queries": {},
    "two stages": {"detector.refine_boxes": True, "detector.two_stage": True},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deformable")
    write_shapes(folder / "made", images=12, seed=3)
    return folder


@pytest.fixture(scope="module")
def labelled(place: Path) -> str:
    return f"coco:{place}/made/instances.json:{place}/made/images"


@pytest.fixture(scope="module", params=STAGES)
def pretrained(request: pytest.FixtureRequest, place: Path) -> ssldet.Trained:
    images, recipe = place / "made" / "images", "random_query_patch/deformable-tiny"
    out, changes = place / f"pre {request.param}", {**SMALL, **STAGES[request.param]}
    return ssldet.pretrain(images, recipe=recipe, val=images, steps=2, out=out, overrides=changes)


def test_patches_are_found_and_scored(pretrained: ssldet.Trained) -> None:
    assert {"patch_iou", "patch_iou_constant"} <= pretrained.results.keys()
    first = next(line for line in pretrained.metrics if line["kind"] == "train")
    assert any("proposal_class" in name for name in first) == ("proposals" in pretrained.detector().sections)


def test_the_detector_goes_on_from_patches_to_objects(
    pretrained: ssldet.Trained, labelled: str, tmp_path: Path
) -> None:
    recipe = "detection/deformable-tiny"
    fine = pretrained.finetune(labelled, recipe=recipe, steps=2, out=tmp_path / "fine", overrides=SMALL)
    rows = json.loads((fine.path / "transfer.json").read_text())["rows"]
    assert {row["section"] for row in rows if row["outcome"] in {"fresh", "reshaped"}} == {"class_head"}
    figures = ssldet.evaluate(fine.path, labelled, save_predictions=tmp_path / "found.json")
    assert figures["AP"] >= 0
    # 10 queries of 3 classes are 30 pairs, all of which are detections.
    assert len(json.loads((tmp_path / "found.json").read_text())) == 12 * 30
    Image.new("RGB", (70, 50), "grey").save(tmp_path / "image.png")
    looked = ssldet.predict(fine.path, str(tmp_path / "image.png"), out=tmp_path / "looked")
    assert len(looked["predictions"]) == 30
    assert len(list((tmp_path / "looked").glob("*.png"))) == 1
    report = ssldet.export(fine.path, to="safetensors", out=tmp_path / "model.safetensors")
    assert report.to_json()["difference"] == 0


def test_it_learns_one_shot_detection_and_finds_queries(
    pretrained: ssldet.Trained, labelled: str, place: Path, tmp_path: Path
) -> None:
    taught = pretrained.finetune(labelled, recipe="one_shot/tiny", steps=1, out=tmp_path / "one", overrides=SMALL)
    image = str(min((place / "made" / "images").iterdir()))
    found = ssldet.predict(taught.path, image, query=image, out=tmp_path / "found")["predictions"]
    assert len(found) == 10


@pytest.mark.parametrize(
    ("name", "refined", "two_stage", "drop"),
    [("coco-50", False, False, 40), ("refined-coco-50", True, False, 40), ("two-stage-coco-50", True, True, 40)],
)
def test_settings_are_those_of_the_authors(name: str, refined: bool, two_stage: bool, drop: float) -> None:
    run = resolve(f"detection/deformable-{name}")
    detector, optim, task = run.detector, run.optim, run.task
    assert isinstance(detector, DeformableDETRConfig)
    backbone = BackboneConfig(name="resnet50", weights="imagenet")
    assert detector == DeformableDETRConfig(backbone=backbone, refine_boxes=refined, two_stage=two_stage)
    assert (optim.lr, optim.lr_backbone, optim.lr_sampling_factor, optim.weight_decay) == (2e-4, 2e-5, 0.1, 1e-4)
    assert (optim.clip, run.data.batch_size, run.budget.epochs) == (0.1, 32, 50)
    assert optim.drops[0] * 50 == drop
    assert (task.class_weight, task.box_l1_weight, task.box_giou_weight) == (2, 5, 2)  # type: ignore[attr-defined]
