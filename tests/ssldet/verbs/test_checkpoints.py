"""What can be done with a run that has not finished, from where, and whose checkpoints count as its own."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import ssldet
from downstream.annotations.shapes import write_shapes
from ssldet.engine import loop
from ssldet.engine.checkpoint import load_weights
from ssldet.engine.folder import RunFolder
from ssldet.engine.steps import Checkpoints
from ssldet.errors import CheckpointError, ConfigError
from ssldet.verbs.opening import open_model

SMALL = {"data.batch_size": 2, "data.workers": 0, "checkpoint.every_steps": 1, "checkpoint.keep": 9}


class BrokenError(Exception):
    """What ends a run in the middle."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    write_shapes(folder / "made", images=6, seed=3)
    return folder


@pytest.fixture(scope="module")
def unfinished(place: Path) -> Path:
    """A run of four steps that broke in the third; begun with relative paths."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        taken, clip = [], loop.gradient_norm

        def breaking(*given: Any) -> Any:
            taken.append(1)
            if len(taken) == 3:
                raise BrokenError
            return clip(*given)

        patch.setattr(loop, "gradient_norm", breaking)
        spec = "coco:made/instances.json:made/images"
        with pytest.raises(BrokenError):
            ssldet.finetune(
                "scratch", spec, val=spec, recipe="detection/tiny", steps=4, out=place / "run",
                overrides=SMALL | {"optim.ema": 0.5},
            )  # fmt: skip
    return place / "run"


def test_paths_are_recorded_as_absolute_ones(unfinished: Path, place: Path) -> None:
    spec = f"coco:{place}/made/instances.json:{place}/made/images"
    run = RunFolder(unfinished).run()
    assert (run.data.train, run.data.val) == ((spec,), (spec,))


def test_it_resumes_from_any_folder(unfinished: Path, place: Path, tmp_path: Path, monkeypatch: Any) -> None:
    shutil.copytree(unfinished, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    run = ssldet.finetune(resume="copy")
    assert run.to_json()["status"] == "finished"
    assert run.results["AP"] >= 0


@pytest.mark.parametrize("step", ["latest", 2, 1])
def test_an_unfinished_run_can_be_used_when_asked(
    unfinished: Path, place: Path, step: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    number = 2 if step == "latest" else step
    spec = f"coco:{place}/made/instances.json:{place}/made/images"
    with caplog.at_level(logging.WARNING):
        ssldet.export(unfinished, to="safetensors", out=tmp_path / "a.safetensors", step=step)
    assert f"the model of step {number} of 4 of a run, which has not finished, is taken" in caplog.text
    info, state = load_weights(tmp_path / "a.safetensors")
    assert (info["step"], info["images"], len(info["classes"])) == (
        number,
        6,
        len(open_model(tmp_path / "a.safetensors").classes),
    )
    saved = Checkpoints(unfinished / "checkpoints").read(number)["average"]
    assert all(torch.equal(value, saved[f"module.{name}"]) for name, value in state.items()), "the averaged weights"
    if step == "latest":
        assert ssldet.evaluate(unfinished, spec, workers=0, step=step)["AP"] >= 0
        assert ssldet.predict(unfinished, str(place / "made" / "images"), out=tmp_path / "p", step=step)["images"] == 6


def test_a_checkpoint_of_an_earlier_version_names_no_classes(unfinished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(unfinished, tmp_path / "old"))
    checkpoints = Checkpoints(folder / "checkpoints", keep=9)
    state = checkpoints.read(2)
    for file in (folder / "checkpoints").glob("step-000002*"):
        file.unlink()
    state["data"] = {name: state["data"][name] for name in ("fingerprint", "images")}
    del state["run_id"]
    checkpoints.save(2, {name: value for name, value in state.items() if name not in {"step", "schema"}})
    assert open_model(folder, step="latest").classes == open_model(unfinished, step=2).classes


def test_what_is_not_there_is_said(unfinished: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no checkpoint of step 7; there are 0, 1, 2, or --step latest"):
        open_model(unfinished, step=7)
    with pytest.raises(CheckpointError, match=r"has not finished; take its newest checkpoint with --step latest"):
        open_model(unfinished)
    with pytest.raises(ConfigError, match="not a run folder"):
        open_model(tmp_path, step="latest")


def test_a_checkpoint_of_another_run_of_the_same_configuration_counts_as_damaged(
    unfinished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(unfinished, tmp_path / "run"))
    own = json.loads((folder / "run.json").read_text())["id"]
    checkpoints = Checkpoints(folder / "checkpoints", keep=9)
    state = {name: value for name, value in checkpoints.read(2).items() if name not in {"step", "schema"}}
    assert state["run_id"] == own
    checkpoints.save(3, state | {"run_id": "f" * 32})
    fault = f"it is of another run, ffffffff and not {own[:8]}, and was copied here"
    with pytest.raises(CheckpointError, match=fault):
        open_model(folder, step=3)
    assert open_model(folder, step="latest").info["step"] == 2
    assert fault in caplog.text
    assert ssldet.finetune(resume=folder).to_json()["steps"] == 4
    assert (folder / "checkpoints" / "step-000003.ckpt.damaged").is_file()
    assert json.loads((folder / "run.json").read_text())["id"] == own


def test_weights_do_not_say_in_which_folder_their_backbone_lay(place: Path, tmp_path: Path, monkeypatch: Any) -> None:
    images = place / "made" / "images"
    monkeypatch.chdir(tmp_path)
    first = ssldet.pretrain(images, recipe="random_query_patch/tiny", steps=1, out="a", overrides=SMALL)
    second = ssldet.pretrain(images, recipe="random_query_patch/tiny", backbone="a", steps=1, out="b", overrides=SMALL)
    assert first.path == Path("a")
    weights = tmp_path / "a" / "weights" / "model.safetensors"
    assert RunFolder(second.path).run().detector.backbone.weights == str(weights)  # type: ignore[attr-defined]
    info, _ = load_weights(tmp_path / "b" / "weights" / "model.safetensors")
    assert info["detector"]["backbone"]["weights"] == "model.safetensors"
