"""Kill it, stop it, resume it: the same bits as the run that nobody disturbed."""

import hashlib
import json
import os
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
import torch

from ssldet.recipe import load as read_recipe

Train = Callable[..., dict[str, Any]]

KILLS = int(os.environ.get("SSLDET_KILLS", "8"))
"""Kills of the kill test; a soak sets thousands."""


def lines_of(record: Path) -> list[str]:
    return record.read_text().splitlines() if record.exists() else []


def same(a: Any, b: Any) -> bool:
    """Equal to the bit, tensors included."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_killed_again_and_again_is_the_quiet_run(
    tmp_path: Path, fakes: ModuleType, train: Train, fork: Callable[..., Any], workers: int
) -> None:
    from ssldet.engine.steps import Checkpoints

    def a_run(record: Path) -> Any:
        return fakes.a_run(
            task=fakes.FakeTask(record=str(record)),
            data__workers=workers,
            budget__steps=80,
            checkpoint__every_steps=1,
        )

    train(tmp_path / "quiet", a_run(tmp_path / "quiet.txt"))
    quiet = lines_of(tmp_path / "quiet.txt")
    assert len(set(quiet)) == 80
    chance = random.Random(0)
    kills = trials = 0
    while kills < KILLS:
        trials += 1
        folder, record = tmp_path / f"run-{trials}", tmp_path / f"{trials}.txt"
        run = a_run(record)
        for _ in range(100):
            before = len(lines_of(record))
            begun = bool(Checkpoints(folder / "checkpoints").steps())
            child = fork(lambda folder=folder, run=run, begun=begun: train(folder, run, resume=begun))
            # By progress and not by time: on a busy machine a fixed time would kill every life before its first step.
            wanted = before + chance.randrange(12)
            while len(lines_of(record)) < wanted and not child.ended():
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.02))
            child.kill()
            code = child.wait()
            life = lines_of(record)[before:]
            if life:
                first = quiet.index(life[0])
                assert life == quiet[first : first + len(life)]
            if code == 0:
                break
            assert code == -signal.SIGKILL
            kills += 1
        assert fakes.weights_of(folder) == fakes.weights_of(tmp_path / "quiet")
        steps = [line["step"] for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())]
        assert steps == list(range(1, 81))


def test_a_resume_of_a_resume_is_exact_from_every_step_to_every_step(
    tmp_path: Path, fakes: ModuleType, train: Train
) -> None:
    # Every checkpoint of a resumed run equals, bit for bit, the quiet run's of the same step. So whatever is resumed
    # from it goes on like the quiet run: all pairs, chains of any length included.
    run = fakes.a_run(
        data__val=("fake:3",),
        budget__steps=6,
        checkpoint__every_steps=1,
        checkpoint__keep=10,
        optim__ema=0.9,
        optim__accumulate=2,
        evaluate_every=2,
    )
    train(tmp_path / "quiet", run)
    quiet = {step: load(tmp_path / "quiet", step) for step in range(7)}
    for first in range(7):
        folder = tmp_path / str(first)
        shutil.copytree(tmp_path / "quiet", folder)
        for step in range(first + 1, 7):
            (folder / "checkpoints" / f"step-{step:06d}.ckpt").unlink()
        train(folder, run, resume=True)
        for step in range(first + 1, 7):
            assert same(load(folder, step), quiet[step]), (first, step)
        assert fakes.weights_of(folder) == fakes.weights_of(tmp_path / "quiet")
        assert measured(folder) == measured(tmp_path / "quiet")


def load(folder: Path, step: int) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / "checkpoints" / f"step-{step:06d}.ckpt", weights_only=True)
    del state["counters"]["seconds"]
    return state


def measured(folder: Path) -> list[dict[str, Any]]:
    """The metrics file without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in {"seconds", "images_per_second", "data_wait"}} for line in lines]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_a_signal_saves_between_two_steps_and_exits_with_75(
    tmp_path: Path, fakes: ModuleType, train: Train, fork: Callable[..., Any], name: str
) -> None:
    from ssldet.engine.folder import RunFolder
    from ssldet.engine.steps import Checkpoints

    record = tmp_path / "record.txt"
    run = fakes.a_run(
        task=fakes.FakeTask(record=str(record)), budget__steps=20_000, checkpoint__every_steps=10_000, log_every=100
    )
    child = fork(lambda: train(tmp_path / "a", run))
    while len(lines_of(record)) < 5 and not child.ended():
        time.sleep(0.005)
    child.kill(signal.Signals[name])
    child.kill(signal.Signals[name])
    began = time.monotonic()
    assert child.wait() == 75
    assert time.monotonic() - began < 5
    found = Checkpoints(tmp_path / "a" / "checkpoints").newest()
    assert found is not None
    assert found.step == len(lines_of(record))
    counts = {int(entry["step"]) for entry in found.state["optimizer"]["state"].values()}
    assert counts == {found.step}
    status = RunFolder(tmp_path / "a").status()
    assert status["status"] == "stopped"
    assert f"by {name}" in status["reason"]
    assert status["resume"] in status["reason"]


