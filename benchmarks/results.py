"""Plan, run folders <-> results.json: everything that a report needs, as plain values."""

import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.address import code_version
from benchmarks.plan import LEFT_OUT, Arm, Plan, model_name
from benchmarks.suite import Claim, Suite, all_stages
from benchmarks.work import JobFolder
from ssldet.disk import Disk, write_whole
from ssldet.errors import ConfigError
from ssldet.jsonlines import finite
from ssldet.recipe import dumps
from ssldet.regular import read_text

SCHEMA = 2
"""Version of the file format."""

MEASURES = ("patch_iou", "region_recall_30", "knn_top1", "agreement")
"""Names of what pretext tasks are measured by on held-out images."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One result.

    Attributes:
        arm: The combination of the suite's axes that was measured.
        status: `finished`, `failed`, `unfinished` or `missing`.
        reason: Why it has no result.
        results: Name of a metric -> value.
        seconds: Time of all its runs, pretraining included; a run that several rows share counts in each of them.
        pretraining: Time of pretraining alone, in seconds.
    """

    arm: Arm
    status: str
    reason: str = ""
    results: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    pretraining: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Results:
    """Results of a comparison.

    Attributes:
        suite: Name, question, scale, seeds, rates, methods, downstream tasks and claims, as plain values.
        code: Digest of the source files, from `code_version`.
        hardware: Processor, cores, operating system and Python version.
        rows: One row per arm.
        runs: Address -> record of a run, from `JobFolder.record`.
        recipes: Purpose without the seed -> configuration as text.
    """

    suite: Mapping[str, Any]
    code: str
    hardware: Mapping[str, Any]
    rows: list[Row]
    runs: Mapping[str, Mapping[str, Any]]
    recipes: Mapping[str, str]

    @property
    def complete(self) -> bool:
        """Whether every row that can be run has its result."""
        return all(row.status in {"finished", "missing"} for row in self.rows)

    @property
    def in_part(self) -> bool:
        """Whether a row that can be run has no result, be it that nobody asked for it."""
        return not self.complete or any(row.reason == LEFT_OUT for row in self.rows)

    def measured(self) -> list[Row]:
        """Return the rows that have a result and are no trials."""
        return [row for row in self.rows if row.status == "finished" and not row.arm.trial]

    def claims(self) -> list[Claim]:
        """Return the claims to check."""
        return [Claim(**claim) for claim in self.suite["claims"]]

    def to_json(self) -> dict[str, Any]:
        """Return the results as plain values."""
        document = {
            "schema": SCHEMA,
            "suite": self.suite,
            "code": self.code,
            "hardware": self.hardware,
            "rows": [vars(row) | {"arm": vars(row.arm)} for row in self.rows],
            "runs": self.runs,
            "recipes": self.recipes,
        }
        plain: dict[str, Any] = finite(document)
        return plain

    def write(self, path: Path) -> Path:
        """Write `results.json` completely or not at all.

        Args:
            path: The file.
        """
        write_whole(path, (json.dumps(self.to_json(), indent=1) + "\n").encode(), Disk())
        return path


def read_results(path: Path) -> Results:
    """Read a file that `Results.write` wrote.

    Args:
        path: The file, or the folder of a comparison.

    Raises:
        ConfigError: There is no such file, or it is not the results of a comparison.
    """
    path = path / "results.json" if path.is_dir() else path
    try:
        document = json.loads(read_text(path))
        if (schema := document["schema"]) != SCHEMA:
            raise ConfigError(f"{path}: has schema {schema}, not {SCHEMA}; compare into the same folder again")
        rows = [
            Row(**(row | {"arm": Arm(**(row["arm"] | {"jobs": tuple(row["arm"]["jobs"])}))}))
            for row in document["rows"]
        ]
        kept = {name: document[name] for name in ("suite", "code", "hardware", "runs", "recipes")}
        return Results(rows=rows, **kept)
    except OSError as error:
        raise ConfigError(f"{path}: no results here ({error.strerror}); name the --out of a comparison") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path}: not the results of a comparison ({error!r})") from error


def collect(plan: Plan, out: Path, asked: Callable[[str], bool] = lambda name: True) -> Results:
    """Read the state and results of every run of a plan.

    Args:
        plan: The plan of the whole suite.
        out: Folder of the comparison.
        asked: Returns whether an arm was asked for, given its name. Of the others, those count that an earlier call
            has brought to an end: their runs lie in the folder.
    """
    records = {address: JobFolder(out, job).record() for address, job in plan.jobs.items()}
    rows = [_row(arm, records) if asked(arm.name) else _earlier_row(arm, records) for arm in plan.arms]
    told = {address for row in rows for address in row.arm.jobs}
    jobs = {address: job for address, job in plan.jobs.items() if address in told}
    recipes: dict[str, str] = {}
    for job in jobs.values():
        recipes.setdefault(job.purpose.recipe, dumps(job.run))
    return Results(
        suite=_document_of(plan.suite),
        code=code_version(),
        hardware=hardware(),
        rows=rows,
        runs={address: records[address] for address in jobs},
        recipes=recipes,
    )


def _row(arm: Arm, records: Mapping[str, Mapping[str, Any]]) -> Row:
    if not arm.jobs:
        return Row(arm=arm, status="missing", reason=arm.missing)
    chain = [records[address] for address in arm.jobs]
    for record in chain:
        if record["status"] == "failed":
            return Row(arm=arm, status="failed", reason=f"{record['title']}: {record['reason']}")
    last = chain[-1]
    if last["status"] != "finished":
        return Row(arm=arm, status="unfinished", reason=f"{last['steps']} of {last['planned_steps']} steps")
    before = sum(record["seconds"] for record in chain if record["purpose"]["verb"] == "pretrain")
    return Row(
        arm=arm,
        status="finished",
        results=last["results"],
        seconds=sum(record["seconds"] for record in chain),
        pretraining=before,
    )


def _earlier_row(arm: Arm, records: Mapping[str, Mapping[str, Any]]) -> Row:
    """Return what an earlier call found out about an arm; that it is left out where that call did not end its runs."""
    row = _row(arm, records)
    return row if row.status in {"finished", "failed"} else _row(arm.left_out(), records)


def _document_of(suite: Suite) -> dict[str, Any]:
    return {
        "name": suite.name,
        "question": suite.question,
        "scale": suite.scale,
        "seeds": list(suite.seeds),
        "pretrainings": suite.pretrainings,
        "rates": list(suite.rates),
        "fractions": list(suite.fractions),
        "threads": suite.threads,
        "models": [model_name(model) for model in suite.models()],
        "methods": [
            {
                "name": method.name,
                "title": method.title,
                "role": method.role,
                "missing": method.missing,
                "cite": sorted({stage.task.cite for stage in all_stages(method)}),
            }
            for method in suite.methods
        ],
        "downstreams": [
            {
                "name": entry.name,
                "metric": entry.metric,
                "train": entry.train.name,
                "val": entry.val.name,
                "unlabelled": entry.unlabelled.name,
                "row": dict(entry.row),
                "cite": sorted({stage.task.cite for stage in all_stages(entry)}),
            }
            for entry in suite.downstreams
        ],
        "claims": [vars(claim) for claim in suite.claims],
        "tables": list(suite.tables),
    }


def hardware() -> dict[str, Any]:
    """Return what this machine computes with."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    """Return the name of the processor, if the system states it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
