from dataclasses import replace

import pytest
import torch

from downstream.detection import Detection
from downstream.export.safetensors import export
from pretext.random_query_patch import RandomQueryPatch
from ssldet.detectors.detr import DETRConfig
from ssldet.engine.checkpoint import restore_objective
from ssldet.errors import CheckpointError, ConfigError
from ssldet.nn.backbones import BackboneConfig
from ssldet.recipe import to_document
from tests.models import SMALL_DETR

TINY = replace(
    SMALL_DETR, backbone=BackboneConfig(name="tiny", tiny_channels=(8, 16)), num_classes=2, normalise_features=True
)


def described(task):
    return {"task": to_document(task), "detector": to_document(TINY)}


@pytest.mark.parametrize("task", [Detection(), RandomQueryPatch(num_patches=3, patch_size=16)])
def test_what_was_written_builds_itself_again(tmp_path, task):
    objective, out = task.objective(TINY.build()), tmp_path / "model.safetensors"
    report = export(objective, described(task) | {"classes": ["cat", "dog"]}, out)
    assert (report.equal, report.difference) == (report.tensors, 0.0)
    restored, info = restore_objective(out)
    assert info["classes"] == ["cat", "dog"]
    assert all(torch.equal(value, restored.state_dict()[name]) for name, value in objective.state_dict().items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "model.safetensors.md"]


def test_nothing_is_overwritten(tmp_path):
    out = tmp_path / "model.safetensors"
    out.write_bytes(b"dear to somebody")
    with pytest.raises(ConfigError, match="exists already"):
        export(Detection().objective(TINY.build()), described(Detection()), out)
    assert out.read_bytes() == b"dear to somebody"


def test_a_header_that_describes_another_detector_is_not_written(tmp_path):
    other = {**described(Detection()), "detector": to_document(DETRConfig(backbone=TINY.backbone, num_classes=2))}
    with pytest.raises(CheckpointError, match="does not fit this detector"):
        export(Detection().objective(TINY.build()), other, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []
