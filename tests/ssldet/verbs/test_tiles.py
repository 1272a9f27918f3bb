"""`--tiles` of evaluate and predict: what it changes, what it leaves alone, and where it is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import ssldet
from downstream.annotations.shapes import write_shapes
from downstream.detection import Detection
from pretext.random_query_patch import RandomQueryPatch
from ssldet import cli
from ssldet.data.images import ImageRules
from ssldet.errors import ConfigError, DataError
from ssldet.verbs import using
from ssldet.verbs.opening import open_trained
from ssldet.verbs.using import _tiled

SMALL = {"data.batch_size": 4, "data.workers": 0}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("tiles")
    write_shapes(place / "made", images=4, seed=3)
    return f"coco:{place}/made/instances.json:{place}/made/images"


@pytest.fixture(scope="module")
def trained(labelled: str, tmp_path_factory: pytest.TempPathFactory) -> ssldet.Trained:
    out = tmp_path_factory.mktemp("runs") / "tiled"
    tiles = {"task.tile_size": 48, "evaluate_every": 1}
    return ssldet.finetune(
        "scratch", labelled, val=labelled, recipe="detection/tiny", steps=2, out=out, overrides=SMALL | tiles
    )


def test_a_run_with_tiles_is_measured_as_it_is_evaluated_and_predicts(
    trained: ssldet.Trained, labelled: str, tmp_path: Path
) -> None:
    again = trained.evaluate(labelled, workers=0)
    assert again["AP50"] == pytest.approx(trained.results["AP50"], abs=1e-9)
    images = labelled.rsplit(":", 1)[1]
    found = trained.predict(images, out=tmp_path / "tiles", draw=False)["predictions"]
    whole = trained.predict(images, out=tmp_path / "whole", draw=False, overrides={"task.tile_size": "none"})
    assert len(whole["predictions"]) == 40
    assert len(found) > 40, "four tiles find more boxes than one image"
    assert all(-64 < row["bbox"][0] < 128 for row in found)


def test_tiles_no_smaller_than_the_images_change_nothing(
    trained: ssldet.Trained, labelled: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(trained.path), labelled.rsplit(":", 1)[1], "--no-draw", "--json", "--device", "cpu"]
    rows = {}
    for name, more in {
        "none": ["--set", "task.tile_size=none"],
        "64": ["--tiles", "64"],
        "40": ["--tiles", "40"],
    }.items():
        cli.main([*words, "--out", str(tmp_path / name), *more])
        rows[name] = json.loads(capsys.readouterr().out)["predictions"]
    assert rows["none"] == rows["64"]
    assert len(rows["40"]) > len(rows["64"])
    plain, same = (
        ssldet.evaluate(trained.path, labelled, workers=0, batch_size=2, **choice)
        for choice in ({"overrides": {"task.tile_size": "none"}}, {"tiles": 64})
    )
    assert plain == same


def test_images_may_be_larger_where_tiles_are_asked_for(
    trained: ssldet.Trained, labelled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(using, "RULES", ImageRules(max_pixels=64 * 64 - 1))
    with pytest.raises(DataError, match="too-large"):
        trained.predict(labelled.rsplit(":", 1)[1], out=tmp_path, overrides={"task.tile_size": "none"})
    assert trained.predict(labelled.rsplit(":", 1)[1], out=tmp_path, draw=False)["images"] == 4


def test_whoever_exports_is_told_that_the_file_answers_tiles(
    trained: ssldet.Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ssldet.export(trained.path, to="safetensors", out=tmp_path / "model.safetensors")
    assert "model.safetensors: answers one tile at a time: cut images before it" in caplog.text
    again = ssldet.load(tmp_path / "model.safetensors")
    assert again.sections == trained.detector().sections


def test_tiles_are_refused_where_they_mean_nothing(trained: ssldet.Trained, labelled: str, tmp_path: Path) -> None:
    opened = open_trained(trained.path)
    plain, pretext = (replace(opened, task=task) for task in (Detection(), RandomQueryPatch()))
    with pytest.raises(ConfigError, match=r"--tile-overlap: there are no tiles to overlap; add --tiles SIDE"):
        _tiled(plain, None, 0.3, {})
    with pytest.raises(ConfigError, match="--tiles: random_query_patch looks at images as a whole; leave tiles out"):
        _tiled(pretext, 40, None, {})
    assert _tiled(pretext, None, None, {}) is pretext
    with pytest.raises(ConfigError, match=r"tile_overlap: 1.5 does not fit; expects .* 0\.9"):
        trained.predict(labelled.rsplit(":", 1)[1], tiles=40, tile_overlap=1.5)
    with pytest.raises(ConfigError, match=r"--set task.tile_size: is given by an option too"):
        trained.evaluate(labelled, tiles=40, overrides={"task.tile_size": 32})
    with pytest.raises(ConfigError, match="--tiles has no meaning for coco: data"):
        ssldet.evaluate(None, labelled, predictions=tmp_path / "none.json", tiles=40)
