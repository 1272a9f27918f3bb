"""ONNX graphs of Deformable DETR and FP-DETR, traced in a process of their own like those of DETR."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch

from downstream.detection import Detection
from downstream.export.safetensors import export
from ssldet.nn.backbones import BackboneConfig
from ssldet.recipe import to_document
from ssldet.verbs.opening import open_model
from tests.models import SMALL_DEFORMABLE_DETR, SMALL_FP_DETR

SMALL = replace(SMALL_DEFORMABLE_DETR, encoder_layers=1, decoder_layers=2, num_queries=40)
KINDS = {
    "plain": SMALL,
    "two stages, same padding": replace(
        SMALL,
        backbone=BackboneConfig(name="timm/tf_efficientnet_lite0"),
        extra_levels=0,
        refine_boxes=True,
        two_stage=True,
        proposal_overlap=0.5,
    ),
    "fp_detr": replace(SMALL_FP_DETR, encoder_layers=1, joined_layers=2),
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_answers_for_any_number_and_size_of_images(kind: str, tmp_path: Path) -> None:
    config = KINDS[kind]
    objective = Detection().objective(config.build()).eval()
    with torch.no_grad():
        for name, parameter in objective.detector.named_parameters():
            if not name.startswith("backbone"):
                parameter.add_(torch.randn_like(parameter) * 0.03)
    info = {"task": to_document(Detection()), "detector": to_document(config), "classes": [*"abcde"]}
    export(objective, info | {"category_ids": [1, 2, 3, 4, 5]}, tmp_path / "model.safetensors")
    detector = open_model(tmp_path / "model.safetensors").objective.detector
    command = [sys.executable, "-m", "ssldet", "export", str(tmp_path / "model.safetensors"), "--to", "onnx", "--json"]
    command += ["--out", str(tmp_path / "model.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr
    assert 0 < json.loads(done.stdout)["difference"] <= 1e-3
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    known = session.get_modelmeta().custom_metadata_map
    assert (known["ssldet.class_scores"], known["ssldet.most_detections"]) == ('"sigmoid"', "100")
    for batch, height, width in ((1, 64, 64), (3, 133, 199), (2, 40, 250)):
        images, padding = torch.rand(batch, 3, height, width), torch.zeros(batch, height, width, dtype=torch.bool)
        padding[0, :, width // 2 :] = True
        with torch.no_grad():
            ours = detector(detector.normalise(images, padding), padding)
        logits, boxes = session.run(["logits", "boxes"], {"images": images.numpy(), "padding": padding.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), ours.logits[-1], atol=1e-3, rtol=0)
        torch.testing.assert_close(torch.from_numpy(boxes), ours.boxes[-1], atol=1e-3, rtol=0)
