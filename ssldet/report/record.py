"""Run folder -> Record: the files of a run; missing or damaged files are read as empty."""

import json
import logging
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssldet.errors import reason_of
from ssldet.regular import read_text
from ssldet.report.examples import FOLDER

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Contents of a run folder.

    Attributes:
        name: Name of the folder.
        status: Contents of `run.json`: state, versions, results, timings.
        recipe: Text of `run.toml`.
        metrics: Lines of `metrics.jsonl`.
        skipped: Lines of `quarantine.jsonl`.
        transfer: Contents of `transfer.json`: tensors transferred from an earlier run; empty where there were none.
        findings: Contents of `findings.json`: what the last evaluation found and missed; empty where it said nothing.
        examples: Folder of the pictures that the findings name.
        previews: Preview pictures, oldest first.
        damaged_lines: Number of lines of both files that can't be read, such as one cut off by a kill.
    """

    name: str
    status: Mapping[str, Any]
    recipe: str
    metrics: list[dict[str, Any]]
    skipped: list[dict[str, Any]]
    transfer: Mapping[str, Any]
    findings: Mapping[str, Any]
    examples: Path
    previews: list[Path]
    damaged_lines: int

    @property
    def choices(self) -> Mapping[str, Any]:
        """The recipe as nested values; empty where it can't be read."""
        try:
            return tomllib.loads(self.recipe)
        except tomllib.TOMLDecodeError:
            return {}

    def last(self, kind: str) -> dict[str, Any]:
        """Return the last line of this kind in the metrics file; empty if there is none."""
        return next((line for line in reversed(self.metrics) if line.get("kind") == kind), {})


def read_record(folder: Path, *, numbers: bool = True) -> Record:
    """Read a run folder; whatever is absent or damaged reads as empty.

    Args:
        folder: The run folder.
        numbers: False leaves out the files of lines, which may be long.
    """
    metrics, damaged_metrics = _lines(folder / "metrics.jsonl") if numbers else ([], 0)
    skipped, damaged_skipped = _lines(folder / "quarantine.jsonl") if numbers else ([], 0)
    previews = folder / "previews"
    return Record(
        name=folder.resolve().name,
        status=_object(_text(folder / "run.json")) or {},
        recipe=_text(folder / "run.toml"),
        metrics=metrics,
        skipped=skipped,
        transfer=_object(_text(folder / "transfer.json")) or {},
        findings=_object(_text(folder / "findings.json")) or {},
        examples=folder / FOLDER,
        previews=sorted(file for file in previews.glob("*.png") if file.is_file()),
        damaged_lines=damaged_metrics + damaged_skipped,
    )


def _text(file: Path) -> str:
    try:
        return read_text(file, errors="backslashreplace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        log.warning("%s: can't be read (%s); the report goes without it", file, reason_of(error))
        return ""


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _lines(file: Path) -> tuple[list[dict[str, Any]], int]:
    lines = [line for line in _text(file).split("\n") if line.strip()]
    values = [_object(line) for line in lines]
    return [value for value in values if value is not None], values.count(None)
