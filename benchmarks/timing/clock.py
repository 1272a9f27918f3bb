"""functions -> ratios: timed in turns, so that whatever else the machine does hits all of them alike."""

import json
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from ssldet.disk import Disk, write_whole


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times faster some work is than another way to do it.

    Attributes:
        work: What was timed.
        against: The other way.
        ratio: Median time of the other way divided by that of the work; above 1 the work is faster.
        low: A quarter of the rounds gave a smaller ratio.
        high: A quarter of the rounds gave a larger one.
        seconds: Median time of the work.
        repeats: Rounds.
        note: What bounds or explains the number.
        bytes: Bytes that the work must read and write, each once; zero where caches hold them, or nobody counted.
    """

    work: str
    against: str
    ratio: float
    low: float
    high: float
    seconds: float
    repeats: int
    note: str = ""
    bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        rounded = {name: float(f"{getattr(self, name):.3g}") for name in ("ratio", "low", "high", "seconds")}
        return {**vars(self), **rounded}


def in_turns(ways: Sequence[Callable[[], object]], repeats: int, clock: Callable[[], float]) -> list[tuple[float, ...]]:
    """Return the seconds that each function took in each round, after one that warms up.

    Args:
        ways: Functions, called in turns.
        repeats: Rounds that count.
        clock: Tells the seconds.
    """
    rounds = [tuple(seconds_of(way, clock) for way in ways) for _ in range(repeats + 1)]
    return rounds[1:]


def seconds_of(way: Callable[[], object], clock: Callable[[], float]) -> float:
    """Return the seconds that a call takes.

    Args:
        way: What is called.
        clock: Tells the seconds.
    """
    begun = clock()
    way()
    return clock() - begun


def of_processor() -> float:
    """Return the seconds that processors worked for this process and those that it waited for, whoever else kept them.

    Other programs still take caches, and the other half of a core; hence rounds in turns.
    """
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def of_wall() -> float:
    """Return the seconds that pass, the work of an accelerator included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def compared(work: str, against: str, rounds: Sequence[tuple[float, ...]], note: str = "") -> Ratio:
    """Return what rounds of two functions say.

    Args:
        work: Name of the first function.
        against: Name of the second one.
        rounds: Seconds of both in each round.
        note: What bounds or explains the number.
    """
    ours, theirs = zip(*rounds, strict=True)
    ratios = sorted(other / own for own, other in rounds)
    low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return Ratio(
        work=work, against=against, ratio=median(theirs) / median(ours), low=low, high=high, seconds=median(ours),
        repeats=len(rounds), note=note,
    )  # fmt: skip


def fastest(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the shortest duration of each function in seconds, after one round that warms up.

    Args:
        ways: Functions by name; called in turns.
        repeats: Rounds that count.
    """
    rounds = in_turns(list(ways.values()), repeats, of_wall)
    return {name: min(seconds) for name, seconds in zip(ways, zip(*rounds, strict=True), strict=True)}


def ratio(
    work: tuple[str, Callable[[], object]], against: tuple[str, Callable[[], object]], repeats: int, note: str = ""
) -> Ratio:
    """Compare the processor's time for two functions, in turns.

    Args:
        work: Name and function.
        against: Name and function of the other way.
        repeats: Rounds.
        note: What bounds or explains the number.
    """
    return compared(work[0], against[0], in_turns([work[1], against[1]], repeats, of_processor), note)


def write(path: Path, machine: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write what has been measured so far, whole or not at all.

    Args:
        path: A JSON file.
        machine: Where it was measured.
        rows: The results.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps({"machine": dict(machine), "results": list(rows)}, indent=1) + "\n").encode(), Disk())
