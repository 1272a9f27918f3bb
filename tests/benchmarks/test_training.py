"""Steps, the engine and checkpoints are timed against what they are compared with."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.timing import training
from ssldet.engine.run import Run


def test_the_start_and_the_end_of_a_run_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0

    def engine(run: Run, _: Any) -> None:
        nonlocal clock
        clock += 100 + 2 * (run.budget.steps or 0)

    def bare(run: Run, _: Any) -> None:
        nonlocal clock
        clock += 7 + (run.budget.steps or 0)

    monkeypatch.setattr(training, "fit", engine)
    monkeypatch.setattr(training, "_bare", bare)
    monkeypatch.setattr(training, "of_processor", lambda: clock)
    (row,) = training.measure_engine(tmp_path, 2, steps=30)
    assert (row.seconds, row.ratio, row.repeats) == (60, 0.5, 2)
