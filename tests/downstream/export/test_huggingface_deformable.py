"""Deformable DETR as a folder of transformers, offline: written, answered there alike, read back bit for bit."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from downstream.detection import Detection
from downstream.export.huggingface import export
from downstream.export.proof import ExportReport
from ssldet.detectors.deformable_detr import DeformableDETRConfig
from ssldet.errors import CheckpointError
from ssldet.postprocess import detections
from ssldet.recipe import to_document
from ssldet.task import Objective
from ssldet.verbs.opening import open_model
from ssldet.weights.huggingface import detector_from_folder
from ssldet.weights.image_processor import Processor
from tests.models import SMALL_DEFORMABLE_DETR

CLASSES = ["dog", "", "traffic light", "überbau", "emu"]
KINDS = {
    "plain": SMALL_DEFORMABLE_DETR,
    "refined": replace(SMALL_DEFORMABLE_DETR, refine_boxes=True),
    "two stages": replace(SMALL_DEFORMABLE_DETR, refine_boxes=True, two_stage=True),
    "one level": replace(SMALL_DEFORMABLE_DETR, backbone_levels=1, extra_levels=0),
}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    library: Any = pytest.importorskip("transformers", reason="transformers is not installed")
    library.utils.logging.disable_progress_bar()


def write(config: DeformableDETRConfig, out: Path) -> tuple[Objective, ExportReport]:
    objective = Detection().objective(config.build())
    with torch.no_grad():
        for name, parameter in objective.detector.named_parameters():
            if not name.startswith("backbone"):
                parameter.add_(torch.randn_like(parameter) * 0.03)
    info = {"detector": to_document(config), "task": to_document(Detection(eval_scale=96, max_size=800))}
    return objective, export(objective, info | {"classes": CLASSES}, out)


@pytest.mark.parametrize("kind", KINDS)
def test_what_we_write_transformers_answers_alike_and_we_read_bit_for_bit(kind: str, tmp_path: Path) -> None:
    config, out = KINDS[kind], tmp_path / "model"
    objective, report = write(config, out)
    assert report.equal == report.tensors == len(objective.detector.state_dict())
    assert 0 < report.difference < 1e-4
    found = detector_from_folder(out)
    assert found.config == config
    assert found.classes == tuple(CLASSES)
    assert found.processor == Processor(short_side=96, long_side=800)
    opened = open_model(out)
    assert opened.task == Detection(eval_scale=96, max_size=800, eval_rule="transformers")


def test_a_folder_that_transformers_wrote_is_read_whatever_it_leaves_out(tmp_path: Path) -> None:
    import transformers

    _, _ = write(KINDS["refined"], tmp_path / "ours")
    model = transformers.DeformableDetrForObjectDetection.from_pretrained(tmp_path / "ours", local_files_only=True)
    model.save_pretrained(tmp_path / "theirs")
    first, again = (detector_from_folder(tmp_path / name) for name in ("ours", "theirs"))
    assert again.config == first.config
    images = torch.randn(1, 3, 64, 96)
    one, other = first.detector.eval()(images), again.detector.eval()(images)
    torch.testing.assert_close(one.boxes, other.boxes, atol=1e-5, rtol=0)
    torch.testing.assert_close(one.logits[-1], other.logits[-1], atol=1e-5, rtol=0)


def test_transformers_makes_the_same_detections_of_them(tmp_path: Path) -> None:
    import transformers

    # 40 queries of 5 classes are twice as many pairs as there may be detections.
    config, sizes = replace(SMALL_DEFORMABLE_DETR, num_queries=40), torch.tensor([[480, 643], [200, 150]])
    objective, _ = write(config, tmp_path / "model")
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path / "model")
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        predictions = objective.detector.eval()(images)
    outputs = SimpleNamespace(logits=predictions.logits[-1], pred_boxes=predictions.boxes[-1])
    wanted = theirs.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)
    for ours, other in zip(detections(predictions, sizes), wanted, strict=True):
        assert len(ours) == len(other["scores"]) == 100
        assert torch.equal(ours.scores, other["scores"])
        assert torch.equal(ours.labels, other["labels"])
        torch.testing.assert_close(ours.boxes, other["boxes"], atol=1e-3, rtol=1e-6)


def test_halves_of_different_models_are_refused(tmp_path: Path) -> None:
    write(KINDS["plain"], tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(document | {"encoder_n_points": 7}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="encoder_n_points=7, the tensors 2"):
        detector_from_folder(tmp_path / "model")


def test_what_transformers_can_not_hold_is_told(tmp_path: Path) -> None:
    config = replace(
        SMALL_DEFORMABLE_DETR, pre_norm=True, backbone_levels=2, refine_boxes=True, two_stage=True, proposal_overlap=0.5
    )
    with pytest.raises(CheckpointError, match=r"pre_norm=false; .*proposal_overlap=1; .*backbone_levels=3"):
        write(config, tmp_path / "model")
    assert not list(tmp_path.iterdir())
