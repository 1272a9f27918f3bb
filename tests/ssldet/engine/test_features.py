"""A run that keeps the features of its frozen backbone is the run that computes them at every step."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from downstream.annotations.shapes import write_shapes
from ssldet.data.sources import open_source
from ssldet.engine import features, sources
from ssldet.engine.run import Run
from ssldet.errors import ConfigError, SetupError
from ssldet.recipe import check, override
from ssldet.registry import find

Train = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSLDET_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sources, "open_source", open_source)


@pytest.fixture
def photos(tmp_path: Path) -> str:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, noise in enumerate(np.random.default_rng(0).integers(0, 255, (5, 70, 80, 3), dtype=np.uint8)):
        Image.fromarray(noise).save(folder / f"{number}.png")
    return str(folder)


def a_run(name: str, data: str, **changes: Any) -> Run:
    run = find("ssldet.recipes", name)()
    run = override(run, {"data.train": (data,), "data.workers": 0, "data.batch_size": 2, "health": 0})
    run = override(run, {"budget.steps": 4, "log_every": 1, "checkpoint.every_steps": 2})
    return override(run, {name.replace("__", "."): value for name, value in changes.items()})


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "train"]


def test_pretraining_with_a_number_of_views_is_the_same_with_features_from_disk(
    tmp_path: Path, photos: str, train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    name = "random_query_patch/deformable-tiny"
    changes = {"task__image_sides": (48, 64), "task__jitter__probability": 0.5, "data__views_per_image": 2}
    train(tmp_path / "plain", a_run(name, photos, **changes))
    assert not (tmp_path / "home" / "features").exists()
    kept = a_run(name, photos, **changes, data__feature_cache=0.1)
    train(tmp_path / "kept", kept)
    assert losses(tmp_path / "kept") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)
    assert "for each of 10 views" in caplog.text
    train(tmp_path / "again", kept)
    assert losses(tmp_path / "again") == losses(tmp_path / "kept")
    assert "100% of" in caplog.text


def test_a_run_that_is_continued_takes_the_same_steps_with_features_or_without_them(
    tmp_path: Path, photos: str, train: Train
) -> None:
    run = a_run("random_query_patch/tiny", photos, data__views_per_image=1, data__feature_cache=0.1)
    run = override(run, {"optim.schedule": "constant"})
    train(tmp_path / "half", override(run, {"budget.steps": 2}))
    shutil.rmtree(tmp_path / "home" / "features")
    train(tmp_path / "half", run, resume=True)
    train(tmp_path / "whole", run)
    assert losses(tmp_path / "half") == losses(tmp_path / "whole")


def test_finetuning_reads_features_too(tmp_path: Path, train: Train, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    data = f"coco:{write_shapes(tmp_path / 'shapes', images=4)}"
    changes = {"task__augmentation": "none", "task__freeze_backbone": True}
    plain = a_run("detection/tiny", data, **changes)
    train(tmp_path / "plain", plain)
    train(tmp_path / "kept", override(plain, {"data.views_per_image": 1, "data.feature_cache": 0.1}))
    assert losses(tmp_path / "kept") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)
    assert "is kept in" in caplog.text


def test_what_could_not_be_read_again_is_refused_before_anything_is_written(tmp_path: Path, photos: str) -> None:
    with pytest.raises(ConfigError, match=r"set data\.views_per_image"):
        check(a_run("random_query_patch/tiny", photos, data__feature_cache=1))
    with pytest.raises(ConfigError, match="trains the backbone"):
        check(
            a_run(
                "random_query_patch/tiny",
                photos,
                data__feature_cache=1,
                data__views_per_image=1,
                task__freeze_backbone=False,
            )
        )


def test_a_disk_that_is_too_small_is_refused(
    tmp_path: Path, photos: str, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    run = a_run("random_query_patch/tiny", photos, data__feature_cache=0.1, data__views_per_image=1)
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: usage(10, 9, 1))
    with pytest.raises(SetupError, match=r"feature_cache: .* GB are needed .* set SSLDET_HOME"):
        train(tmp_path / "run", run)


def test_a_limit_below_the_need_is_said(
    tmp_path: Path, photos: str, train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    train(
        tmp_path / "run",
        a_run("random_query_patch/tiny", photos, data__feature_cache=1e-4, data__views_per_image=1, budget__steps=2),
    )
    assert "set data.feature_cache=" in caplog.text
    files = [path for path in (tmp_path / "home" / "features").rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in files) <= 100_000
