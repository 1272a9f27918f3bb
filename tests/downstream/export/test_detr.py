import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from downstream.detection import Detection
from downstream.export.detr import export, unfit
from pretext.random_query_patch import RandomQueryPatch
from ssldet.detectors.detr import DETRConfig
from ssldet.errors import CheckpointError, ConfigError, SetupError
from ssldet.nn.backbones import BackboneConfig
from ssldet.recipe import to_document
from ssldet.verbs.opening import open_model
from ssldet.weights.detr import detector_from_file
from tests.models import SMALL_DETR


@pytest.fixture
def objective():
    return Detection().objective(SMALL_DETR.build())


def test_the_file_is_plain_and_proven(tmp_path, objective):
    out = tmp_path / "deep" / "model.pth"
    report = export(objective, {}, out)
    assert (report.equal, report.tensors, report.difference, report.size) == (163, 163, 0.0, out.stat().st_size)
    assert str(report).endswith("163/163 tensors, 11,218,594 parameters, max |Δ| 0.0e+00")
    assert report.to_json()["out"] == str(out)
    document = torch.load(out, weights_only=True)
    assert document["args"]["nheads"] == 4
    assert document["args"]["pre_norm"] is True
    assert document["model"]["query_embed.weight"].shape == (12, 24)
    assert len(document["model"]) == 163
    assert sorted(path.name for path in out.parent.iterdir()) == ["model.pth", "model.pth.md"]


def test_a_training_objective_stays_in_training(tmp_path, objective):
    export(objective.train(), {}, tmp_path / "model.pth")
    assert objective.detector.training


def test_a_pretrained_model_takes_its_heads_along(tmp_path):
    objective = RandomQueryPatch(num_patches=3).objective(SMALL_DETR.build())
    export(objective, {}, tmp_path / "model.pth")
    loaded = detector_from_file(tmp_path / "model.pth", objective.detr_names)
    assert len(torch.load(tmp_path / "model.pth", weights_only=True)["model"]) == 169
    assert torch.equal(loaded.heads["patch_queries.projection.weight"], objective.patch_queries.projection.weight)


def test_the_file_opens_as_the_task_and_with_the_classes_it_had(tmp_path):
    names = ["owl", "bat", "hen", "emu", "jay"]
    for task in (Detection(eval_scale=96, scales=(64, 96)), RandomQueryPatch(num_patches=3)):
        out = tmp_path / f"{type(task).__name__}.pth"
        info = {"task": to_document(task), "classes": names, "category_ids": [3, 5, 7, 8, 9], "data": "private"}
        export(task.objective(SMALL_DETR.build()), info, out)
        opened = open_model(out)
        assert (opened.task, opened.classes, opened.info["category_ids"]) == (task, tuple(names), [3, 5, 7, 8, 9])
        assert "private" not in str(torch.load(out, weights_only=True)["args"])


def test_a_file_without_the_heads_of_its_task_opens_as_a_detector(tmp_path, objective):
    objective.probe = nn.Linear(2, 3)
    export(objective, {"task": to_document(RandomQueryPatch()), "classes": ["owl"]}, tmp_path / "model.pth")
    assert isinstance(open_model(tmp_path / "model.pth").task, Detection)


def test_heads_of_other_tasks_stay_behind(tmp_path, objective):
    objective.mask_head = nn.Linear(2, 3)
    assert export(objective, {}, tmp_path / "model.pth").tensors == 163
    assert len(torch.load(tmp_path / "model.pth", weights_only=True)["model"]) == 163


MASKS = DETRConfig(
    backbone=BackboneConfig(name="resnet50"),
    num_classes=5,
    num_queries=5,
    width=128,
    heads=8,
    encoder_layers=1,
    decoder_layers=2,
    feedforward=64,
    pre_norm=False,
    masks=True,
)


