"""name of a suite -> results and a report: plan the runs, make those that are left, collect the results."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.address import data_version
from benchmarks.cost import Forecast, forecast
from benchmarks.launch import Runner, Start, command_of, start_process
from benchmarks.plan import Job, Plan, plan_suite
from benchmarks.report import write_reports
from benchmarks.results import Results, collect
from benchmarks.suite import Scale, Setting, Suite
from benchmarks.suites import find_suite
from benchmarks.work import results_of
from ssldet.errors import ConfigError, DataError, SsldetError
from ssldet.recipe import check

log = logging.getLogger(__name__)

OUT = Path("runs/benchmarks")
"""Default folder of comparisons; suites that share it share runs."""


@dataclass(frozen=True, kw_only=True)
class FinishedComparison:
    """A comparison whose runs were made.

    Attributes:
        results: The results.
        report: Folder of the report.
    """

    results: Results
    report: Path

    @property
    def failed(self) -> int:
        """Number of rows without result because a run failed."""
        return sum(row.status == "failed" for row in self.results.rows)

    def __str__(self) -> str:
        """Return the verdicts and the folder of the report."""
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
) -> FinishedComparison | Forecast:
    """Run a suite, or the rest of it, and write its report.

    Args:
        suite: Name of a suite, or a suite of your own.
        scale: Scale of a suite that is given by name.
        data: Name -> data specification, for the data sets that the suite needs.
        out: Folder of runs and reports; suites that share it share runs.
        seeds: Number of seeds; `None` takes the suite's own.
        dry_run: Only return the runs to make and the predicted time and disk space.
        budget: Seconds to spend; a later call continues with the rest.
        jobs: Number of processes at a time.
        only: Shell pattern of the arms to run, matched with METHOD/MODEL/TASK/FRACTION/seed-N. Arms that earlier calls
            have run keep their rows.
        launcher: Template of the command, as for `benchmarks.launch.command_of`.
        start: Starts a process; tests pass another function.

    Raises:
        ConfigError: The suite or an argument is invalid; nothing has been written then.
        DataError: A data set can't be used; nothing has been written then.
        StoppedError: A signal or the budget stopped the runs; all is saved and the report has the finished results.
    """
    if wrong := [
        f"--{name}: {number}; at least one"
        for name, number in (("jobs", jobs), ("seeds", seeds))
        if number is not None and number < 1
    ]:
        raise ConfigError(wrong)
    command_of([], launcher, "")
    setting = Setting(scale=scale, places=data or {}, seeds=seeds)
    chosen = find_suite(suite, setting) if isinstance(suite, str) else suite
    folder = Path(out)
    asked = partial(fnmatchcase, pat=only)
    _require_data(chosen)
    plan = _plan(chosen, folder).only(asked)
    _require_valid(plan, only)
    if dry_run:
        return forecast(plan, folder)
    place = folder / f"{chosen.name.replace('/', '-')}-{chosen.scale}"
    place.mkdir(parents=True, exist_ok=True)
    try:
        runner = Runner(out=folder, jobs=jobs, launcher=launcher, seconds=budget, start=start)
        runner.carry_out(lambda: _plan(chosen, folder).only(asked))
    finally:
        results = collect(_plan(chosen, folder), folder, asked)
        results.write(place / "results.json")
        write_reports(results, place, pictures=folder)
    return FinishedComparison(results=results, report=place)


def _plan(suite: Suite, out: Path) -> Plan:
    """Plan all runs of a suite, given what has been measured so far."""

    def measured_value(address: str, metric: str) -> float | None:
        value = results_of(out, address).get(metric)
        return float(value) if isinstance(value, int | float) else None

    return plan_suite(suite, measured_value)


def _require_data(suite: Suite) -> None:
    """Open all data sets before anything is planned, so that each that can't be used is told."""
    wrong: list[str] = []
    for data in suite.data():
        try:
            data_version(data)
        except SsldetError as error:
            wrong += [f"data {data.name}: {line}" for line in str(error).splitlines()]
    if wrong:
        raise DataError("\n".join(wrong))


def _require_valid(plan: Plan, only: str) -> None:
    """Check all configurations before the first run begins."""
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
