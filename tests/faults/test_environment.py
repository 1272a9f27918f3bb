"""Faults of the environment x verbs: the exit code, one line that says why, and what remains."""

import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.forking import start, without_privileges
from tests.faults.world import weights_of

Fault = Callable[[], object]


# Faults; each is called in the process of the verb.
def closed_output() -> None:
    os.close(1)
    sys.stdout = None


def closed_error() -> None:
    os.close(2)
    sys.stderr = None


def dead_pipe(number: int) -> Fault:
    def fault() -> None:
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, number)

    return fault


def full_output() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def few_files(more: int) -> Fault:
    def fault() -> None:
        lowest = os.open(os.devnull, os.O_RDONLY)  # what is left below the limit counts, and not how many are open
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + more, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

    return fault


def small_files() -> None:
    """No file grows beyond this many bytes, as on a disk with little room left."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4200, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def full_disk() -> None:
    """Nothing new can be written, whatever its size."""
    from ssldet.disk import Disk
    from ssldet.engine.writing import Lines

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    Disk.put = refuse  # type: ignore[method-assign]
    Lines._append = refuse  # type: ignore[method-assign]


def at_step(number: int, fault: Fault) -> Fault:
    """Let a fault come when a step has been taken."""

    def arm() -> None:
        from ssldet.engine.progress import Progress

        take_step = Progress.take_step

        def taken(self: Any, norm: Any) -> None:
            take_step(self, norm)
            if self.step == number:
                fault()

        Progress.take_step = taken  # type: ignore[method-assign]

    return arm


def signalled(name: str) -> Fault:
    return lambda: os.kill(os.getpid(), signal.Signals[name])


def killed_worker() -> None:
    import multiprocessing

    for child in multiprocessing.active_children()[:1]:
        os.kill(child.pid or 0, signal.SIGKILL)


def launched_with_taken_port() -> None:
    held = socket.socket()
    held.bind(("", 0))
    held.listen()
    os.environ |= dict.fromkeys(("RANK", "LOCAL_RANK", "GROUP_RANK"), "0")
    os.environ |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "2")
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(held.getsockname()[1]), "TORCHELASTIC_RUN_ID": "x"}
    globals()["_held"] = held


FULL = "error: standard output: No space left on device"
CLOSED = "error: an output was closed before all was written to it; files are written all the same"
NO_FILES = "oo many open files"
WRITERS = ("evaluate", "predict", "export", "convert", "preview")

# fault, how it is made, verbs, workers, exit code, what is said, what remains
TABLE: list[tuple[str, Fault, tuple[str, ...], int, int, str, str]] = [
    ("closed stdout", closed_output, ("pretrain", "evaluate", "check", "report"), 0, 4, CLOSED, "whole"),
    ("dead pipe", dead_pipe(1), ("finetune", "predict", "export", "convert", "list"), 0, 4, CLOSED, "whole"),
    ("full stdout", full_output, ("evaluate", "list"), 0, 4, FULL, "whole"),
    ("closed stderr", closed_error, ("evaluate", "list"), 0, 0, "", "whole"),
    ("dead error pipe", dead_pipe(2), ("pretrain", "evaluate"), 2, 0, "", "whole"),
    ("stderr dies at step 1", at_step(1, dead_pipe(2)), ("finetune",), 0, 0, "", "whole"),
    ("disk with little room", small_files, ("export", "preview", "predict"), 0, 4, "File too large", "nothing"),
    ("disk full", full_disk, ("export", "evaluate", "predict"), 0, 4, "No space left on device", "nothing"),
    ("disk full at step 1", at_step(1, full_disk), ("finetune",), 0, 4, "3 times in a row", "resumes"),
    ("little room at step 1", at_step(1, small_files), ("pretrain",), 2, 4, "3 times in a row", "resumes"),
    ("disk full at the last step", at_step(3, full_disk), ("pretrain",), 0, 4, "can't be finished", "resumes"),
    ("few files", few_files(30), ("pretrain", "evaluate"), 2, 0, "", "whole"),
    ("no files", few_files(0), ("pretrain", "evaluate", "predict", "convert", "export"), 0, 4, NO_FILES, "nothing"),
    ("SIGTERM", at_step(1, signalled("SIGTERM")), ("finetune",), 2, 75, "by SIGTERM", "resumes"),
    ("SIGINT", at_step(1, signalled("SIGINT")), ("pretrain",), 0, 75, "by SIGINT", "resumes"),
    ("SIGHUP", at_step(1, signalled("SIGHUP")), ("finetune",), 0, 75, "by SIGHUP", "resumes"),
    ("killed worker", at_step(1, killed_worker), ("pretrain",), 2, 0, "", "whole"),
    ("taken port", launched_with_taken_port, ("pretrain",), 0, 7, "Address already in use", "failed"),
]  # fmt: skip
ROWS = [(name, fault, verb, *rest) for name, fault, verbs, *rest in TABLE for verb in verbs]


@pytest.fixture(scope="module")
def quiet(world: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What each verb writes undisturbed."""
    place = tmp_path_factory.mktemp("quiet")
    found = {}
    for verb in WRITERS:
        out = place / named(verb)
        assert start(world.words(verb, out), place / f"{verb}-said").wait() == 0
        found[verb] = content(verb, out)
    runs = {"pretrain": world.pretrained, "finetune": world.finetuned}
    return found | {verb: content(verb, Path(run)) for verb, run in runs.items()}