@pytest.mark.parametrize("softmax", ["joint", "per_head"])
def test_masks_go_along_and_are_compared(tmp_path, softmax):
    objective = Detection().objective(replace(MASKS, mask_attention=softmax).build())
    report = export(objective, {}, tmp_path / "model.pth")
    assert (report.equal, report.difference) == (report.tensors, 0.0)
    document = torch.load(tmp_path / "model.pth", weights_only=True)
    assert document["args"]["masks"] is True
    # The authors' own program wrote these names and shapes for the same sizes.
    theirs = json.loads((Path(__file__).parents[2] / "oracles" / "detr-masks.json").read_text())["state"]
    assert {name: list(value.shape) for name, value in document["model"].items()} == theirs
    loaded = detector_from_file(tmp_path / "model.pth").detector
    assert loaded.mask_attention.softmax == softmax


def test_masks_that_answer_otherwise_are_not_written(tmp_path):
    objective = Detection().objective(MASKS.build())
    objective.detector.mask_attention.forward = lambda *_: torch.rand(2, 5, 8, 12)
    with pytest.raises(CheckpointError, match="not the same model"):
        export(objective, {}, tmp_path / "model.pth")


def test_masks_that_the_authors_code_has_no_place_for_are_named():
    small = replace(SMALL_DETR, masks=True, width=24, heads=4).build()
    reasons = " ".join(unfit(small))
    assert "detector.masks: DETR's mask head fits resnet50" in reasons
    assert "detector.width" in reasons
    assert unfit(MASKS.build()) == []


def test_dilation_is_remembered(tmp_path):
    config = replace(SMALL_DETR, backbone=BackboneConfig(name="resnet50", output_stride=16))
    export(Detection().objective(config.build()), {}, tmp_path / "model.pth")
    assert detector_from_file(tmp_path / "model.pth").config["backbone"]["output_stride"] == 16


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (replace(SMALL_DETR, normalise_features=True), "normalise_features"),
        (replace(SMALL_DETR, position_at_input=True), "position_at_input"),
        (replace(SMALL_DETR, backbone=BackboneConfig(name="tiny")), "backbone.name: DETR knows"),
        (replace(SMALL_DETR, backbone=BackboneConfig(name="resnet18", frozen_norm=False)), "backbone.frozen_norm"),
    ],
)
def test_what_the_format_cannot_hold_is_named(tmp_path, config, field):
    with pytest.raises(CheckpointError, match=f"can't hold this detector: detector.{field}"):
        export(Detection().objective(config.build()), {}, tmp_path / "model.pth")
    assert list(tmp_path.iterdir()) == []


def test_all_reasons_are_given_at_once():
    odd = replace(SMALL_DETR, normalise_features=True, position_at_input=True, backbone=BackboneConfig(name="tiny"))
    assert len(unfit(odd.build())) == 3


def test_nothing_is_overwritten(tmp_path, objective):
    out = tmp_path / "model.pth"
    out.write_bytes(b"dear to somebody")
    with pytest.raises(ConfigError, match="exists already"):
        export(objective, {}, out)
    assert out.read_bytes() == b"dear to somebody"


def test_a_copy_that_answers_otherwise_is_not_written(tmp_path, objective, monkeypatch):
    def read(path, heads):
        loaded = detector_from_file(path, heads)
        loaded.detector.class_head.bias.data[0] += 1e-3
        return loaded

    monkeypatch.setattr("downstream.export.detr.detector_from_file", read)
    with pytest.raises(CheckpointError, match=r"not the same model \(.*162/163 tensors, .*max \|Δ\| 1\.0e-03"):
        export(objective, {}, tmp_path / "model.pth")
    assert list(tmp_path.iterdir()) == []


def test_an_option_that_leaves_no_trace_shows_in_the_answers(tmp_path, objective):
    # Somebody's subclass computes something else with the same tensors.
    objective.detector.decoder.layers[0].pre_norm = False
    with pytest.raises(CheckpointError, match="not the same model"):
        export(objective, {}, tmp_path / "model.pth")


def test_a_model_that_answers_nan_is_not_written(tmp_path, objective):
    objective.detector.class_head.bias.data[0] = torch.nan
    with pytest.raises(CheckpointError, match="not finite"):
        export(objective, {}, tmp_path / "model.pth")


def test_a_full_disk_leaves_nothing_behind(tmp_path, objective, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("downstream.export.proof.write_whole", full)
    with pytest.raises(SetupError, match=r"can't be written .*No space left"):
        export(objective, {}, tmp_path / "model.pth")
    assert list(tmp_path.iterdir()) == []
