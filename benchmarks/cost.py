"""Plan -> predicted time and disk space, from measured runs of the same kind; other runs are unknown."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.plan import Plan
from benchmarks.work import JobFolder, kind_of
from ssldet.report.wording import duration

RESULTS = Path(__file__).parent / "results"
"""Committed results of the project, whose step times are used for kinds of runs that were not measured here."""


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """Cost of runs of one kind.

    Attributes:
        step: Seconds per optimiser step, evaluations included.
        disk: Bytes of a finished run.
        measured: Where the cost was measured: `here`, or the device of committed results.
    """

    step: float
    disk: float
    measured: str


class RunToMake(NamedTuple):
    """A run that has not finished.

    Attributes:
        address: Its address.
        title: Its purpose as one line.
        steps: Optimiser steps that are left.
        seconds: Predicted time; `None` if no run of its kind was measured.
        bytes: Predicted disk space, likewise.
    """

    address: str
    title: str
    steps: int
    seconds: float | None
    bytes: float | None


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The runs that are still to make, and their predicted cost.

    Attributes:
        arms: Number of rows of the result.
        lines: Every run to make.
        finished: Number of finished runs.
        missing: Reason -> number of rows that can't be run.
        sources: Where step times were measured.
    """

    arms: int
    lines: list[RunToMake]
    finished: int
    missing: Mapping[str, int]
    sources: tuple[str, ...]

    def seconds(self, jobs: int = 1) -> float:
        """Return the predicted seconds of the runs whose kind was measured.

        Args:
            jobs: Number of processes at a time, each on hardware of its own.
        """
        return sum(line.seconds or 0.0 for line in self.lines) / jobs

    def __str__(self) -> str:
        """Return the forecast as text with one line per run."""
        shown = [
            f"{line.address}  {line.steps:>7} steps  "
            f"{'unknown' if line.seconds is None else duration(line.seconds):>14}  {line.title}"
            for line in self.lines
        ]
        unknown = sum(line.seconds is None for line in self.lines)
        disk = sum(line.bytes or 0.0 for line in self.lines)
        shown.append(
            f"{self.arms} rows from {len(self.lines) + self.finished} runs, {self.finished} of them finished; "
            f"to do: {duration(self.seconds())} one after the other and {disk / 1e6:.0f} MB on disk"
        )
        if unknown:
            shown.append(
                f"not counted: {unknown} runs of kinds that were never measured; they are after their first run"
            )
        if self.sources:
            shown.append(f"step times were measured: {', '.join(self.sources)}")
        shown += [f"not run, {count} rows: {reason}" for reason, count in self.missing.items()]
        return "\n".join(shown)

    def to_json(self) -> dict[str, Any]:
        """Return the forecast as plain values."""
        return {
            "arms": self.arms,
            "finished": self.finished,
            "seconds": self.seconds(),
            "missing": dict(self.missing),
            "runs": [line._asdict() for line in self.lines],
        }


def forecast(plan: Plan, out: Path) -> Forecast:
    """Predict the cost of the unfinished runs of a plan.

    Args:
        plan: The plan.
        out: Folder of the comparison; costs of its finished runs take precedence over committed ones.
    """
    folders = {address: JobFolder(out, job) for address, job in plan.jobs.items()}
    records = [folder.record() for folder in folders.values() if folder.state() == "finished"]
    costs = _costs_by_kind(_committed(), "") | _costs_by_kind(records, "here")
    lines, sources = [], set()
    for address, folder in folders.items():
        if folder.state() == "finished":
            continue
        cost = costs.get(kind_of(folder.job))
        left = folder.job.steps - int(folder.run.status().get("steps", 0))
        seconds, size = (cost.step * left, cost.disk) if cost else (None, None)
        lines.append(RunToMake(address, folder.job.title, left, seconds, size))
        sources |= {cost.measured} if cost else set()
    missing: dict[str, int] = defaultdict(int)
    for arm in plan.arms:
        if arm.missing:
            missing[arm.missing] += 1
    return Forecast(
        arms=len(plan.arms), lines=lines, finished=len(records), missing=missing, sources=tuple(sorted(sources))
    )


def _costs_by_kind(records: Iterable[Mapping[str, Any]], measured: str) -> dict[str, RunCost]:
    by_kind = defaultdict(list)
    for record in records:
        if record["status"] == "finished" and record["steps"] and record["seconds"]:
            by_kind[record["kind"]].append(record)
    return {
        kind: RunCost(
            step=median(record["seconds"] / record["steps"] for record in same),
            disk=median(record["bytes"] for record in same),
            measured=measured or f"on {same[0]['device']}, elsewhere",
        )
        for kind, same in by_kind.items()
    }


def _committed() -> list[Mapping[str, Any]]:
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    # Some are measurements without runs: the demo's, and those of an accelerator.
    return [record for document in documents for record in document.get("runs", {}).values()]
