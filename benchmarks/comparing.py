"""a suite's name -> results and a report: plan, run what is left, collect."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.cost import Forecast, forecast
from benchmarks.launch import Runner, Start, command_of, start_process
from benchmarks.plan import Job, Plan, plan_suite
from benchmarks.report import write_reports
from benchmarks.results import Results, collect
from benchmarks.suite import Scale, Setting, Suite
from benchmarks.suites import find_suite
from benchmarks.work import results_of
from ssldet.errors import ConfigError
from ssldet.recipe import check

log = logging.getLogger(__name__)

OUT = Path("runs/benchmarks")
"""Where comparisons go; suites that share it share runs."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A comparison that was carried out.

    Attributes:
        results: What it came to.
        report: Folder of the report.
    """

    results: Results
    report: Path

    def __str__(self) -> str:
        """Say the verdicts and where the report is."""
        return (self.report / "report.md").read_text(encoding="utf-8").partition("\n## ")[0] + f"\n{self.report}"

    def to_json(self) -> dict[str, Any]:
        """Return the results as plain values."""
        return self.results.to_json()


def compare(
    suite: str | Suite,
    *,
    scale: Scale = "tiny",
    data: Mapping[str, str] | None = None,
    out: str | Path = OUT,
    seeds: int | None = None,
    dry_run: bool = False,
    budget: float | None = None,
    jobs: int = 1,
    only: str = "*",
    launcher: str = "",
    start: Start = start_process,
) -> Compared | Forecast:
    """Carry out a suite, or what is left of it, and write its report.

    Args:
        suite: A suite's name, or one of your own.
        scale: How large, where a name was given.
        data: Name -> data specification, where the suite asks for any.
        out: Folder of runs and reports; other suites in it share runs.
        seeds: How many seeds; none leaves it to the suite.
        dry_run: Only say what there is to do and what it will take.
        budget: Seconds to spend; what is not done then goes on next time.
        jobs: Processes at a time.
        only: A shell pattern of the arms to run, matched with METHOD/MODEL/TASK/FRACTION/seed-N.
        launcher: See `benchmarks.launch.command_of`.
        start: Starts a process; tests put another in its place.

    Raises:
        ConfigError: The suite or a choice makes no sense; nothing has been written then.
        DataError: Data can't be used; likewise.
        StoppedError: By a signal or the budget; all is saved and the report holds what is finished.
    """
    if jobs < 1:
        raise ConfigError(f"--jobs: {jobs}; at least one")
    command_of([], launcher, "")
    setting = Setting(scale=scale, places=data or {}, seeds=seeds)
    chosen = find_suite(suite, setting) if isinstance(suite, str) else suite
    folder = Path(out)
    plan_again = partial(_plan, chosen, folder, only)
    plan = plan_again()
    _require_sound(plan, only)
    if dry_run:
        return forecast(plan, folder)
    place = folder / f"{chosen.name.replace('/', '-')}-{chosen.scale}"
    place.mkdir(parents=True, exist_ok=True)
    try:
        Runner(out=folder, jobs=jobs, launcher=launcher, seconds=budget, start=start).carry_out(plan_again)
    finally:
        results = collect(plan_again(), folder)
        results.write(place / "results.json")
        write_reports(results, place, pictures=folder)
    return Compared(results=results, report=place)


def _plan(suite: Suite, out: Path, only: str) -> Plan:
    def known(address: str, metric: str) -> float | None:
        value = results_of(out, address).get(metric)
        return float(value) if isinstance(value, int | float) else None

    return plan_suite(suite, known).only(lambda name: fnmatchcase(name, only))


def _require_sound(plan: Plan, only: str) -> None:
    """Find what is wrong with any configuration before the first run begins."""
    wrong: list[str] = []
    for job in plan.jobs.values():
        wrong += _problems_of(job)
    if not plan.jobs:
        wrong.append(
            f"--filter: {only!r} fits no arm that can be run; arms are named METHOD/MODEL/TASK/FRACTION/seed-N"
        )
    if wrong:
        raise ConfigError(list(dict.fromkeys(wrong)))


def _problems_of(job: Job) -> list[str]:
    try:
        check(job.run)
    except ConfigError as error:
        return [f"{job.title}: {line}" for line in error.problems]
    return []
