"""A checkpoint is written while training goes on: of the step that it is of, whatever fails, whenever it is killed."""

import io
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ssldet.disk import Disk
from ssldet.engine.saving import BackgroundWork, Snapshot
from ssldet.engine.steps import Checkpoints

Train = Callable[..., dict[str, Any]]
OPERATIONS = ("create", "put", "sync", "replace", "sync_folder", "digest", "names", "remove")
"""What a save asks of the disk."""


def lines_of(record: Path) -> int:
    return len(record.read_text().splitlines()) if record.exists() else 0


def until(true: Callable[[], bool], seconds: float) -> bool:
    """Wait until something is true; says whether it came to that."""
    end = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < end:
        time.sleep(0.002)
    return found


def saved(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def test_a_snapshot_is_the_state_as_it_was_to_the_byte_of_the_file() -> None:
    weight = torch.arange(12.0).reshape(3, 4)
    state = {
        "weight": weight,
        "tied": weight.detach(),
        "turned": weight.t()[1:],
        "empty": torch.empty(0),
        "nested": [{"step": torch.tensor(3), "rates": (1e-3, None)}, torch.tensor([True, False])],
        "text": "résumé",
    }
    before = saved(state)
    copied = Snapshot(state)
    weight.zero_()
    state["nested"][0]["step"] += 1  # type: ignore[index]
    assert saved(copied.state()) == before
    assert copied.state()["tied"].data_ptr() == copied.state()["weight"].data_ptr()


def test_work_in_the_background_ends_where_it_is_waited_for_with_its_error() -> None:
    work, go = BackgroundWork(), threading.Event()
    work.wait()
    assert not work.over
    work.start(go.wait, "waits")
    assert not work.over
    go.set()
    assert until(lambda: work.over, 5)
    work.wait()
    assert not work.over
    work.start(lambda: 1 // 0, "fails")
    with pytest.raises(ZeroDivisionError):
        work.wait()
    work.wait()


def test_training_goes_on_while_a_checkpoint_is_written(
    tmp_path: Path, fakes: ModuleType, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, save, went_on = tmp_path / "record.txt", Checkpoints.save, []

    def slowly(self: Checkpoints, step: int, state: dict[str, Any]) -> None:
        if step == 4:
            went_on.append(until(lambda: lines_of(record) >= 6, 20))
        save(self, step, state)

    run = fakes.a_run(task=fakes.FakeTask(record=str(record)), checkpoint__keep=10)
    train(tmp_path / "quiet", fakes.a_run(checkpoint__keep=10))
    monkeypatch.setattr(Checkpoints, "save", slowly)
    train(tmp_path / "a", run)
    assert went_on == [True]
    for step in range(0, 13, 2):
        one, other = (Checkpoints(tmp_path / name / "checkpoints").read(step) for name in ("a", "quiet"))
        assert all(torch.equal(one["objective"][name], value) for name, value in other["objective"].items())
    assert fakes.weights_of(tmp_path / "a") == fakes.weights_of(tmp_path / "quiet")


def test_a_run_killed_at_any_operation_of_a_save_goes_on_from_the_newest_valid_step(
    tmp_path: Path, fakes: ModuleType, train: Train, fork: Callable[..., Any]
) -> None:
    train(tmp_path / "quiet", fakes.a_run(budget__steps=8))
    quiet = fakes.weights_of(tmp_path / "quiet")
    killed = 0
    for number in range(1, 40):
        folder, record = tmp_path / f"{number}", tmp_path / f"{number}.txt"
        run = fakes.a_run(task=fakes.FakeTask(record=str(record)), budget__steps=8)
        child = fork(lambda run=run, folder=folder, record=record, at=number: _killed(train, folder, run, record, at))
        if child.wait() == 0:
            break
        killed += 1
        found = Checkpoints(folder / "checkpoints").newest()
        assert found is not None
        assert found.step in {4, 6}
        assert not found.damaged
        assert lines_of(record) > 6, "the kill came while training waited"
        train(folder, run, resume=True)
        assert fakes.weights_of(folder) == quiet
    assert killed >= 14


def _killed(train: Train, folder: Path, run: Any, record: Path, at: int) -> None:
    """Train; at this operation of the save of step 6, wait until training has gone on, and be killed."""
    save, left, saving = Checkpoints.save, at, threading.local()

    def of_one_step(self: Checkpoints, step: int, state: dict[str, Any]) -> None:
        saving.step = step
        save(self, step, state)
        saving.step = None

    def killing(operation: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*given: Any) -> Any:
            nonlocal left
            if getattr(saving, "step", None) == 6:
                left -= 1
                if not left:
                    until(lambda: lines_of(record) > 6, 5)
                    os.kill(os.getpid(), signal.SIGKILL)
            return operation(*given)

        return instead

    Checkpoints.save = of_one_step  # type: ignore[method-assign]
    for name in OPERATIONS:
        setattr(Disk, name, killing(getattr(Disk, name)))
    train(folder, run)


def test_what_is_no_fault_of_the_disk_ends_the_run(
    tmp_path: Path, fakes: ModuleType, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Checkpoints, step: int, state: dict[str, Any]) -> None:
        if step:
            raise TypeError("state.x: set would not load without running code")

    monkeypatch.setattr(Checkpoints, "save", broken)
    with pytest.raises(TypeError, match="would not load"):
        train(tmp_path / "a", fakes.a_run())


def test_a_run_that_fails_lets_its_checkpoint_be_written_first(
    tmp_path: Path, fakes: ModuleType, train: Train, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from ssldet.engine.progress import Progress

    save, begin_step = Checkpoints.save, Progress.begin_step
    failing: set[str] = set()

    def slowly(self: Checkpoints, step: int, state: dict[str, Any]) -> None:
        if step == 4:
            time.sleep(0.3)
            if failing:
                raise OSError(28, "No space left on device")
        save(self, step, state)

    def ends(self: Progress) -> None:
        if self.step == 5:
            raise RuntimeError("the device is gone")
        begin_step(self)

    monkeypatch.setattr(Checkpoints, "save", slowly)
    monkeypatch.setattr(Progress, "begin_step", ends)
    with pytest.raises(RuntimeError, match="the device is gone"):
        train(tmp_path / "a", fakes.a_run())
    assert Checkpoints(tmp_path / "a" / "checkpoints").steps() == [4, 2]
    assert "could NOT" not in caplog.text
    failing.add("disk")
    with pytest.raises(RuntimeError, match="the device is gone"):
        train(tmp_path / "b", fakes.a_run())
    assert Checkpoints(tmp_path / "b" / "checkpoints").steps() == [2, 0]
    assert "step 4: a checkpoint could NOT be saved (OSError: [Errno 28] No space left on device)" in caplog.text
    assert not [thread for thread in threading.enumerate() if thread.name == "checkpoint"]
