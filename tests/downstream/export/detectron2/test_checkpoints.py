from dataclasses import replace

import pytest
import torch
import yaml

from downstream.detection import Detection
from downstream.export.detectron2 import checkpoints, loading
from downstream.export.detectron2.building import read_sidecar
from downstream.export.detectron2.checkpoints import export, export_backbone, export_detr
from pretext.random_query_patch import RandomQueryPatch
from ssldet.detectors.detr import DETRConfig
from ssldet.errors import CheckpointError, ConfigError
from ssldet.nn.backbones import BackboneConfig
from ssldet.recipe import to_document
from ssldet.verbs.opening import open_model
from tests.models import SMALL_DEFORMABLE_DETR, SMALL_DETR

TASK = Detection(eval_scale=96)
INFO = {
    "task": to_document(TASK),
    "detector": to_document(SMALL_DETR),
    "classes": ["owl", "bat", "hen", "emu", "jay"],
    "category_ids": [1, 3, 4, 7, 9],
}


@pytest.fixture(autouse=True)
def without_detectron2(monkeypatch):
    """Here the recorded names and shapes prove; where detectron2 is installed, an export asks it as well."""
    monkeypatch.setattr(loading, "installed", lambda: False)
    monkeypatch.setattr(checkpoints, "installed", lambda: False)


@pytest.fixture
def objective():
    torch.manual_seed(0)
    return TASK.objective(SMALL_DETR.build())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("write", [export, export_detr])
def test_a_file_goes_out_whole_and_opens_as_what_it_was(tmp_path, objective, write, suffix):
    out = tmp_path / f"model{suffix}"
    report = write(objective, INFO, out)
    assert (report.equal, report.tensors, report.difference) == (163, 163, 0.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, f"{out.name}.md", "model.yaml"]
    opened = open_model(out)
    assert (opened.task, opened.classes) == (TASK, tuple(INFO["classes"]))
    ours = objective.detector.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in opened.objective.detector.state_dict().items())


def test_the_configuration_beside_it_says_what_detectron2_would_get_wrong(tmp_path, objective):
    export(objective, INFO, tmp_path / "model.pth")
    stated = yaml.safe_load((tmp_path / "model.yaml").read_text())
    assert stated["INPUT"]["FORMAT"] == "RGB"
    assert stated["MODEL"]["PIXEL_STD"] == pytest.approx([58.395, 57.12, 57.375])
    assert stated["MODEL"]["META_ARCHITECTURE"] == "SSLDet"
    assert read_sidecar(str(tmp_path / "model.pth"))["DETECTOR"]["num_queries"] == 12


def test_a_pretrained_model_takes_its_heads_along(tmp_path):
    task = RandomQueryPatch(num_patches=3)
    report = export(task.objective(SMALL_DETR.build()), INFO | {"task": to_document(task)}, tmp_path / "model.pth")
    assert report.tensors == 169
    assert open_model(tmp_path / "model.pth").task == task


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_backbone_has_the_names_of_detectron2s_resnet(tmp_path, objective, suffix):
    report = export_backbone(objective, INFO, tmp_path / f"backbone{suffix}")
    assert (report.equal, report.tensors, report.difference) == (100, 100, 0.0)
    if suffix == ".pth":
        document = torch.load(tmp_path / "backbone.pth", weights_only=True)
        assert (document["matching_heuristics"], document["__author__"]) == (True, "ssldet")
        assert "res2.0.conv1.norm.weight" in document["model"]


def test_a_tensor_that_got_lost_stops_the_export(tmp_path, objective, monkeypatch):
    whole = checkpoints.to_wrapper
    monkeypatch.setattr(checkpoints, "to_wrapper", lambda state: dict(list(whole(state).items())[1:]))
    with pytest.raises(CheckpointError, match="not what detectron2 expects"):
        export_detr(objective, INFO, tmp_path / "model.pth")
    assert list(tmp_path.iterdir()) == []


def test_other_suffixes_and_foreign_backbones_are_refused(tmp_path, objective):
    with pytest.raises(ConfigError, match=r"reads \.pth and \.safetensors; call it model\.pth"):
        export(objective, INFO, tmp_path / "model.pkl")
    config = DETRConfig(backbone=BackboneConfig(name="tiny"), width=24, heads=4)
    foreign = Detection().objective(config.build())
    with pytest.raises(CheckpointError, match="shares torchvision's resnets only"):
        export_backbone(foreign, {"detector": to_document(config)}, tmp_path / "model.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("write", [export, export_backbone])
def test_a_deformable_detr_goes_out_whole_and_its_backbone_alone(tmp_path, write, suffix):
    config = replace(SMALL_DEFORMABLE_DETR, refine_boxes=True, two_stage=True)
    objective, out = TASK.objective(config.build()), tmp_path / f"model{suffix}"
    report = write(objective, INFO | {"detector": to_document(config)}, out)
    assert (report.equal, report.difference) == (report.tensors, 0.0)
    if write is export:
        opened = open_model(out)
        assert opened.info["detector"] == to_document(config)
        ours = objective.detector.state_dict()
        assert all(torch.equal(ours[name], value) for name, value in opened.objective.detector.state_dict().items())
        assert read_sidecar(str(out))["DETECTOR"]["name"] == "deformable_detr"


def test_the_wrapper_of_detrs_authors_holds_no_deformable_detr(tmp_path):
    objective = TASK.objective(SMALL_DEFORMABLE_DETR.build())
    with pytest.raises(CheckpointError, match="is a DeformableDETR; only 'detr' can be written"):
        export_detr(objective, INFO | {"detector": to_document(SMALL_DEFORMABLE_DETR)}, tmp_path / "model.pth")
