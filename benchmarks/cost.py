"""Plan -> time and disk, predicted from runs of the same kind; what was never measured is unknown."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.plan import Plan
from benchmarks.work import Workplace, kind_of
from ssldet.report.wording import duration

RESULTS = Path(__file__).parent / "results"
"""Results that the project committed; their step times serve where nothing was measured here."""


@dataclass(frozen=True, kw_only=True)
class Price:
    """What runs of one kind cost.

    Attributes:
        step: Seconds of an optimiser step, its share of evaluation included.
        disk: Bytes that a finished run leaves.
        measured: Where: `here`, or the device of committed results.
    """

    step: float
    disk: float
    measured: str


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What is still to do.

    Attributes:
        arms: Number of rows of the result.
        lines: Title, steps, seconds and bytes of every run to make; none where no run of its kind was measured.
        finished: Number of runs that are done.
        missing: Reason -> number of rows that can't be run.
        sources: Where step times were measured.
    """

    arms: int
    lines: list[tuple[str, str, int, float | None, float | None]]
    finished: int
    missing: Mapping[str, int]
    sources: tuple[str, ...]

    def seconds(self, jobs: int = 1) -> float:
        """Return the predicted time of what is known.

        Args:
            jobs: Processes at a time, each on hardware of its own.
        """
        return sum(seconds or 0.0 for *_, seconds, _ in self.lines) / jobs

    def __str__(self) -> str:
        """Say it, one line a run."""
        shown = [
            f"{address}  {steps:>7} steps  {duration(seconds) if seconds is not None else 'unknown':>14}  {title}"
            for address, title, steps, seconds, _ in self.lines
        ]
        unknown = sum(seconds is None for *_, seconds, _ in self.lines)
        disk = sum(size or 0.0 for *_, size in self.lines)
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
        """Return plain values."""
        names = ("address", "title", "steps", "seconds", "bytes")
        return {
            "arms": self.arms,
            "finished": self.finished,
            "seconds": self.seconds(),
            "missing": dict(self.missing),
            "runs": [dict(zip(names, line, strict=True)) for line in self.lines],
        }


def forecast(plan: Plan, out: Path) -> Forecast:
    """Predict what is left of a plan.

    Args:
        plan: The plan.
        out: Folder of the comparison, whose finished runs are measured first.
    """
    places = {address: Workplace(out, job) for address, job in plan.jobs.items()}
    records = [place.record() for place in places.values() if place.standing() == "finished"]
    prices = _prices(_committed(), "") | _prices(records, "here")
    lines, sources = [], set()
    for address, place in places.items():
        if place.standing() == "finished":
            continue
        price = prices.get(kind_of(place.job))
        left = place.job.steps - int(place.run.status().get("steps", 0))
        lines.append(
            (address, place.job.title, left, price.step * left if price else None, price.disk if price else None)
        )
        sources |= {price.measured} if price else set()
    missing: dict[str, int] = defaultdict(int)
    for arm in plan.arms:
        if arm.missing:
            missing[arm.missing] += 1
    return Forecast(
        arms=len(plan.arms), lines=lines, finished=len(records), missing=missing, sources=tuple(sorted(sources))
    )


def _prices(records: Iterable[Mapping[str, Any]], measured: str) -> dict[str, Price]:
    found = defaultdict(list)
    for record in records:
        if record["status"] == "finished" and record["steps"] and record["seconds"]:
            found[record["kind"]].append(record)
    return {
        kind: Price(
            step=median(record["seconds"] / record["steps"] for record in same),
            disk=median(record["bytes"] for record in same),
            measured=measured or f"on {same[0]['device']}, elsewhere",
        )
        for kind, same in found.items()
    }


def _committed() -> list[Mapping[str, Any]]:
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    return [record for document in documents for record in document["runs"].values()]
