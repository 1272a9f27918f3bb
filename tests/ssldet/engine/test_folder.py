"""The run folder: who may write there, and what can be read again."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ssldet.engine.folder import RunFolder
from ssldet.engine.writing import Lines
from ssldet.errors import ConfigError, SetupError


def test_a_new_folder_says_what_will_run(tmp_path: Path, fakes: ModuleType) -> None:
    run = fakes.a_run(seed=7)
    folder = RunFolder.create(tmp_path / "deep" / "a", run, "ssldet pretrain images --set seed=7")
    folder.release()
    assert RunFolder(folder.path).run() == run
    text = (folder.path / "run.toml").read_text()
    assert text.startswith("# Written by ssldet ")
    assert "# ssldet pretrain images --set seed=7\n" in text
    status = folder.status()
    assert (status["status"], status["seed"], status["steps"]) == ("created", 7, 0)
    assert set(status["versions"]) == {"ssldet", "torch", "torchvision", "timm", "pytorch-lightning"}
    assert os.uname().nodename not in json.dumps(status)


def test_a_used_folder_is_refused_with_the_way_out(tmp_path: Path, fakes: ModuleType) -> None:
    run = fakes.a_run()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="is not empty and not a run; choose another --out"):
        RunFolder.create(tmp_path / "foreign", run)
    assert [path.name for path in (tmp_path / "foreign").iterdir()] == ["thesis.tex"]
    with pytest.raises(ConfigError, match="is a file"):
        RunFolder.create(tmp_path / "foreign" / "thesis.tex", run)
    folder = RunFolder.create(tmp_path / "a b", run)
    folder.release()
    folder.checkpoints.mkdir()
    (folder.checkpoints / "step-000000.ckpt").touch()
    with pytest.raises(ConfigError, match=r"holds a run already.*--resume '.*a b'"):
        RunFolder.create(folder.path, run)


def test_a_folder_in_which_nothing_was_trained_can_be_used_again(tmp_path: Path, fakes: ModuleType) -> None:
    folder = RunFolder.create(tmp_path / "a", fakes.a_run())
    folder.release()
    folder.checkpoints.mkdir()
    for name in ("metrics.jsonl", "transfer.json", "run.json.tmp-12", "checkpoints/step-000000.ckpt.tmp-12"):
        (folder.path / name).write_text("old")
    again = RunFolder.create(tmp_path / "a", fakes.a_run(seed=3))
    again.release()
    assert again.run().seed == 3
    assert not (again.path / "transfer.json").exists()
    assert not list(again.checkpoints.iterdir())


@pytest.mark.parametrize("text", ['{"mine": 1}', "[]", "{", '{"schema": 1, "status": "done", "versions": ["ssldet"]}'])
def test_what_another_program_calls_a_run_stays_as_it_is(text: str, tmp_path: Path, fakes: ModuleType) -> None:
    files = ("run.json", "metrics.jsonl", "train.log", "quarantine.jsonl", "notes.md")
    for name in files:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match="is not empty and not a run; choose another --out"):
        RunFolder.create(tmp_path, fakes.a_run())
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(files, text)


def test_a_start_after_a_kill_takes_the_lock_and_its_own_settings(
    tmp_path: Path, fakes: ModuleType, fork: Callable[..., Any]
) -> None:
    from ssldet.engine.fit import fit

    RunFolder.create(tmp_path / "a", fakes.a_run(seed=1)).release()
    codes: list[int] = []

    def try_to_start(*_: Any) -> Any:
        codes.append(fork(lambda: fit(fakes.a_run(), RunFolder(tmp_path / "a"))).wait())
        codes.append(fork(lambda: fit(fakes.a_run(), RunFolder(tmp_path / "a"), resume=True)).wait())
        raise ValueError("no picture")

    fit(fakes.a_run(seed=2, preview_every=0), RunFolder(tmp_path / "a"), preview=try_to_start)
    assert codes[1:2] == codes[3:4] == [SetupError.exit_code]
    assert 0 not in codes
    assert RunFolder(tmp_path / "a").run().seed == RunFolder(tmp_path / "a").status()["seed"] == 2


def test_a_lock_that_is_no_file_is_said_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(SetupError, match="a pipe, not a regular file, and can't be locked"):
        RunFolder(tmp_path).lock()


def test_the_end_of_a_run_whose_status_is_no_file_is_said_and_raises_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.mkfifo(tmp_path / "run.json")
    RunFolder(tmp_path).conclude(status="failed")
    assert "run.json: a pipe, not a regular file; how the run ended is not written there" in caplog.text


def test_a_second_process_is_refused_and_a_dead_one_leaves_no_lock(
    tmp_path: Path, fakes: ModuleType, fork: Callable[..., Any]
) -> None:
    def hold() -> None:
        held = RunFolder.create(tmp_path / "a", fakes.a_run())
        (tmp_path / "held").touch()
        time.sleep(60)
        held.release()

    child = fork(hold)
    while not (tmp_path / "held").exists() and not child.ended():
        time.sleep(0.005)
    with pytest.raises(SetupError, match=rf"process {child.pid} on .* is at work here"):
        RunFolder(tmp_path / "a").lock()
    with pytest.raises(SetupError, match="is at work here"):
        RunFolder.create(tmp_path / "a", fakes.a_run())
    child.kill()
    assert child.wait() == -signal.SIGKILL
    folder = RunFolder(tmp_path / "a")
    folder.lock()
    folder.release()


def test_many_processes_race_for_one_folder_and_one_wins(
    tmp_path: Path, fakes: ModuleType, fork: Callable[..., Any]
) -> None:
    def race() -> None:
        while not (tmp_path / "go").exists():
            time.sleep(0.001)
        folder = RunFolder.create(tmp_path / "a", fakes.a_run())
        while not (tmp_path / "over").exists():
            time.sleep(0.001)
        folder.release()

    children = [fork(race) for _ in range(5)]
    (tmp_path / "go").touch()
    while sum(child.ended() for child in children) < 4:
        time.sleep(0.001)
    (tmp_path / "over").touch()
    assert sorted(child.wait() for child in children) == [0, 4, 4, 4, 4]


def test_what_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not a run folder; it has no run\.toml"):
        RunFolder(tmp_path).run()
    with pytest.raises(ConfigError, match="no such run"):
        RunFolder(tmp_path / "a").lock()
    assert RunFolder(tmp_path).status() == {}
    assert RunFolder(tmp_path).metrics() == []


def test_metrics_survive_a_torn_line_and_can_be_cut_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        Lines(path).write({"step": step, "loss": float("nan")})
        with path.open("a") as torn:
            torn.write('{"step": 99, "lo')
    folder = RunFolder(tmp_path)
    assert folder.metrics() == [{"step": step, "loss": None} for step in (1, 2, 3)]
    folder.cut_metrics(2)
    assert path.read_text() == '{"step": 1, "loss": null}\n{"step": 2, "loss": null}\n'


def test_status_is_whole_or_absent(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.update(a=1, b=float("inf"))
    folder.update(a=2)
    assert folder.status() == {"a": 2, "b": None}
    (tmp_path / "run.json").write_text("{")
    assert folder.status() == {}
