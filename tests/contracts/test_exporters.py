"""Every registered exporter under every law, and laws that notice when they are broken."""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from downstream.detection import Detection
from downstream.export.detr import export as export_detr
from ssldet import testing
from ssldet.nn.backbones import BackboneConfig
from ssldet.recipe import to_document
from ssldet.registry import find, names
from ssldet.task import Objective
from ssldet.testing import exporters as laws
from tests.models import SMALL_DEFORMABLE_DETR, SMALL_DETR

ROOT = Path(__file__).parents[2]
TASK = Detection(eval_scale=96, max_size=160, scales=(64, 96))
CONFIG = replace(SMALL_DETR, pre_norm=False)
INFO = {
    "task": to_document(TASK),
    "detector": to_document(CONFIG),
    "classes": ["owl", "bat", "hen", "emu", "jay"],
    "category_ids": [3, 5, 7, 8, 9],
}
OUT = {
    "safetensors": "model.safetensors",
    "onnx": "model.onnx",
    "onnx-int8": "model.onnx",
    "openvino": "model",
    "huggingface": "model",
    "timm": "model",
}
"""Name of what an exporter writes, where it is not `model.pth`."""
DETECTORS = {
    "deformable_detr": replace(
        SMALL_DEFORMABLE_DETR, backbone=BackboneConfig(name="resnet50"), refine_boxes=True, two_stage=True
    )
}
"""Detector of an exporter that does not write every DETR."""
GRAPHS = ("onnx", "onnx-int8", "openvino")
"""Those that trace the detector."""
PARTIAL = {*GRAPHS, "timm", "torchvision", "detectron2-backbone"}
"""Those that write a backbone alone, or a graph."""


def case_of(exporter: Any, name: str = "") -> testing.ExportCase:
    config = DETECTORS.get(name, CONFIG)
    objective = TASK.objective(config.build()).eval()
    out, whole = OUT.get(name, "model.pth"), name not in PARTIAL
    info = INFO | {"detector": to_document(config)}
    return testing.ExportCase(exporter=exporter, objective=objective, info=info, out=out, whole=whole)


@pytest.mark.parametrize("law", testing.EXPORT_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", [name for name in names("ssldet.exporters") if name not in GRAPHS])
def test_an_exporter_keeps_the_law(name: str, law: testing.ExportLaw) -> None:
    law(case_of(find("ssldet.exporters", name), name))


IN_ITS_OWN_PROCESS = """
import importlib.util, shutil, tempfile
from pathlib import Path
from downstream.export import onnx, openvino
from tests.contracts.test_exporters import case_of
from ssldet.testing import check_exporter

kept = Path(tempfile.mkdtemp(), "traced.onnx")

def trace_once(answering, info, path, write=onnx.write_graph):
    if not kept.exists():
        write(answering, info, kept)
    shutil.copy(kept, path)

case = case_of(None, "onnx")
check_exporter("onnx", case.objective, case.info, case.out, whole=case.whole)
onnx.write_graph = openvino.write_graph = trace_once
for name in ("onnx-int8", "openvino"):
    if name != "openvino" or importlib.util.find_spec(name):
        check_exporter(name, case.objective, case.info, case_of(None, name).out, whole=False)
shutil.rmtree(kept.parent)
"""


@pytest.mark.slow
def test_the_exporters_of_graphs_keep_all_laws() -> None:
    """The shape checks of the tests would take part in the graph."""
    command = [sys.executable, "-c", IN_ITS_OWN_PROCESS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


def test_all_laws_run_by_the_name_of_an_exporter() -> None:
    case = case_of(export_detr)
    testing.check_exporter("detr", case.objective, case.info, case.out)


def plain(objective: Objective, info: Mapping[str, Any], out: Path) -> Any:
    """Write without proof, over whatever is there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(objective.state_dict(), out)
    return object()


def named_first(objective: Objective, info: Mapping[str, Any], out: Path) -> Any:
    """Write under the name itself, then prove, and remove it if the proof fails."""
    plain(objective, info, out)
    elsewhere = out.with_name("elsewhere.pth")
    report = export_detr(objective, info, elsewhere)
    shutil.copy(elsewhere, out)
    return report


def leaves_scraps(objective: Objective, info: Mapping[str, Any], out: Path) -> Any:
    (out.parent / "scrap").write_bytes(b"half a model")
    return export_detr(objective, info, out)


def stays_in_evaluation(objective: Objective, info: Mapping[str, Any], out: Path) -> Any:
    return export_detr(objective.eval(), info, out)


def rounds(objective: Objective, info: Mapping[str, Any], out: Path) -> Any:
    objective.detector.class_head.bias.data += 0.5
    return export_detr(objective, info, out)


def forgets(objective: Objective, info: Mapping[str, Any], out: Path) -> Any:
    return export_detr(objective, {**info, "category_ids": [0, 1, 2, 3, 4]}, out)


def of_another(objective: Objective, info: Mapping[str, Any], out: Path) -> Any:
    other = TASK.objective(CONFIG.build()).eval()
    return export_detr(other, info, out)


@pytest.mark.parametrize(
    ("exporter", "law", "said"),
    [
        (lambda *_: None, laws.it_writes_and_reports, "no model.pth was written"),
        (plain, laws.it_writes_and_reports, "an? object, has no `to_json`"),
        (plain, laws.it_overwrites_nothing, "a name that was taken is not refused"),
        (leaves_scraps, laws.it_overwrites_nothing, "there is now .*'scrap'"),
        (plain, laws.it_proves_before_it_names, "nothing is compared"),
        (named_first, laws.it_proves_before_it_names, "had its name before"),
        (plain, laws.it_refuses_what_it_cannot_prove, "the proof does not count"),
        (leaves_scraps, laws.it_refuses_what_it_cannot_prove, "leaves .*'scrap'.* behind"),
        (stays_in_evaluation, laws.it_leaves_the_model_alone, "another mode"),
        (rounds, laws.it_leaves_the_model_alone, "weights of the model were changed"),
        (of_another, laws.it_comes_back, "other tensors"),
        (forgets, laws.it_comes_back, "category ids come back"),
        (find("ssldet.exporters", "torchvision"), laws.it_comes_back, "no importer recognises"),
    ],
)
def test_a_broken_exporter_is_noticed(exporter: Any, law: testing.ExportLaw, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        law(case_of(exporter))
