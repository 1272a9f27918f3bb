"""ONNX graphs answer as the detector does, for any number and size of images.

They are traced in a process of their own: the shape checks of the tests would take part in the graph.
"""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import ssldet
from downstream.detection import Detection
from downstream.export import onnx
from downstream.export.answering import Answering, difference, in_order_of
from downstream.export.safetensors import export
from downstream.one_shot import OneShot
from ssldet.errors import CheckpointError, DataError, SetupError
from ssldet.nn.backbones import BackboneConfig
from ssldet.recipe import to_document
from ssldet.registry import find
from ssldet.showcase import SCENES
from ssldet.verbs.opening import open_answering
from ssldet.weights.files import read_state
from tests.models import SMALL_DETR

write_scenes = find("ssldet.datasets", "shapes")
TINY = replace(SMALL_DETR, num_classes=3, masks=True)
INFO = {
    "task": to_document(Detection(scales=(96,), eval_scale=96, max_size=160)),
    "detector": to_document(TINY),
    "classes": ["cat", "dog", "<yak>"],
    "category_ids": [3, 5, 8],
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("onnx")
    objective = Detection().objective(TINY.build()).eval()
    export(objective, INFO, folder / "model.safetensors")
    command = [sys.executable, "-m", "ssldet", "export", str(folder / "model.safetensors"), "--to", "onnx", "--json"]
    command += ["--out", str(folder / "model.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "model.onnx", objective.detector, json.loads(done.stdout), done.stderr


def ours_masks(detector, predictions) -> torch.Tensor:
    count, queries = predictions.logits.shape[1:3]
    every = torch.arange(count * queries)
    return detector.masks(predictions, every // queries, every % queries).unflatten(0, (count, queries))


def write_photo(path: Path, *, seed: int) -> Path:
    """Write a smooth picture, which looks the same after resizing by another library."""
    coarse = torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, (90, 130), mode="bilinear")[0]
    Image.fromarray((255 * smooth).byte().permute(1, 2, 0).numpy()).save(path)
    return path


@pytest.mark.slow
def test_a_graph_answers_for_any_number_and_size_of_images(exported) -> None:
    path, detector, report, _ = exported
    assert 0 < report["difference"] <= 1e-3
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch, height, width in ((1, 64, 64), (3, 133, 199), (2, 40, 250)):
        images = torch.rand(batch, 3, height, width)
        padding = torch.zeros(batch, height, width, dtype=torch.bool)
        padding[0, :, width // 2 :] = True
        with torch.no_grad():
            ours = detector(detector.normalise(images, padding), padding)
            masks = ours_masks(detector, ours)
        logits, boxes, drawn = session.run(None, {"images": images.numpy(), "padding": padding.numpy()})
        assert np.abs(masks.numpy() - drawn).max() < 1e-3
        assert np.abs(ours.logits[-1].numpy() - logits).max() < 1e-4
        assert np.abs(ours.boxes[-1].numpy() - boxes).max() < 1e-4


@pytest.mark.slow
def test_the_script_beside_the_graph_finds_what_predict_finds(exported, tmp_path: Path) -> None:
    path, *_ = exported
    photos = [write_photo(tmp_path / "a.png", seed=2), tmp_path / "deep.png", tmp_path / "transparent.png"]
    with Image.open(photos[0]) as photo:
        Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 200).save(photos[1])
        photo.putalpha(photo.convert("L").point(lambda grey: 255 if grey > 120 else 0))
        photo.save(photos[2])
    run = [sys.executable, str(path.with_suffix(".py")), *map(str, photos)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    ours = ssldet.predict(path.with_suffix(".safetensors"), [*map(str, photos)], out=tmp_path / "found", draw=False)[
        "predictions"
    ]
    assert len(found) == len(ours) == 3 * TINY.num_queries
    for theirs, row in zip(found, ours, strict=True):
        assert theirs["bbox"] == pytest.approx(row["bbox"], abs=0.2)
        assert theirs["score"] == pytest.approx(row["score"], abs=1e-3)
    known = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    resized = json.loads(known["ssldet.resize"])
    assert (resized["rule"], resized["short"], resized["max_size"]) == ("detr", 96, 160)
    assert "short side 96" in path.with_name("model.onnx.md").read_text()


@pytest.mark.slow
def test_the_graph_knows_its_classes_and_nothing_else_is_said(exported) -> None:
    path, _, _, said = exported
    known = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    assert json.loads(known["ssldet.classes"]) == ["cat", "dog", "<yak>"]
    assert json.loads(known["ssldet.category_ids"]) == [3, 5, 8]
    assert json.loads(known["ssldet.class_scores"]) == "softmax"
    assert "ssldet.most_detections" not in known
    assert said == ""
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "model.onnx",
        "model.onnx.md",
        "model.py",
        "model.safetensors",
        "model.safetensors.md",
    ]


@pytest.mark.slow
def test_predict_with_the_graph_finds_what_predict_with_its_model_finds(exported, tmp_path: Path) -> None:
    path, *_ = exported
    photos = [write_photo(tmp_path / f"{number}.png", seed=number) for number in range(2)]
    ours, theirs = (
        ssldet.predict(start, list(map(str, photos)), out=tmp_path / "found", draw=False)["predictions"]
        for start in (path.with_suffix(".safetensors"), path)
    )
    assert len(ours) == len(theirs) == 2 * TINY.num_queries
    for one, other in zip(ours, theirs, strict=True):
        assert (one["category_id"], one["image_id"]) == (other["category_id"], other["image_id"])
        assert one["category_id"] in INFO["category_ids"]
        assert other["bbox"] == pytest.approx(one["bbox"], abs=0.02)
        assert other["score"] == pytest.approx(one["score"], abs=1e-4)


@pytest.mark.slow
def test_the_graph_is_cut_into_tiles_like_its_model(exported, tmp_path: Path) -> None:
    path, *_ = exported
    photo = str(write_photo(tmp_path / "photo.png", seed=3))
    ours, theirs = (
        ssldet.predict(start, photo, out=tmp_path / "found", draw=False, tiles=64)["predictions"]
        for start in (path.with_suffix(".safetensors"), path)
    )
    assert len(ours) == len(theirs) > TINY.num_queries


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["finetune", "export", "load", "weights"])
def test_other_verbs_say_what_a_graph_can_do(exported, tmp_path: Path, verb: str) -> None:
    path, *_ = exported
    calls = {
        "finetune": lambda: ssldet.finetune(path, "coco:none.json:none", recipe="detection/tiny", out=tmp_path / "run"),
        "export": lambda: ssldet.export(path, to="safetensors", out=tmp_path / "model.safetensors"),
        "load": lambda: ssldet.load(path),
        "weights": lambda: read_state(path),
    }
    with pytest.raises(CheckpointError, match="is an exported graph, which answers and holds no weights") as told:
        calls[verb]()
    assert "ssldet predict and ssldet evaluate take it" in str(told.value)
    assert "\n" not in str(told.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_graph_that_can_not_answer_is_refused(exported, tmp_path: Path) -> None:
    import onnx as onnx_format

    path, *_ = exported
    model = onnx_format.load(path)
    stated = {entry.key: entry for entry in model.metadata_props}

    def opened(name: str) -> None:
        onnx_format.save(model, tmp_path / name)
        open_answering(tmp_path / name)

    stated["ssldet.task"].value = json.dumps(to_document(OneShot()))
    with pytest.raises(CheckpointError, match="taught to find patches, which a graph can't be given"):
        opened("patches.onnx")
    stated["ssldet.task"].value = "{"
    with pytest.raises(CheckpointError, match="its metadata make no sense"):
        opened("nonsense.onnx")
    del model.metadata_props[:]
    with pytest.raises(CheckpointError, match="ssldet did not write"):
        opened("foreign.onnx")
    (tmp_path / "cut.onnx").write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="is no ONNX graph that can run"):
        open_answering(tmp_path / "cut.onnx")


@pytest.mark.slow
def test_a_graph_that_states_sizes_alone_is_a_plain_detector(exported, tmp_path: Path) -> None:
    import onnx as onnx_format

    path, *_ = exported
    model = onnx_format.load(path)
    kept = [entry for entry in model.metadata_props if entry.key != "ssldet.task"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    onnx_format.save(model, tmp_path / "old.onnx")
    task = open_answering(tmp_path / "old.onnx").task
    assert (type(task), task.eval_rule, task.eval_scale, task.max_size) == (Detection, "detr", 96, 160)


@pytest.mark.slow
def test_a_graph_with_weights_of_8_bits_answers_almost_alike(exported, tmp_path: Path) -> None:
    path, *_ = exported
    onnx.round_weights(path, tmp_path / "small.onnx")
    assert (tmp_path / "small.onnx").stat().st_size < 0.6 * path.stat().st_size
    photo = str(write_photo(tmp_path / "photo.png", seed=4))
    ours, theirs = (
        ssldet.predict(start, photo, out=tmp_path / "found", draw=False)["predictions"]
        for start in (path, tmp_path / "small.onnx")
    )
    assert len(ours) == len(theirs) == TINY.num_queries
    scores, rounded = ([row["score"] for row in rows] for rows in (ours, theirs))
    assert scores != rounded
    assert rounded == pytest.approx(scores, abs=0.2)


@pytest.mark.slow
def test_a_graph_of_openvino_finds_what_its_model_finds(exported, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    from downstream.export import openvino
    from downstream.graphs import onnx_graph

    path, *_ = exported
    stated = {name: json.loads(value) for name, value in onnx_graph(path).metadata.items()}
    (tmp_path / "graph").mkdir()
    openvino.convert(path, stated, tmp_path / "graph")
    photos = [str(write_photo(tmp_path / f"{number}.png", seed=number)) for number in range(2)]
    ours, theirs = (
        ssldet.predict(start, photos, out=tmp_path / "found", draw=False)["predictions"]
        for start in (path.with_suffix(".safetensors"), tmp_path / "graph")
    )
    assert len(ours) == len(theirs) == 2 * TINY.num_queries
    for one, other in zip(ours, theirs, strict=True):
        assert one["category_id"] == other["category_id"]
        assert other["bbox"] == pytest.approx(one["bbox"], abs=0.02)
    (tmp_path / "graph" / "model.xml").write_text("<net")
    with pytest.raises(CheckpointError, match="holds no graph of OpenVINO that can run"):
        open_answering(tmp_path / "graph")


@pytest.mark.slow
def test_a_file_is_measured_beside_its_model(tmp_path: Path) -> None:
    write_scenes(tmp_path / "made", images=3, seed=5, **SCENES)
    data = f"coco:{tmp_path}/made/instances.json:{tmp_path}/made/images"
    start = tmp_path / "model.safetensors"
    export(Detection().objective(TINY.build()).eval(), INFO | {"classes": ["circle", "square", "star"]}, start)
    found = ssldet.export(start, to="safetensors", out=tmp_path / "copy.safetensors", data=data)
    assert found.before == found.after
    assert re.search(r"\nAP +0\.\d{4} -> 0\.\d{4}  \(\+0\.00 points\)\n", str(found))
    with pytest.raises(DataError):
        ssldet.export(start, to="safetensors", out=tmp_path / "late.safetensors", data="coco:none.json:none")
    assert not (tmp_path / "late.safetensors").exists()


def test_queries_that_rounding_exchanged_are_compared_with_their_own() -> None:
    logits, boxes = torch.rand(2, 7, 3), torch.rand(2, 7, 4)
    order = torch.tensor([0, 2, 1, 3, 4, 6, 5])
    theirs = in_order_of((logits, boxes), [logits[:, order], boxes[:, order] + 1e-6])
    torch.testing.assert_close(theirs[0], logits)
    torch.testing.assert_close(theirs[1], boxes, atol=1e-5, rtol=0)
    broken = in_order_of((logits, boxes), [logits * torch.nan, boxes])
    assert broken[0].isnan().all()


@pytest.mark.parametrize("output", ["logits", "boxes"])
def test_what_is_not_a_number_is_a_difference(output: str) -> None:
    answering = Answering(replace(TINY, masks=False).build()).eval()

    def run(fed):
        with torch.no_grad():
            found = answering(torch.from_numpy(fed["images"]), torch.from_numpy(fed["padding"]))
        return {
            name: value.numpy() * (np.nan if name == output else 1)
            for name, value in zip(("logits", "boxes"), found, strict=True)
        }

    assert np.isnan(difference(answering, run, "model.onnx"))


def test_networks_that_no_graph_holds_are_refused_at_once(tmp_path: Path) -> None:
    detector = replace(TINY, backbone=BackboneConfig(name="timm/swin_tiny_patch4_window7_224")).build()
    with pytest.raises(CheckpointError, match="SwinTransformer can't be written as a graph for images of any size"):
        onnx.export(Detection().objective(detector), INFO, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "NEEDED", ("onnx", "no_such_package"))
    with pytest.raises(SetupError, match=r"model.onnx: needs no_such_package; pip install 'ssldet\[onnx\]'"):
        onnx.export(Detection().objective(TINY.build()), INFO, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
