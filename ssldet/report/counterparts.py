"""run folder -> runs beside it that did the same training from another start, and what they measured."""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from ssldet.blind_scores import finite
from ssldet.report.record import Record, read_record

MOST_FOLDERS = 200
"""Folders that are looked into."""
SAME = ("task", "data", "optim", "budget")
"""Parts of a recipe that must not differ."""


def counterparts(folder: Path, record: Record, headline: str) -> dict[str, float]:
    """Return the mean result of runs in the same parent folder that differ from this one by their start, and by seed.

    Args:
        folder: A run folder.
        record: What the run wrote down.
        headline: Name of the measure that counts.

    Returns:
        What the start was, in words -> the measure; empty where there is no such run.
    """
    place = folder.resolve()
    started = bool(record.transfer)
    found: dict[str, float] = {}
    for path in sorted(place.parent.iterdir())[:MOST_FOLDERS] if headline else ():
        if path == place or not (path / "run.toml").is_file():
            continue
        other = read_record(path, numbers=False)
        value = finite(_results(other).get(headline))
        if value is not None and bool(other.transfer) != started and _same(record, other):
            found[path.name] = value
    if not found:
        return {}
    names = ", ".join(list(found)[:3]) + (" and others" if len(found) > 3 else "")
    words = "The same from fresh weights" if started else "The same from pretrained weights"
    return {f"{words} ({names})": fmean(found.values())}


def _same(record: Record, other: Record) -> bool:
    ours, theirs = record.choices, other.choices
    measured = record.status.get("measured_on") == other.status.get("measured_on")
    return measured and all(ours.get(part) == theirs.get(part) for part in SAME)


def _results(record: Record) -> Mapping[str, Any]:
    results = record.status.get("results")
    return results if isinstance(results, Mapping) else {}
