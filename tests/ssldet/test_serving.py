"""The page on which a model answers images: what it computes, and, where Gradio is installed, the page itself."""

import importlib.util
import json
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from downstream.detection import Detection
from downstream.export.safetensors import export
from pretext.random_query_patch import RandomQueryPatch
from ssldet import serving
from ssldet.errors import ConfigError, DataError, SetupError
from ssldet.recipe import to_document
from ssldet.serving import Served, drawn_over, rows_of
from ssldet.types import Detections
from ssldet.verbs.opening import open_answering
from tests.models import TINY_DETR

FOUND = Detections(
    boxes=torch.tensor([[1.0, 2.0, 11.0, 22.0], [0.0, 0.0, 5.0, 5.0], [3.0, 3.0, 9.0, 9.0]]),
    scores=torch.tensor([0.6, 0.9, 0.2]),
    labels=torch.tensor([0, 1, 0]),
)


def written(task, folder: Path) -> Path:
    info = {"task": to_document(task), "detector": to_document(TINY_DETR), "classes": list("abcd"), "category_ids": []}
    if isinstance(task, RandomQueryPatch):
        info["classes"] = []
    export(task.objective(TINY_DETR.build()).eval(), info, folder / "model.safetensors")
    return folder / "model.safetensors"


def test_the_table_is_sorted_and_shows_what_is_wanted() -> None:
    assert rows_of(FOUND, ("cat", "dog"), 0.5, ["cat", "dog"]) == [
        ["dog", 0.9, 0, 0, 5, 5],
        ["cat", 0.6, 1, 2, 10, 20],
    ]
    assert rows_of(FOUND, ("cat", "dog"), 0.1, ["cat"])[1] == ["cat", 0.2, 3, 3, 6, 6]


def test_a_patch_is_what_strokes_enclose() -> None:
    layer = np.zeros((20, 30, 4), np.uint8)
    assert drawn_over([]) is None
    assert drawn_over([layer]) is None
    layer[5, 7:12, 3] = 255
    other = np.zeros_like(layer)
    other[9, 3, 3] = 1
    assert drawn_over([layer, other]) == (3, 5, 12, 10)


def test_images_and_patches_are_answered(tmp_path: Path) -> None:
    image = torch.randint(0, 255, (3, 40, 60), dtype=torch.uint8)
    finder = Served(open_answering(written(Detection(scales=(64,), eval_scale=64, max_size=96), tmp_path)), "cpu")
    assert len(finder.answer(image)) == TINY_DETR.num_queries
    with pytest.raises(DataError, match="too small or too thin"):
        finder.answer(image[:, :5])
    (tmp_path / "patches").mkdir()
    task = RandomQueryPatch(num_patches=2, patch_size=32, eval_side=64, longest_side=96, image_sides=(64,))
    asked = Served(open_answering(written(task, tmp_path / "patches")), "cpu")
    assert asked.finds_patches
    assert asked.classes == ("patch",)
    assert set(asked.answer(image, image[:, 10:20, 10:30]).labels.tolist()) == {0}


def test_without_gradio_its_remedy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"pip install 'ssldet\[app\]'"):
        serving.serve(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed")
@pytest.mark.filterwarnings("ignore")
def test_the_page_answers_on_this_machine_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="ssldet")
    start = written(Detection(scales=(64,), eval_scale=64, max_size=96), tmp_path)
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "image.png")
    close = serving.serve(start, port=0, wait=False, device="cpu")
    try:
        address = caplog.text.partition(" answers at ")[2].split("/ ")[0].split(" ")[0].rstrip("/")
        assert address.startswith("http://127.0.0.1:")
        config = json.load(urllib.request.urlopen(f"{address}/config"))
        assert config["analytics_enabled"] is False
        assert {"slider", "checkboxgroup", "dataframe", "image"} <= {part["type"] for part in config["components"]}
    finally:
        close()
    with pytest.raises(ConfigError, match="neither finds classes nor patches"):
        serving.serve(unnamed(tmp_path), port=0, wait=False)


def unnamed(folder: Path) -> Path:
    (folder / "unnamed").mkdir()
    task = Detection(scales=(64,), eval_scale=64, max_size=96)
    info = {"task": to_document(task), "detector": to_document(TINY_DETR), "classes": [], "category_ids": []}
    export(task.objective(TINY_DETR.build()).eval(), info, folder / "unnamed" / "model.safetensors")
    return folder / "unnamed" / "model.safetensors"
