"""A suite of moments, and runs inside this process in place of processes of their own."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import pytest

from benchmarks.comparing import FinishedComparison, compare
from benchmarks.suite import Claim, Downstream, Method, Setting, Suite
from benchmarks.suites import find_suite
from ssldet.cli import main
from ssldet.engine.run import Run
from ssldet.recipe import override

SHORT: dict[str, object] = {"budget.steps": 2, "data.batch_size": 3, "checkpoint.every_steps": 1, "evaluate_every": 1}


@dataclass
class Ended:
    """What a process looks like when it is over."""

    returncode: int
    pid: int = 0

    def poll(self) -> int:
        return self.returncode


class InProcess:
    """Starts runs inside this process, one after the other; remembers what was asked for."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []

    def __call__(
        self, command: Sequence[str], environment: Mapping[str, str], log_file: BinaryIO, lock: BinaryIO
    ) -> Ended:
        assert list(command[:3]) == [sys.executable, "-m", "ssldet"]
        self.commands.append(list(command[3:]))
        try:
            main(command[3:])
        except SystemExit as error:
            return Ended(error.code if isinstance(error.code, int) else 1)
        return Ended(0)


def shorten(run: Run) -> Run:
    return override(run, SHORT)


@pytest.fixture(scope="session")
def suite() -> Suite:
    """Smoke, cut down: no pretraining twice, one pretraining for two seeds, and a baseline that can't be run."""
    whole = find_suite("smoke", Setting())
    methods = tuple(
        replace(method, stages=tuple(map(shorten, method.stages)))
        for method in whole.methods
        if method.name in {"none", "updetr"}
    )
    absent = Method(name="backbone", title="absent", role="backbone", missing="left out of this test")
    task: Downstream = whole.downstreams[0]
    data = {
        name: replace(getattr(task, name), images=images)
        for name, images in (("train", 7), ("val", 5), ("unlabelled", 8), ("unlabelled_val", 4))
    }
    downstream = replace(task, stages=tuple(map(shorten, task.stages)), **data)
    claim = Claim(words="helps", higher="updetr", lower="none")
    return replace(whole, methods=(*methods, absent), downstreams=(downstream,), claims=(claim,))


@pytest.fixture(scope="session")
def carried_out(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FinishedComparison, InProcess]:
    """The suite, undisturbed: its folder, what it came to, and what was started."""
    out, start = tmp_path_factory.mktemp("undisturbed"), InProcess()
    compared = compare(suite, out=out, start=start)
    assert isinstance(compared, FinishedComparison)
    return out, compared, start
