"""The weights that measured best: kept through everything; and the end of a run that waits no longer for better."""

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

Train = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _up_and_down(fakes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let scores depend on every bit of the weights and go up and down at random."""
    plain = fakes.FakeEvaluator.results

    def results(evaluator: Any) -> dict[str, Any]:
        found = plain(evaluator)
        return {**found, "score": found["score"] * 1e4 % 1}

    monkeypatch.setattr(fakes.FakeEvaluator, "results", results)


def scores(folder: Path) -> dict[int, float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["score"] for line in lines if line["kind"] == "eval"}


def kept(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "weights").iterdir())}


def status(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


def test_the_best_weights_are_kept_beside_the_last(tmp_path: Path, fakes: ModuleType, train: Train) -> None:
    from ssldet.engine.checkpoint import load_weights
    from ssldet.engine.steps import Checkpoints

    run = fakes.a_run(data__val=("fake:3",), evaluate_every=1, checkpoint__every_steps=1, checkpoint__keep=20)
    train(tmp_path / "a", run)
    measured = scores(tmp_path / "a")
    step = max(measured, key=lambda number: measured[number])
    assert 1 < step < 12, "the test needs a run whose last weights are not the best"
    best = {"measure": "score", "value": measured[step], "step": step, "file": f"weights/best-{step:06d}.safetensors"}
    assert status(tmp_path / "a")["best"] == best
    info, state = load_weights(tmp_path / "a" / best["file"])
    assert (info["step"], info["measured"]) == (step, {"score": measured[step]})
    then = Checkpoints(tmp_path / "a" / "checkpoints").read(step)["objective"]
    assert all(state[name].equal(tensor) for name, tensor in then.items())
    train(tmp_path / "b", replace(run, checkpoint=replace(run.checkpoint, best_of=None)))
    assert kept(tmp_path / "b").keys() == {"model.safetensors"}
    assert kept(tmp_path / "b")["model.safetensors"] != b""
    assert fakes.weights_of(tmp_path / "a") == fakes.weights_of(tmp_path / "b")


@pytest.mark.parametrize("patience", [None, 3])
def test_a_resume_from_any_step_keeps_and_ends_like_the_quiet_run(
    tmp_path: Path, fakes: ModuleType, train: Train, patience: int | None
) -> None:
    run = fakes.a_run(
        data__val=("fake:3",),
        evaluate_every=1,
        checkpoint__every_steps=2,
        checkpoint__keep=20,
        budget__patience=patience,
    )
    train(tmp_path / "quiet", run)
    steps = status(tmp_path / "quiet")["steps"]
    assert (steps < 12) == bool(patience)
    for first in range(0, steps + 1, 2):
        folder = tmp_path / str(first)
        shutil.copytree(tmp_path / "quiet", folder)
        for path in (folder / "checkpoints").glob("*.ckpt"):
            if int(path.stem.removeprefix("step-")) > first:
                path.unlink()
        train(folder, run, resume=True)
        assert kept(folder) == kept(tmp_path / "quiet"), first
        for name in ("best", "steps", "ended_early", "results"):
            assert status(folder)[name] == status(tmp_path / "quiet")[name]


def test_a_run_killed_again_and_again_keeps_the_best_of_the_quiet_run(
    tmp_path: Path, fakes: ModuleType, train: Train, fork: Callable[..., Any]
) -> None:
    from ssldet.engine.checkpoint import load_weights
    from ssldet.engine.folder import RunFolder
    from ssldet.engine.steps import Checkpoints

    run = fakes.a_run(data__val=("fake:3",), evaluate_every=1, checkpoint__every_steps=3, budget__steps=60)
    train(tmp_path / "quiet", run)
    chance, folder = random.Random(0), tmp_path / "a"
    for _ in range(8):
        begun = bool(Checkpoints(folder / "checkpoints").steps())
        child = fork(lambda begun=begun: train(folder, run, resume=begun))
        while not (folder / "weights").exists() and not child.ended():
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.15))
        child.kill()
        if child.wait() != -signal.SIGKILL:
            break
        for step in RunFolder(folder).best_steps():
            load_weights(RunFolder(folder).best_weights(step))  # raises if it is damaged or half written
    train(folder, run, resume=True)
    assert kept(folder) == kept(tmp_path / "quiet")
    assert status(folder)["best"] == status(tmp_path / "quiet")["best"]


def test_waiting_ends_a_run_and_more_patience_goes_on(
    tmp_path: Path, fakes: ModuleType, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    explained: list[int] = []

    def note(source: Any, folder: Any, evaluator: Any) -> None:
        explained.append(folder.status()["measured_at"])

    monkeypatch.setattr("ssldet.engine.reporter.explain", note)
    run = fakes.a_run(data__val=("fake:3",), evaluate_every=1, budget__patience=2, budget__steps=40)
    train(tmp_path / "a", run)
    told, measured = status(tmp_path / "a"), scores(tmp_path / "a")
    assert told["status"] == "finished"
    assert told["steps"] == max(measured) == told["best"]["step"] + 2
    assert told["ended_early"] == (
        f"no better score in 2 evaluations; the best was {told['best']['value']:.4g} at step {told['best']['step']}"
    )
    assert explained == [told["steps"]]
    longer = replace(run, budget=replace(run.budget, patience=5))
    train(tmp_path / "a", longer, resume=True)
    train(tmp_path / "b", longer)
    assert status(tmp_path / "a")["steps"] == status(tmp_path / "b")["steps"] > told["steps"]
    assert kept(tmp_path / "a")["model.safetensors"] != b""
    assert fakes.weights_of(tmp_path / "a") == fakes.weights_of(tmp_path / "b")


def test_patience_needs_something_to_wait_for(fakes: ModuleType) -> None:
    from ssldet.errors import ConfigError
    from ssldet.recipe import check

    with pytest.raises(ConfigError) as caught:
        check(fakes.a_run(budget__patience=2))
    assert [line.split(";")[0] for line in caught.value.problems] == [
        "budget.patience: data.val names no images to measure on",
        "budget.patience: evaluate_every is 0, so that nothing is measured before the end",
    ]


def test_an_unknown_measure_costs_nothing(tmp_path: Path, fakes: ModuleType, train: Train) -> None:
    from ssldet.errors import ConfigError

    run = fakes.a_run(data__val=("fake:3",), evaluate_every=5, checkpoint__best_of="scores")
    with pytest.raises(
        ConfigError, match=r"nothing measures 'scores' \(did you mean 'score'\?\); there are score, images"
    ):
        train(tmp_path / "a", run)
    mended = replace(run, checkpoint=replace(run.checkpoint, best_of="score"))
    train(tmp_path / "a", mended, resume=True)
    train(tmp_path / "b", mended)
    assert status(tmp_path / "a")["best"] == status(tmp_path / "b")["best"]


def test_a_best_on_other_images_is_left(
    tmp_path: Path, fakes: ModuleType, train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    run = fakes.a_run(data__val=("fake:3",), evaluate_every=4)
    train(tmp_path / "a", run)
    other = replace(run, data=replace(run.data, val=("fake:4",)), budget=replace(run.budget, steps=16))
    train(tmp_path / "a", other, resume=True)
    assert "was measured otherwise and counts no more" in caplog.text
    assert status(tmp_path / "a")["best"]["step"] in {12, 16}


def test_best_weights_that_can_not_be_written_are_told_and_the_best_before_stays(
    tmp_path: Path, fakes: ModuleType, train: Train, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from ssldet.engine import best

    run = fakes.a_run(data__val=("fake:3",), evaluate_every=1)
    train(tmp_path / "quiet", run)
    last, save = status(tmp_path / "quiet")["best"]["step"], best.save_weights

    def full(path: Path, *rest: Any) -> None:
        if path.name == f"best-{last:06d}.safetensors":
            raise OSError(28, "No space left on device")
        save(path, *rest)

    monkeypatch.setattr(best, "save_weights", full)
    train(tmp_path / "a", run)
    assert f"the best weights, of step {last}, could NOT be kept" in caplog.text
    measured, told = scores(tmp_path / "a"), status(tmp_path / "a")["best"]
    assert told["step"] == max(set(measured) - {last}, key=lambda number: measured[number])
    assert (tmp_path / "a" / told["file"]).is_file()