def named(verb: str) -> str:
    """A name for what a verb writes."""
    return {"evaluate": "a.json", "export": "a.safetensors", "convert": "b.json", "preview": "a.png"}.get(verb, verb)


def content(verb: str, out: Path) -> bytes:
    """What counts of what a verb has written."""
    if verb in {"pretrain", "finetune"}:
        return weights_of(out)
    return (out / "predictions.json" if out.is_dir() else out).read_bytes()


@pytest.mark.parametrize(
    ("fault", "arm", "verb", "workers", "code", "says", "remains"), ROWS, ids=[f"{row[0]}-{row[2]}" for row in ROWS]
)
def test_a_fault_ends_as_the_table_says(
    world: Any, quiet: dict[str, bytes], tmp_path: Path, fault: str, arm: Fault, verb: str, workers: int, code: int,
    says: str, remains: str,
) -> None:  # fmt: skip
    out = tmp_path / named(verb)
    command = start(world.words(verb, out, workers), tmp_path / "said", arm)
    assert command.wait() == code, command.err.read_text()
    said = command.err.read_text()
    assert says in said
    assert "Traceback" not in said
    assert sum(line.startswith(("error: ", "stopped: ")) for line in said.splitlines()) == (1 if code else 0)
    status = json.loads((out / "run.json").read_text())["status"] if (out / "run.json").exists() else ""
    if remains == "nothing":
        assert [path for path in out.parent.iterdir() if path.name not in {"said", out.name}] == []
        assert not out.is_file()
        assert not out.is_dir() or not list(out.glob("*.json"))
    elif remains == "whole" and verb in quiet:
        assert content(verb, out) == quiet[verb]
        assert status in {"", "finished"}
    elif remains == "failed":
        assert status == "failed"
    elif remains == "resumes":
        assert status == ("stopped" if code == 75 else "failed")
        again = start(world.resume(verb, out), tmp_path / "again")
        assert again.wait() == 0, again.err.read_text()
        assert content(verb, out) == quiet[verb]
        assert json.loads((out / "run.json").read_text())["status"] == "finished"


@pytest.fixture
def closed_folder(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)


@pytest.mark.parametrize("verb", ["pretrain", "finetune", *WRITERS])
def test_a_folder_that_cannot_be_written_is_one_line(
    world: Any, tmp_path: Path, closed_folder: Path, verb: str
) -> None:
    command = start(world.words(verb, closed_folder / named(verb)), tmp_path / "said", without_privileges)
    assert command.wait() == 4, command.err.read_text()
    said = command.err.read_text().splitlines()
    assert str(closed_folder) in said[-1]
    assert said[-1].startswith("error: ")
    assert not any(line.startswith(("Traceback", "error")) for line in said[:-1])
    assert list(closed_folder.iterdir()) == []


@pytest.mark.parametrize("verb", ["pretrain", "finetune", *WRITERS])
def test_a_name_that_is_too_long_is_one_line(world: Any, tmp_path: Path, verb: str) -> None:
    command = start(world.words(verb, tmp_path / ("x" * 300 + named(verb)[-5:])), tmp_path / "said")
    assert command.wait() == 4, command.err.read_text()
    assert "File name too long" in command.err.read_text().splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["said"]


@pytest.mark.parametrize(
    "words",
    [
        ["pretrain", "y" * 300, "--recipe", "random_query_patch/tiny"],
        ["evaluate", "y" * 300, "--data", "coco:a.json:b"],
        ["finetune", "scratch", "--recipe", "detection/tiny", "--data", f"coco:{'y' * 300}:b"],
        ["finetune", "scratch", "--recipe", "detection/tiny", "--data", f"voc:{'y' * 300}"],
        ["finetune", "scratch", "--recipe", "detection/tiny", "--data", f"yolo:{'y' * 300}"],
        ["data", "check", "y" * 300],
        ["report", "y" * 300],
        ["pretrain", "--resume", "y" * 300],
        ["pretrain", "a", "--recipe", "y" * 300 + "/run.toml"],
    ],
    ids=lambda words: " ".join(word[:9] for word in words),
)
@pytest.mark.usefixtures("world")
def test_a_name_of_an_input_that_is_too_long_is_one_line(tmp_path: Path, words: list[str]) -> None:
    command = start(words, tmp_path / "said", lambda: os.chdir(tmp_path))
    assert command.wait() in {2, 3, 4, 5}, command.err.read_text()
    assert command.err.read_text().startswith("error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["said"]
