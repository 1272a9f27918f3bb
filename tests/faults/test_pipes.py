"""A pipe where a file should be: it is refused in one line or left out, and never waited for."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.faults.forking import start
from tests.faults.test_environment import at_step, signalled
from tests.faults.world import weights_of

PIPE = "a pipe, not a regular file"


def refused(words: Sequence[str], place: Path, code: int, path: Path) -> None:
    """Require that a verb ends at once by one line that names the pipe."""
    command = start(words, place)
    assert command.wait() == code, command.err.read_text()
    said = command.err.read_text().splitlines()
    assert [line for line in said if line.startswith("error: ")] == said[-1:], said
    assert str(path) in said[-1]
    assert PIPE in said[-1]
    assert not any(line.startswith("Traceback") for line in said)


@pytest.mark.parametrize("verb", ["finetune", "evaluate", "predict", "export"])
@pytest.mark.parametrize("where", ["file", "run"])
def test_weights_that_are_a_pipe_are_refused(world: Any, tmp_path: Path, verb: str, where: str) -> None:
    run = tmp_path / "run"
    pipe = tmp_path / "a.safetensors" if where == "file" else run / "weights" / "model.safetensors"
    if where == "run":
        shutil.copytree(world.finetuned, run)
        pipe.unlink()
    os.mkfifo(pipe)
    out = tmp_path / "out"
    given = {"scratch", world.finetuned}
    words = [str(pipe if where == "file" else run) if word in given else word for word in world.words(verb, out)]
    refused(words, tmp_path / "said", 5, pipe)
    assert not out.exists()


@pytest.fixture(scope="module")
def stopped(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that a signal stopped after its first step."""
    place = tmp_path_factory.mktemp("stopped")
    command = start(world.words("finetune", place / "run"), place / "said", at_step(1, signalled("SIGTERM")))
    assert command.wait() == 75, command.err.read_text()
    return place / "run"


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "quarantine.jsonl", "train.log", ".lock"])
def test_a_run_whose_file_is_a_pipe_is_refused_and_goes_on_without_it(
    world: Any, tmp_path: Path, stopped: Path, name: str
) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    whole = (run / name).read_bytes() if (run / name).exists() else b""
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    refused(world.resume("finetune", run), tmp_path / "said", 4, run / name)
    (run / name).unlink()
    (run / name).write_bytes(whole)
    again = start(world.resume("finetune", run), tmp_path / "again")
    assert again.wait() == 0, again.err.read_text()
    assert weights_of(run) == weights_of(Path(world.finetuned))
    assert json.loads((run / "run.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("name", ["run.toml", "checkpoints/step-000004.ckpt", "checkpoints/step-000004.ckpt.sha256"])
def test_a_run_goes_on_by_an_earlier_checkpoint_or_its_configuration(world: Any, tmp_path: Path, name: str) -> None:
    run = Path(shutil.copytree(world.finetuned, tmp_path / "run"))
    (run / name).unlink()
    os.mkfifo(run / name)
    command = start(world.resume("finetune", run), tmp_path / "said")
    assert command.wait() == 0, command.err.read_text()
    said = command.err.read_text()
    assert str(run / name.removesuffix(".sha256")) in said
    assert PIPE in said
    assert weights_of(run) == weights_of(Path(world.finetuned))


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "quarantine.jsonl", "transfer.json"])
def test_a_report_goes_without_a_file_that_is_a_pipe(world: Any, tmp_path: Path, name: str) -> None:
    run = Path(shutil.copytree(world.finetuned, tmp_path / "run"))
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    command = start(["report", str(run)], tmp_path / "said")
    assert command.wait() == 0, command.err.read_text()
    said = command.err.read_text()
    assert f"{run / name}: can't be read ({PIPE}" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(("name", "code"), [("run.toml", 2), ("lineage.json", 4)])
def test_a_report_needs_a_file_that_is_a_pipe(world: Any, tmp_path: Path, name: str, code: int) -> None:
    run = Path(shutil.copytree(world.finetuned, tmp_path / "run"))
    (run / "report.html").unlink(missing_ok=True)
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    refused(["report", str(run)], tmp_path / "said", code, run / name)
    assert not (run / "report.html").exists()
