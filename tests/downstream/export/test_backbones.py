import json
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import load_file
from torchvision import models

from downstream.detection import Detection
from downstream.export import timm as to_timm
from downstream.export import torchvision as to_torchvision
from ssldet.detectors.detr import DETRConfig
from ssldet.errors import CheckpointError, ConfigError
from ssldet.nn.backbones import BackboneConfig, calibrate, original_state
from ssldet.recipe import to_document

SMALL = DETRConfig(num_classes=2, num_queries=12, width=24, heads=4, encoder_layers=1, decoder_layers=1, feedforward=40)


def built(name, **choices):
    """An objective with statistics that are not those of fresh norms, and what is known of it."""
    config = replace(SMALL, backbone=BackboneConfig(name=name, **choices))
    objective = Detection().objective(config.build())
    calibrate(objective.detector.backbone, torch.randn(2, 3, 64, 64))
    return objective, {"detector": to_document(config)}


@pytest.mark.parametrize("choices", [{}, {"frozen_norm": False}])
def test_torchvision_loads_everything_but_the_classifier(tmp_path, choices):
    objective, info = built("resnet18", **choices)
    out = tmp_path / "backbone.pth"
    report = to_torchvision.export(objective.train(), info, out)
    assert (report.equal, report.tensors, report.size) == (120, 120, out.stat().st_size)
    assert report.parameters == sum(value.numel() for value in original_state(objective.detector.backbone).values())
    assert report.difference <= 1e-5
    assert objective.detector.backbone.training
    missing, unknown = models.resnet18().load_state_dict(torch.load(out, weights_only=True), strict=False)
    assert (missing, unknown) == (["fc.weight", "fc.bias"], [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backbone.pth", "backbone.pth.md"]


def test_dilation_goes_to_torchvision_and_is_said(tmp_path, caplog):
    caplog.set_level("INFO")
    objective, info = built("resnet50", output_stride=16)
    assert to_torchvision.export(objective, info, tmp_path / "backbone.pth").difference <= 1e-5
    assert "replace_stride_with_dilation" in caplog.text
    assert "has no fc.weight, fc.bias" in caplog.text


@pytest.mark.parametrize("name", ["timm/resnet18", "timm/convnext_atto", "timm/vit_tiny_patch16_224"])
def test_timm_builds_its_own_model_of_the_folder(tmp_path, name, caplog):
    caplog.set_level("INFO")
    objective, info = built(name)
    out = tmp_path / "deep" / "backbone"
    report = to_timm.export(objective, info, out)
    backbone = objective.detector.backbone
    assert report.equal == report.tensors == len(original_state(backbone))
    assert report.difference <= 1e-5
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert json.loads((out / "config.json").read_text())["architecture"] == name.removeprefix("timm/")
    model = timm.create_model(f"local-dir:{out}", pretrained=True, num_classes=0)
    own = original_state(backbone)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in own.items())
    assert set(load_file(out / "model.safetensors")) == set(own) | set(backbone.pruned)
    assert all(part in caplog.text for part in backbone.pruned)


def test_a_resnet_of_torchvisions_is_one_of_timms_too(tmp_path):
    objective, info = built("resnet18")
    report = to_timm.export(objective, info, tmp_path / "backbone")
    assert report.equal == report.tensors == 120
    assert report.difference <= 1e-5
    model = timm.create_model(f"local-dir:{tmp_path / 'backbone'}", pretrained=True, num_classes=0)
    own = objective.detector.backbone.body.state_dict()
    assert torch.equal(model.state_dict()["layer4.1.conv2.weight"], own["layer4.1.conv2.weight"])


def test_dilation_is_remembered_by_the_folder(tmp_path):
    objective, info = built("timm/resnet18", output_stride=16)
    to_timm.export(objective, info, tmp_path / "backbone")
    model = timm.create_model(f"local-dir:{tmp_path / 'backbone'}", pretrained=True, num_classes=0)
    assert model.forward_features(torch.zeros(1, 3, 64, 64)).shape[-2:] == (4, 4)


@pytest.mark.parametrize(
    ("exporter", "name", "words"),
    [
        (to_torchvision, "tiny", "'tiny' is none of torchvision's"),
        (to_torchvision, "timm/resnet18", "goes --to timm"),
        (to_timm, "tiny", "can't hold the backbone 'tiny'"),
        (to_timm, "mobilenet_v3_small", "goes --to torchvision"),
    ],
)
def test_networks_of_others_are_refused(tmp_path, exporter, name, words):
    objective, info = built(name)
    with pytest.raises(CheckpointError, match=words):
        exporter.export(objective, info, tmp_path / "backbone")
    assert list(tmp_path.iterdir()) == []


def test_another_network_under_the_same_name_is_not_written(tmp_path, monkeypatch):
    objective, info = built("resnet18")
    relu = objective.detector.backbone.body.relu
    monkeypatch.setattr(relu, "forward", lambda features: features.relu() + 1e-3)
    with pytest.raises(CheckpointError, match=r"not the same model .*120/120 tensors"):
        to_torchvision.export(objective, info, tmp_path / "backbone.pth")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path):
    objective, info = built("timm/resnet18")
    with pytest.raises(ConfigError, match="exists already"):
        to_timm.export(objective, info, tmp_path)
