"""A dry run checks what a run would check, says what it would do, and writes and fetches nothing."""

import json
import logging
from pathlib import Path

import pytest
import torch

import ssldet
from downstream.annotations.shapes import write_shapes
from ssldet import cli
from ssldet.verbs import plan_finetuning, plan_pretraining
from ssldet.verbs.quick_choice import choose_for_pretraining

TINY = "random_query_patch/tiny"
SMALL = {"data.batch_size": 4, "data.workers": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plans")
    write_shapes(folder / "made", images=21, seed=3)
    return folder


def test_a_plan_says_what_the_run_then_does(place: Path) -> None:
    images, choices = place / "made" / "images", {"recipe": TINY, "steps": 2, "out": place / "pre", "overrides": SMALL}
    before = set(place.rglob("*"))
    plan = plan_pretraining(images, **choices)
    assert set(place.rglob("*")) == before
    run = ssldet.pretrain(images, **choices)
    assert (plan.train, plan.val, plan.steps, plan.device) == (run.to_json()["images"], 1, 2, "CPU")
    assert plan.changes["budget.steps"] == run.run.total_steps(20) == 2
    assert 0 < plan.learning < plan.parameters
    written = sum(file.stat().st_size for kind in ("checkpoints", "weights") for file in (run.path / kind).iterdir())
    assert plan.disk / 4 < written <= plan.disk

    data = f"coco:{place}/made/instances.json:{images}"
    onwards = plan_finetuning(run.path, data, recipe="detection/tiny", out=place / "fine", overrides=SMALL)
    assert (onwards.classes, onwards.val, onwards.start) == (3, 0, str(run.path))
    assert not (place / "fine").exists()
    with pytest.raises(ssldet.errors.ConfigError, match="holds a run already"):
        plan_pretraining(images, **choices)


def test_the_command_prints_it(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    before = set(place.rglob("*"))
    words = ["pretrain", "made/images", "--recipe", TINY, "--set", "device=cpu", "--dry-run"]
    cli.main(words)
    said = capsys.readouterr().out
    assert "images    20 to train on, 1 to measure on every 200 steps" in said
    assert "nothing was written" in said
    cli.main([*words, "--json"])
    assert json.loads(capsys.readouterr().out)["steps"] == 800
    for wrong, code in ((["--set", "optim.accumulate=3"], 2), (["--resume", "x"], 2), (["--val", "nowhere"], 3)):
        with pytest.raises(SystemExit) as caught:
            cli.main([*words, *wrong])
        assert caught.value.code == code
    assert set(place.rglob("*")) == before


def test_features_of_a_frozen_backbone_are_counted_before_they_are_kept(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSLDET_HOME", str(tmp_path / "home"))
    changes = SMALL | {"data.views_per_image": 2, "data.feature_cache": 0.5, "task.jitter.probability": 0.0}
    choices = {"recipe": TINY, "steps": 15, "out": tmp_path / "run"}
    assert plan_pretraining(place / "made" / "images", overrides=SMALL, **choices).features == ""
    plan = plan_pretraining(place / "made" / "images", overrides=changes, **choices)
    assert not (tmp_path / "home" / "features").exists()
    assert "features  about" in str(plan)
    assert f"for each of 41 views, {plan.features_disk / 1e9:.3g} GB in all; up to 0.5 GB is kept in" in plan.features
    assert "GB are free there" in plan.features
    ssldet.pretrain(place / "made" / "images", overrides=changes, **choices)
    written = sum(file.stat().st_size for file in (tmp_path / "home" / "features").rglob("*") if file.is_file())
    assert written == pytest.approx(plan.features_disk, rel=0.2)
    for refused in ({"data.feature_cache": 1e6, "data.views_per_image": 10**8}, {"task.freeze_backbone": False}):
        with pytest.raises((ssldet.errors.SetupError, ssldet.errors.ConfigError), match=r"data\.feature_cache"):
            plan_pretraining(
                place / "made" / "images", overrides=changes | refused, **choices | {"out": tmp_path / "x"}
            )


def test_a_run_that_could_not_begin_is_not_announced(place: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "weights.pth").write_bytes(b"no weights")
    images = place / "made" / "images"
    with pytest.raises(ssldet.errors.ConfigError, match=r"notes/run: .*notes is a file; choose another --out"):
        plan_pretraining(images, recipe=TINY, out=tmp_path / "notes" / "run", overrides=SMALL)
    for name, said in (("weights.pth", "neither a safetensors nor a torch file"), ("none.pth", "no such file")):
        changes = SMALL | {"detector.backbone.weights": str(tmp_path / name)}
        with pytest.raises(ssldet.errors.CheckpointError, match=said):
            plan_pretraining(images, recipe=TINY, out=tmp_path / "run", overrides=changes)


def test_weights_are_not_fetched_for_a_plan(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were asked for")

    monkeypatch.setattr("ssldet.engine.assemble.load_backbone", refuse)
    plan = plan_pretraining(place / "made" / "images", recipe="random_query_patch/small", out=place / "other")
    assert "licence Apache-2.0; 19 MB" in plan.weights


def test_a_recipe_for_gpus_names_the_one_for_a_cpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    choice = choose_for_pretraining("random_query_patch/r50", "photos")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    choice.announce(choice.run)
    assert "CC-BY-NC-4.0" in caplog.text
    assert "made for GPUs" not in caplog.text
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    choice.announce(choice.run)
    assert "random_query_patch/r50 is made for GPUs, and there is none here; --recipe random_query_patch/small" in (
        caplog.text
    )