def test_a_signal_during_an_evaluation_repeats_it_after_the_resume(
    tmp_path: Path, fakes: ModuleType, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssldet.errors import StoppedError

    run = fakes.a_run(data__val=("fake:9",), evaluate_every=5, checkpoint__every_steps=100)
    expected = train(tmp_path / "quiet", run)

    def interrupted(self: Any, detections: Any, batch: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    with monkeypatch.context() as patch:
        patch.setattr(fakes.FakeEvaluator, "update", interrupted)
        with pytest.raises(StoppedError, match="stopped at step 5 of 12"):
            train(tmp_path / "a", run)
    assert before == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    assert train(tmp_path / "a", run, resume=True) == expected
    assert measured(tmp_path / "a") == measured(tmp_path / "quiet")
    assert fakes.weights_of(tmp_path / "a") == fakes.weights_of(tmp_path / "quiet")


def test_a_damaged_checkpoint_costs_steps_and_nothing_else(
    tmp_path: Path, fakes: ModuleType, train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    run = fakes.a_run()
    train(tmp_path / "a", run)
    quiet = fakes.weights_of(tmp_path / "a")
    with (tmp_path / "a" / "checkpoints" / "step-000012.ckpt").open("r+b") as file:
        file.truncate(1000)
    train(tmp_path / "a", run, resume=True)
    assert "going on from step 10 instead of 12; steps lost: 2" in caplog.text
    assert fakes.weights_of(tmp_path / "a") == quiet
    assert (tmp_path / "a" / "checkpoints" / "step-000012.ckpt.damaged").exists()
    assert [line["step"] for line in measured(tmp_path / "a")] == list(range(1, 13))


def test_what_a_killed_process_had_staged_is_deleted(tmp_path: Path, fakes: ModuleType, train: Train) -> None:
    run = fakes.a_run()
    train(tmp_path / "a", run)
    staged = ["run.json.tmp-1", "weights/best-000004.safetensors.tmp-1", "checkpoints/step-000012.ckpt.tmp-1"]
    for name in staged:
        (tmp_path / "a" / name).write_bytes(b"half")
    train(tmp_path / "a", run, resume=True)
    assert not [name for name in staged if (tmp_path / "a" / name).exists()]


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a checkpoint holds, and let its checksum agree."""
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    path.with_name(path.name + ".sha256").write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state["objective"]["scale.weight"].fill_(float("nan")), "scale.weight is not finite"),
        (lambda state: state["objective"]["scale.weight"].fill_(3e38), "scale.weight holds 3e+38, too large"),
        (lambda state: state.pop("optimizer"), "holds no optimizer"),
        (lambda state: state["run"].update(seed=9), "of another run, with another seed"),
    ],
    ids=["nan", "huge", "lacking", "another run"],
)
def test_a_checkpoint_of_bad_content_costs_steps_like_a_damaged_one(
    tmp_path: Path, fakes: ModuleType, train: Train, caplog: pytest.LogCaptureFixture, change: Any, says: str
) -> None:
    run = fakes.a_run()
    train(tmp_path / "a", run)
    quiet = fakes.weights_of(tmp_path / "a")
    rewrite(tmp_path / "a" / "checkpoints" / "step-000012.ckpt", change)
    train(tmp_path / "a", run, resume=True)
    assert says in caplog.text
    assert "going on from step 10 instead of 12" in caplog.text
    assert fakes.weights_of(tmp_path / "a") == quiet


def test_a_run_from_before_a_field_existed_goes_on_as_it_would_have(
    tmp_path: Path, fakes: ModuleType, train: Train
) -> None:
    run = fakes.a_run()
    train(tmp_path / "quiet", run)
    train(tmp_path / "a", run)
    path = tmp_path / "a" / "checkpoints" / "step-000010.ckpt"
    for newer in (tmp_path / "a" / "checkpoints").glob("step-000012.*"):
        newer.unlink()
    rewrite(path, lambda state: state["run"]["optim"].pop("lr_sampling_factor"))
    record = tmp_path / "a" / "run.toml"
    kept = [line for line in record.read_text().splitlines() if not line.startswith("lr_sampling_factor")]
    record.write_text("\n".join(kept))
    train(tmp_path / "a", read_recipe(type(run), record), resume=True)
    assert fakes.weights_of(tmp_path / "a") == fakes.weights_of(tmp_path / "quiet")


def test_an_edited_record_is_refused_by_its_field_and_not_by_the_checkpoints(
    tmp_path: Path, fakes: ModuleType, train: Train
) -> None:
    from ssldet.errors import ConfigError

    run = fakes.a_run()
    train(tmp_path / "a", run)
    record = tmp_path / "a" / "run.toml"
    record.write_text(record.read_text().replace("seed = 0", "seed = 5"))
    with pytest.raises(ConfigError, match="seed: was 0, is 5"):
        train(tmp_path / "a", replace(run, seed=5), resume=True)


def test_a_damaged_metrics_line_is_told_and_kept(
    tmp_path: Path, fakes: ModuleType, train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    run = fakes.a_run()
    train(tmp_path / "a", run)
    path = tmp_path / "a" / "metrics.jsonl"
    lines = path.read_text().splitlines()
    lines[4] = lines[4][:-3]
    lines[6] = "[7]"
    path.write_text("\n".join(lines) + "\n")
    train(tmp_path / "a", run, resume=True)
    assert "2 lines can't be read (line 5, 7)" in caplog.text
    assert (tmp_path / "a" / "metrics.damaged.txt").read_text() == f"{lines[4]}\n[7]\n"
    assert len(path.read_text().splitlines()) == 10


def test_another_evaluation_set_and_a_moved_training_set_are_taken_up(
    tmp_path: Path, fakes: ModuleType, train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    run = fakes.a_run(data__val=("fake:3",))
    assert train(tmp_path / "a", run)["images"] == 3
    quiet = fakes.weights_of(tmp_path / "a")
    moved = replace(run, data=replace(run.data, val=("fake:5",), train=("elsewhere:10",)), evaluate_every=4)
    assert train(tmp_path / "a", moved, resume=True)["images"] == 5
    assert "data.train: ['elsewhere:10'] instead of ['fake:10'] from here on" in caplog.text
    assert fakes.weights_of(tmp_path / "a") == quiet
    assert train(tmp_path / "a", moved, resume=True)["images"] == 5


def test_harmless_changes_are_taken_up_and_others_refused(
    tmp_path: Path, fakes: ModuleType, train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    from ssldet.engine.folder import RunFolder
    from ssldet.errors import ConfigError

    run = fakes.a_run(optim__schedule="constant")
    train(tmp_path / "a", run)
    wrong = replace(run, seed=1, optim=replace(run.optim, lr=0.5), log_every=3)
    with pytest.raises(ConfigError) as caught:
        train(tmp_path / "a", wrong, resume=True)
    assert len(caught.value.problems) == 2
    assert caught.value.problems[0].startswith("optim.lr: was 0.01, is 0.5; a run can't change it on the way")
    assert RunFolder(tmp_path / "a").run() == run
    longer = replace(run, budget=replace(run.budget, steps=14))
    train(tmp_path / "a", longer, resume=True)
    assert "budget.steps: 14 instead of 12 from here on" in caplog.text
    assert RunFolder(tmp_path / "a").run() == longer
    train(tmp_path / "b", longer)
    assert fakes.weights_of(tmp_path / "a") == fakes.weights_of(tmp_path / "b")
    with pytest.raises(ConfigError, match="has taken 14 steps already, more than the 3 asked for"):
        train(tmp_path / "a", replace(run, budget=replace(run.budget, steps=3)), resume=True)


def test_another_data_set_is_refused(tmp_path: Path, fakes: ModuleType, train: Train, monkeypatch: Any) -> None:
    from ssldet.engine import sources
    from ssldet.errors import DataError

    run = fakes.a_run()
    train(tmp_path / "a", run)
    for count, salt, message in ((11, "", "10 images then, 11 now"), (10, "x", "but others or in another order")):
        other = fakes.FakeSource(count, salt=salt)
        monkeypatch.setattr(sources, "open_source", lambda specs, other=other, **_: other)
        with pytest.raises(DataError, match=message):
            train(tmp_path / "a", run, resume=True)


def test_there_must_be_something_to_go_on_from(tmp_path: Path, fakes: ModuleType, train: Train) -> None:
    from ssldet.engine.folder import RunFolder
    from ssldet.errors import CheckpointError

    RunFolder.create(tmp_path / "a", fakes.a_run()).release()
    with pytest.raises(CheckpointError, match="no checkpoint to go on from; start the run again"):
        train(tmp_path / "a", fakes.a_run(), resume=True)


def test_a_handed_over_detector_survives_a_resume(tmp_path: Path, fakes: ModuleType, train: Train) -> None:
    from ssldet.errors import StoppedError

    run = fakes.a_run()
    objective = run.task.objective(run.detector.build())
    with torch.no_grad():
        objective.detector.backbone.weight.fill_(0.25)

    def stop(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StoppedError):
        train(tmp_path / "a", run, objective=objective, preview=stop)
    train(tmp_path / "a", run, resume=True)
    handed = fakes.weights_of(tmp_path / "a")["detector.backbone.weight"]
    assert handed == torch.full((4, 3, 3, 3), 0.25).numpy().tobytes().hex()
