"""Numbers of verbs that stand in no recipe: refused before anything is opened or written."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

import ssldet
from ssldet.errors import CheckpointError, ConfigError


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"batch_size": 0}, "batch_size: 0 does not fit; expects a number, at least 1"),
        ({"batch_size": -2, "workers": -1}, "workers: -1 does not fit; expects a number, at least 0"),
        ({"iou": float("nan"), "predictions": "a.json"}, "iou: nan does not fit; expects a number, from 0 to 1"),
    ],
)
def test_evaluate_says_all_that_does_not_fit(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ssldet.evaluate("nowhere", "coco:nowhere", **wrong)
    assert said in str(caught.value)
    assert len(caught.value.problems) == min(len(wrong), 2) - ("predictions" in wrong)


def test_what_is_given_twice_or_read_by_nobody_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        ssldet.evaluate(
            None, "coco:nowhere", predictions="a.json", save_predictions="b.json", overrides={"task.x": 1}, step=3
        )
    assert [line.partition(" has no meaning")[0] for line in caught.value.problems] == [
        "--save-predictions",
        "--set",
        "--step",
    ]
    for verb, data in ((ssldet.pretrain, "photos"), (partial(ssldet.finetune, None), "coco:a")):
        for path, choices in (("data.train", {}), ("data.val", {"val": "b"}), ("data.held_out", {"val": "none"})):
            with pytest.raises(ConfigError, match=rf"--set {path}: .* says it already; leave one of the two out"):
                verb(data, out=tmp_path / "no", overrides={path: "c"}, **choices)
    with pytest.raises(ConfigError, match=r"--set data.unlabelled: u says it already"):
        ssldet.finetune(None, "coco:a", unlabelled="u", overrides={"data.unlabelled": "v"})
    with pytest.raises(ConfigError, match=r"--set detector.backbone.name: --backbone resnet18 says it already"):
        ssldet.pretrain("photos", backbone="resnet18", overrides={"detector.backbone.name": "resnet50"})
    with pytest.raises(ConfigError, match=r"budget.epochs: 0.0 does not fit"):
        ssldet.pretrain("photos", recipe="random_query_patch/tiny", epochs=0.0, out=tmp_path / "no")
    assert not list(tmp_path.iterdir())


def test_an_export_that_can_not_be_written_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "there.onnx").write_text("mine")
    with pytest.raises(ConfigError, match=r"no exporter 'onxn' \(did you mean 'onnx'\?\)"):
        ssldet.export("nowhere", to="onxn", out=tmp_path / "a.onnx", data="coco:nowhere")
    with pytest.raises(ConfigError, match="exists already and is not overwritten"):
        ssldet.export("nowhere", to="onnx", out=tmp_path / "there.onnx", data="coco:nowhere")


@pytest.mark.parametrize("threshold", [30.0, -0.1, float("nan")])
def test_a_threshold_is_a_share(threshold: float) -> None:
    with pytest.raises(ConfigError, match=r"threshold: .* does not fit; expects a number, from 0 to 1"):
        ssldet.predict("nowhere", "nowhere", threshold=threshold)


def test_pictures_need_a_folder_and_a_number(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ConfigError, match="is a file; choose another --out"):
        ssldet.predict("nowhere", "nowhere", out=tmp_path / "file")
    with pytest.raises(ConfigError, match="count: 0 does not fit"):
        ssldet.preview("nowhere", count=0, out=tmp_path / "none.png")
    with pytest.raises(ConfigError, match=r"is a folder; name the picture, such as .*preview\.png"):
        ssldet.preview("nowhere", out=tmp_path)
    with pytest.raises(ConfigError, match=r"ends in none of \.png .*; name it .*a\.png"):
        ssldet.preview("nowhere", out=tmp_path / "a.xyz")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_run_goes_on_in_its_own_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--out elsewhere: a run goes on in its own folder"):
        ssldet.pretrain(resume=tmp_path, out="elsewhere")


@pytest.mark.parametrize("part", ["run.toml", "checkpoints", "checkpoints/step-000002.ckpt"])
def test_a_part_of_a_run_is_told_from_weights(tmp_path: Path, part: str) -> None:
    run = tmp_path / "runs" / "a"
    (run / "checkpoints").mkdir(parents=True)
    for name in ("run.toml", "checkpoints/step-000002.ckpt"):
        (run / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"is a part of a run; name the run, .*/runs/a; evaluate") as caught:
        ssldet.load(run / part)
    assert str(run / part) in str(caught.value)
    with pytest.raises(CheckpointError, match=r"is a folder of runs; name one of them: .*/runs/a"):
        ssldet.load(tmp_path / "runs")
