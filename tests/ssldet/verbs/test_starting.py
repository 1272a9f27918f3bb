"""A run goes on from a trained detector, with its own backbone or with another one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ssldet
from downstream.annotations.shapes import write_shapes
from ssldet.engine.checkpoint import restore_objective
from ssldet.errors import ConfigError
from ssldet.nn.backbones import own
from ssldet.nn.backbones.own import own_names

SMALL = {"data.batch_size": 2, "data.workers": 0, "detector.encoder_layers": 1, "detector.decoder_layers": 1}
STILL: dict[str, object] = {"data.batch_size": 2, "data.workers": 0, "optim.lr": 0.0, "optim.weight_decay": 0.0}


class Wider(nn.Module):
    """A network with as many channels as the tiny one's, and other weights and names."""

    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=8, padding=1)
        self.second = nn.Conv2d(8, 24, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> list[Tensor]:
        fine = self.first(images).relu()
        return [fine, self.second(fine)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("starting")
    write_shapes(folder / "made", images=6, seed=3)
    return folder


@pytest.fixture(scope="module")
def images(place: Path) -> Path:
    return place / "made" / "images"


@pytest.fixture(scope="module")
def labelled(place: Path, images: Path) -> str:
    return f"coco:{place}/made/instances.json:{images}"


@pytest.fixture(scope="module")
def pretrained(place: Path, images: Path) -> ssldet.Trained:
    recipe = "random_query_patch/tiny"
    return ssldet.pretrain(images, recipe=recipe, val="none", steps=1, out=place / "pre", overrides=SMALL)


@pytest.fixture(scope="module")
def finetuned(pretrained: ssldet.Trained, labelled: str, place: Path) -> ssldet.Trained:
    small = {"data.batch_size": 2, "data.workers": 0}
    return pretrained.finetune(labelled, recipe="detection/tiny", steps=1, out=place / "fine", overrides=small)


@pytest.fixture
def wider(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    before = own_names()
    monkeypatch.setattr(own, "_registered", {})
    ssldet.register_backbone("wider", Wider)
    yield "wider"
    assert "wider" not in before


def outcomes(run: ssldet.Trained) -> dict[str, set[str]]:
    """Return section -> what became of its tensors, by the run's report of its transfer."""
    found: dict[str, set[str]] = {}
    for row in json.loads((run.path / "transfer.json").read_text())["rows"]:
        found.setdefault(row["section"], set()).add(row["outcome"])
    return found


def test_pretraining_goes_on_with_everything_that_its_task_taught(
    pretrained: ssldet.Trained, images: Path, tmp_path: Path
) -> None:
    recipe = "random_query_patch/tiny"
    again = pretrained.pretrain(images, recipe=recipe, val="none", steps=1, out=tmp_path / "again", overrides=STILL)
    assert set().union(*outcomes(again).values()) == {"loaded"}
    assert {"class_head", "patch_queries", "reconstruction"} <= outcomes(again).keys()
    # The rate is zero: what was handed over is what comes out, in the architecture of the start.
    ours, theirs = (
        restore_objective(run.path / "weights" / "model.safetensors")[0].state_dict() for run in (again, pretrained)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    stages = json.loads((again.path / "lineage.json").read_text())["stages"]
    assert len(stages) == 1


def test_another_task_takes_the_detector_and_brings_its_own_heads(
    finetuned: ssldet.Trained, images: Path, tmp_path: Path
) -> None:
    run = finetuned.pretrain(
        images, recipe="random_query_patch/tiny", val="none", steps=1, out=tmp_path / "run", overrides=STILL
    )
    assert finetuned.detector().num_classes == 3
    assert run.detector().num_classes == 1
    found = outcomes(run)
    assert found.pop("class_head") == {"reshaped"}
    assert set().union(*found.values()) == {"loaded"}


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_behind_another_backbone_the_transformer_stays(
    finetuned: ssldet.Trained, images: Path, labelled: str, tmp_path: Path, wider: str, verb: str
) -> None:
    more: dict[str, Any] = {"steps": 1, "out": tmp_path / "run", "overrides": STILL, "backbone": wider}
    if verb == "pretrain":
        run = finetuned.pretrain(images, recipe="random_query_patch/tiny", val="none", **more)
    else:
        run = finetuned.finetune(labelled, recipe="detection/tiny", **more)
    found = outcomes(run)
    assert found["encoder"] == found["decoder"] == found["queries"] == found["box_head"] == {"loaded"}
    assert found["backbone"] == {"fresh", "ignored"}
    assert found["projection"] <= {"fresh", "reshaped"}
    detector, before = run.detector(), finetuned.detector()
    assert detector.feature_channels == 24
    ours, theirs = detector.state_dict(), before.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name.startswith(("encoder", "decoder")))


def test_a_backbone_is_exchanged_from_scratch_too(labelled: str, tmp_path: Path, wider: str) -> None:
    run = ssldet.finetune(
        "scratch", labelled, recipe="detection/tiny", backbone=wider, steps=1, out=tmp_path / "run", overrides=STILL
    )
    assert run.detector().feature_channels == 24
    assert not (run.path / "transfer.json").exists()


def test_a_detector_without_a_backbone_has_none_to_exchange(images: Path, tmp_path: Path, wider: str) -> None:
    start = ssldet.pretrain(
        images, recipe="fp_detr_contrast/tiny", val="none", steps=1, out=tmp_path / "start",
        overrides={"data.batch_size": 2, "data.workers": 0},
    )  # fmt: skip
    with pytest.raises(ConfigError, match="has no backbone to exchange; leave --backbone out"):
        start.pretrain(images, recipe="fp_detr_contrast/tiny", backbone=wider, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_of_another_backbone_are_not_left_to_chance(
    finetuned: ssldet.Trained, images: Path, tmp_path: Path
) -> None:
    recipe, out = "random_query_patch/tiny", tmp_path / "run"
    with pytest.raises(ConfigError, match=r"--backbone resnet18: say which weights .*backbone\.weights=imagenet"):
        finetuned.pretrain(images, recipe=recipe, backbone="resnet18", out=out)
    assert not out.exists()
    fresh = STILL | {"detector.backbone.weights": "none"}
    run = finetuned.pretrain(images, recipe=recipe, val="none", backbone="resnet18", steps=1, out=out, overrides=fresh)
    assert outcomes(run)["projection"] == {"reshaped"} or outcomes(run)["projection"] == {"fresh", "reshaped"}


def test_a_stage_that_leaves_the_decoder_alone_hands_it_on(
    finetuned: ssldet.Trained, images: Path, labelled: str, tmp_path: Path
) -> None:
    between = finetuned.pretrain(
        images,
        recipe="moco_v2/tiny",
        val="none",
        steps=1,
        out=tmp_path / "between",
        overrides=STILL | {"detector.backbone.frozen_norm": False},
    )
    last = between.finetune(labelled, recipe="detection/tiny", steps=1, out=tmp_path / "last", overrides=STILL)
    ours, theirs = last.detector().state_dict(), finetuned.detector().state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name.startswith(("decoder", "queries")))
    # Without a detector before it, that task hands over its backbone alone.
    alone = ssldet.pretrain(
        images, recipe="moco_v2/tiny", val="none", steps=1, out=tmp_path / "alone", overrides=STILL
    ).finetune(labelled, recipe="detection/tiny", steps=1, out=tmp_path / "after", overrides=STILL)
    assert "loaded" not in outcomes(alone)["decoder"]
