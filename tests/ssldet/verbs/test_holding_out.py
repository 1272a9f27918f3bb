"""Without images to measure on, pretraining holds some out; fine-tuning says that nothing is measured."""

from pathlib import Path

import pytest
import torch

import ssldet
from downstream.annotations.shapes import write_shapes
from ssldet.data.holding_out import hold_out
from ssldet.data.images import ImageRules
from ssldet.data.sources import open_source

SMALL = {"data.batch_size": 4, "data.workers": 0, "device": "cpu"}
RECIPE = "random_query_patch/tiny"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held-out")
    write_shapes(folder / "made", images=21, seed=3)
    return folder


def test_the_number_to_watch_is_measured_and_the_same_when_resumed(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    images = place / "made" / "images"
    changes = {**SMALL, "checkpoint.every_steps": 1, "optim.schedule": "constant"}
    whole = ssldet.pretrain(images, recipe=RECIPE, steps=2, out=place / "whole", overrides=changes)
    assert "1 of 21 images are held out" in caplog.text
    assert [line["step"] for line in whole.metrics if "patch_iou" in line] == [1, 2]
    assert "patch_iou" in (whole.path / "report.html").read_text()
    assert (whole.run.data.held_out, whole.run.evaluate_every) == (0.05, 1)
    assert whole.to_json()["measured_on"] == ["held out: 0.05 of data.train"]
    ssldet.pretrain(images, recipe=RECIPE, steps=1, out=place / "half", overrides=changes)
    resumed = ssldet.pretrain(resume=place / "half", steps=2)
    assert resumed.results == whole.results
    again = ssldet.pretrain(recipe=whole.path / "run.toml", out=place / "again")
    for other in (resumed, again):
        ours, theirs = whole.detector().state_dict(), other.detector().state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_it_can_be_switched_off_and_a_record_stays_as_it_is(place: Path) -> None:
    images = place / "made" / "images"
    off = ssldet.pretrain(images, recipe=RECIPE, val="none", steps=1, out=place / "off", overrides=SMALL)
    assert (off.results, off.to_json()["images"], off.run.data.held_out) == ({}, 21, 0.0)
    older = "\n".join(line for line in (off.path / "run.toml").read_text().splitlines() if "held_out" not in line)
    (place / "older.toml").write_text(older)
    again = ssldet.pretrain(recipe=place / "older.toml", out=place / "older")
    assert (again.results, again.to_json()["images"]) == ({}, 21)


def test_fine_tuning_learns_from_every_label_unless_told_otherwise(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    data = f"coco:{place}/made/instances.json:{place}/made/images"
    run = ssldet.finetune("scratch", data, recipe="detection/tiny", steps=1, out=place / "all", overrides=SMALL)
    assert run.to_json()["images"] == 21
    assert "nothing is measured" in caplog.text
    choices = {**SMALL, "data.held_out": 0.2}
    run = ssldet.finetune("scratch", data, recipe="detection/tiny", steps=1, out=place / "part", overrides=choices)
    assert run.to_json()["images"] == 17
    assert 0 <= run.results["AP"] <= 1


def test_what_nobody_asked_to_measure_can_not_fail_a_run(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_shapes(place / "odd-set", images=21, seed=4)
    images = place / "odd-set" / "images"
    _, held = hold_out(open_source([str(images)], ImageRules()), 0.05)
    path = None if held is None else held.path_of(0)
    assert path is not None
    path.write_bytes(path.read_bytes()[:-200])
    run = ssldet.pretrain(images, recipe=RECIPE, steps=1, out=place / "odd", overrides=SMALL)
    assert run.to_json()["status"] == "finished"
    assert "could not be measured" in caplog.text
