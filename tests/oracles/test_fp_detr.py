"""FP-DETR with weights in the authors' names answers as their code did; files of all kinds open as what they are.

The numbers were recorded on the CPU from encounter1997/FP-DETR at the commit that the record names, with mmcv 1.3.3
without compiled operations: tokenizer, neck, position encoding and transformer are theirs; the linear heads were joined
by hand, as their head joins them. No file that they published could be had.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from downstream.detection import Detection
from pretext.fp_detr import ImageClassification
from ssldet.errors import CheckpointError
from ssldet.verbs.handing import transfer
from ssldet.verbs.opening import open_model
from ssldet.weights.fp_detr import from_authors, recognise
from tests.oracles.named import uniform, weight

TOLERANCE = {"rtol": 0, "atol": 2e-5}
JOINED = "bbox_head.transformer.encoder2."
DROPPED = ("bbox_head.transformer.reference_points", "bbox_head.cls_branches", "bbox_head.query_embedding")
"""What the authors' script leaves out of a pretraining file."""


@cache
def recorded() -> dict[str, Any]:
    return dict(json.loads((Path(__file__).parent / "fp-detr.json").read_text()))


def detection_file() -> dict[str, Tensor]:
    """The state of their detector; heads of all layers are one."""
    first = {name: re.sub(r"_branches\.\d+\.", "_branches.0.", name) for name in recorded()["state"]}
    return {name: weight(first[name], torch.Size(shape)) for name, shape in recorded()["state"].items()}


def pretraining_file(*, cleaned: bool) -> dict[str, Tensor]:
    """The state that their pretraining leaves: one token, a classifier of seven classes, no adaptor with its norms."""
    raw: dict[str, Tensor] = {}
    for name, value in detection_file().items():
        norm = re.fullmatch(rf"({re.escape(JOINED)}layers\.\d+\.norms\.)(\d)(\..*)", name)
        if "prompt_encoder_share" in name or "reg_branches" in name or (norm and norm[2] == "0"):
            continue
        raw[f"{norm[1]}{int(norm[2]) - 1}{norm[3]}" if norm else name] = value
    raw["bbox_head.query_embedding.weight"] = raw["bbox_head.query_embedding.weight"][:1]
    for name in [name for name in raw if "cls_branches" in name]:
        raw[name] = uniform("classes", 7, *raw[name].shape[1:])
    if not cleaned:
        return raw
    kept = {name: value for name, value in raw.items() if not name.startswith(DROPPED)}
    return {
        re.sub(rf"^({re.escape(JOINED)}layers\.\d+\.norms\.)(\d)", lambda m: f"{m[1]}{int(m[2]) + 1}", name): value
        for name, value in kept.items()
    }


def canvas() -> tuple[Tensor, Tensor]:
    images, padding = torch.zeros(2, 3, 64, 128), torch.ones(2, 64, 128, dtype=torch.bool)
    for number, (height, width) in enumerate(recorded()["sizes"]):
        blocks = uniform(f"image {number}", 3, height // 16 + 1, width // 16 + 1) * 2
        whole = blocks.repeat_interleave(16, 1).repeat_interleave(16, 2)
        images[number, :, :height, :width] = whole[:, :height, :width]
        padding[number, :height, :width] = False
    return images, padding


def saved(state: dict[str, Tensor], path: Path) -> Path:
    torch.save({"state_dict": state, "meta": {}}, path)
    return path


def test_answers_are_theirs(tmp_path: Path) -> None:
    opened = open_model(saved(detection_file(), tmp_path / "epoch_50.pth"))
    assert isinstance(opened.task, Detection)
    assert opened.task.class_weight == 2
    with torch.no_grad():
        found = opened.objective.detector(*canvas())
    torch.testing.assert_close(found.logits, torch.tensor(recorded()["logits"]), **TOLERANCE)
    torch.testing.assert_close(found.boxes, torch.tensor(recorded()["boxes"]), **TOLERANCE)


def test_what_is_known_of_the_model_is_read_off() -> None:
    config = recognise(from_authors(detection_file()))
    assert (config.num_classes, config.num_queries, config.strides, config.tokenizer_width) == (5, 12, (8, 16, 32), 24)
    assert (config.width, config.heads, config.feedforward, config.extra_levels) == (64, 4, 40, 1)
    assert (config.encoder_layers, config.joined_layers) == (2, 3)


def test_a_raw_pretraining_file_opens_as_a_classifier(tmp_path: Path) -> None:
    opened = open_model(saved(pretraining_file(cleaned=False), tmp_path / "epoch_299.pth"))
    assert opened.task == ImageClassification(categories=7)
    state = opened.objective.state_dict()
    theirs = pretraining_file(cleaned=False)
    assert torch.equal(state["token.token.embedding"], theirs["bbox_head.query_embedding.weight"])
    assert torch.equal(state["classifier.weight"], theirs["bbox_head.cls_branches.0.weight"])


@pytest.mark.parametrize("cleaned", [True, False], ids=("cleaned", "raw"))
def test_a_pretraining_file_hands_tokenizer_and_all_layers_over(
    cleaned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened = open_model(saved(pretraining_file(cleaned=cleaned), tmp_path / "pretrained_epoch_299.pth"))
    assert ("good for fine-tuning alone" in caplog.text) == cleaned
    detector = recognise(from_authors(detection_file())).build()
    report = transfer(opened, detector)
    outcomes = {(row.section, row.outcome) for row in report.rows}
    handed = {"backbone", "projection", "encoder", "joined_encoder"}
    fresh = {"adaptor", "queries", "box_head", "class_head"}
    assert outcomes >= {(section, "loaded") for section in handed}
    assert {section for section, outcome in outcomes if outcome != "loaded"} == fresh
    # A layer's own norms are those that they were, whatever number the file gives them.
    theirs, ours = from_authors(detection_file()), detector.state_dict()
    for name in (
        "joined_encoder.layers.2.norm1.weight",
        "joined_encoder.layers.0.norm2.bias",
        "encoder.layers.1.norm1.bias",
    ):
        assert torch.equal(ours[name], theirs[name])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state | {"bbox_head.novelty.weight": torch.zeros(1)}, "novelty"),
        (lambda state: state | {"bbox_head.cls_branches.2.bias": torch.ones(5)}, "not the first layer's"),
        (lambda state: without(state, "backbone.norm1.weight"), r"tokenizer\.level_norms\.1\.weight"),
        (lambda state: without(state, f"{JOINED[:-9]}encoder1.layers.0.ffns.0.layers.0.0.bias"), "whole"),
    ],
)
def test_a_damaged_file_is_refused(change: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=said):
        open_model(saved(change(detection_file()), tmp_path / "epoch_50.pth"))


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    assert name in state
    return {key: value for key, value in state.items() if key != name}
