"""functions -> ratios: timed in turns, so that whatever else the machine does hits all of them alike."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ssldet.disk import Disk, write_whole


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times faster some work is than another way to do it.

    Attributes:
        work: What was timed.
        against: The other way.
        ratio: Time of the other way divided by the time of the work; above 1 the work is faster.
        repeats: Rounds, of each of which the fastest counts.
        note: What bounds or explains the number.
    """

    work: str
    against: str
    ratio: float
    repeats: int
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**vars(self), "ratio": float(f"{self.ratio:.3g}")}


def fastest(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the shortest duration of each function in seconds, after one round that warms up.

    Args:
        ways: Functions by name; called in turns.
        repeats: Rounds that count.
    """
    best = dict.fromkeys(ways, math.inf)
    for number in range(repeats + 1):
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            passed = time.perf_counter() - begun
            if number:
                best[name] = min(best[name], passed)
    return best


def ratio(
    work: tuple[str, Callable[[], object]], against: tuple[str, Callable[[], object]], repeats: int, note: str = ""
) -> Ratio:
    """Time two functions in turns.

    Args:
        work: Name and function.
        against: Name and function of the other way.
        repeats: Rounds.
        note: What bounds or explains the number.
    """
    times = fastest({"work": work[1], "against": against[1]}, repeats)
    return Ratio(work=work[0], against=against[0], ratio=times["against"] / times["work"], repeats=repeats, note=note)


def write(path: Path, machine: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write what has been measured so far, whole or not at all.

    Args:
        path: A JSON file.
        machine: Where it was measured.
        rows: The results.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps({"machine": dict(machine), "results": list(rows)}, indent=1) + "\n").encode(), Disk())
