"""A measurement in a process of its own: what fails, dies or hangs costs no more than its own rows."""

import math
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.timing.apart import Row, rows_apart


def works(number: int) -> Iterator[Row]:
    yield {"number": number}


def fails(number: int) -> Iterator[Row]:
    yield {"number": number}
    raise RuntimeError("no more memory")


def dies(number: int) -> Iterator[Row]:
    yield {"number": number}
    os._exit(9)


def hangs(number: int) -> Iterator[Row]:
    with subprocess.Popen(["sleep", "1000"]) as sleeping:
        yield {"number": number, "started": sleeping.pid}


@pytest.mark.parametrize(
    ("part", "why"),
    [(works, None), (fails, "RuntimeError: no more memory"), (dies, "its process ended with exit code 9")],
)
def test_rows_come_through_and_an_end_is_explained(part: Callable[[int], Iterator[Row]], why: str | None) -> None:
    rows = list(rows_apart(part, 7, math.inf))
    assert rows == [{"number": 7}, *([] if why is None else [{"failed": why}])]


def test_what_hangs_is_killed_with_all_that_it_started() -> None:
    times = [0.0]
    rows = rows_apart(hangs, 7, 0.5, now=lambda: times[0])
    sleeping = Path(f"/proc/{next(rows)['started']}/cmdline")
    times[0] = 1.0
    assert list(rows) == [{"failed": "was not done in its time, and killed"}]
    for _ in range(100):
        if not sleeping.exists() or not sleeping.read_bytes():
            return
        time.sleep(0.05)
    pytest.fail("what the measurement started is still alive")
