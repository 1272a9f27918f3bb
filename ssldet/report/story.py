"""Record -> title, key figures, sections: what a reader of a run wants to know, the most important first."""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from ssldet.errors import ConfigError
from ssldet.registry import find, names
from ssldet.report.counterparts import counterparts
from ssldet.report.curves import learning_curves
from ssldet.report.notebook import card
from ssldet.report.quality import quality, shows_classes
from ssldet.report.record import Record, read_record
from ssldet.report.sections import Picture, Section, Table
from ssldet.report.verdict import Verdict, verdict_of
from ssldet.report.wording import ABSENT, MISSING, duration, in_points, measured, number
from ssldet.task import Task, headline_of

PREVIEWS = 6
"""Preview pictures shown: the first and the newest."""

POINTS = f"Points, 0 to 100; {ABSENT} stands where the data hold no such object."
"""Said below results that the literature gives in points."""

FIRST_FILES = 3
"""Names shown of the files that were skipped for one reason."""

_SURROUNDINGS = ("device", "seed", "fingerprint", "versions")
_ENDED_EARLY = ("stopped", "diverged", "failed")


def key_figures(record: Record) -> list[tuple[str, str]]:
    """Return the few numbers that stand at the top of a report, each with its name.

    Args:
        record: What the run wrote down.
    """
    last = record.last("train")
    headline = _headline(record)
    figures = [(headline, _figure(headline, _results(record).get(headline)))] if headline else []
    best = _group(record.status, "best")
    if best and best.get("step") != record.status.get("steps"):
        measure = str(best.get("measure"))
        figures.append((f"best {measure}, step {number(best.get('step'))}", _figure(measure, best.get("value"))))
    figures.append(("steps", number(record.status.get("steps", last.get("step")))))
    figures.append(("loss", number(last.get("loss"))))
    figures.append(("time", duration(record.status.get("seconds", last.get("seconds")))))
    return [figure for figure in figures if figure[1] != MISSING or figure[0] == headline]


def verdict_on(record: Record, folder: Path) -> Verdict:
    """Judge a run by itself, by what needs no learning, and by runs beside it that began otherwise.

    Args:
        record: What the run wrote down.
        folder: Where it lies.
    """
    headline = _headline(record)
    return verdict_of(record, _results(record), headline, counterparts(folder, record, headline))


def summary_card(folder: Path) -> str:
    """Return what a notebook shows of a run: its verdict, its key figures, and where the report lies.

    Args:
        folder: A run folder.
    """
    record = read_record(folder)
    verdict = verdict_on(record, folder)
    figures = key_figures(record)
    rows = dict([*figures[:1], *verdict.comparisons, *figures[1:]])
    state = str(record.status.get("status", "unknown"))
    text = [verdict.sentence or state, *verdict.reasons]
    details = {"what to do next": f"ssldet report {folder}\nssldet predict {folder} IMAGES"}
    return card(f"{record.name}: {state}", text=text, grade=verdict.grade, rows=rows, details=details)


def sections_of(record: Record, folder: Path, citation: str = "") -> list[Section]:
    """Tell the story of a run.

    Args:
        record: What the run wrote down.
        folder: Where it lies; named in the commands, relative to the working directory if it lies below.
        citation: Text to cite, such as a BibTeX entry.
    """
    results = _results(record)
    told = [
        _outcome(record),
        *quality(record, results),
        *_result_tables(record),
        _training(record),
        _previews(record),
        _data(record),
        _transfer(record),
        _next_steps(record, folder),
        Section(heading="Recipe", text="Every choice, also those left at their defaults.", code=record.recipe),
        _surroundings(record),
        Section(heading="Cite", code=citation),
    ]
    return [section for section in told if section is not None and _says_something(section)]


def _says_something(section: Section) -> bool:
    has_rows = section.table is not None and bool(section.table.rows)
    shown = section.code or has_rows or section.svg or section.pictures or section.bars or section.galleries
    return bool(shown) or section.heading in {"Outcome", "Data"}


def _outcome(record: Record) -> Section | None:
    # A run that was resumed keeps the reason of its earlier stop.
    stopped = record.status.get("status") in _ENDED_EARLY
    reason = record.status.get("reason" if stopped else "ended_early")
    lines = [str(reason) if stopped else f"Ended before its last step: {reason}."] if reason else []
    told = record.status.get("symptoms")
    lines += [f"At the last check, {sentence}" for sentence in told] if isinstance(told, list) else []
    if not record.metrics:
        lines.append("No step has been logged yet.")
    return Section(heading="Outcome", text="\n\n".join(lines)) if lines else None


def _result_tables(record: Record) -> Iterator[Section]:
    """One table of plain numbers, and one for each group of numbers, such as one a class."""
    results = _results(record)
    plain = {name: value for name, value in results.items() if not isinstance(value, Mapping)}
    step = record.last("eval").get("step")
    when = f"Measured after step {number(step)}." if step is not None else ""
    if best := _group(record.status, "best"):
        measure, at = str(best.get("measure")), number(best.get("step"))
        value = _figure(measure, best.get("value"))
        when += f" The best {measure}, {value}, was that of step {at}; --weights best takes its weights."
    if any(map(in_points, plain)):
        when += f"\n\n{POINTS}"
    rows = [(name, measured(name, value)) for name, value in plain.items()]
    yield Section(heading="Results", text=when.strip(), table=Table(columns=("metric", "value"), rows=rows))
    if shows_classes(record, results):
        results = {name: value for name, value in results.items() if name != "per_class"}
    yield from _groups("Results", results)


def _groups(heading: str, results: Mapping[str, Any]) -> Iterator[Section]:
    """One table for each group of numbers, such as one a class; a group of like groups is one table with columns."""
    for name, group in results.items():
        if not isinstance(group, Mapping):
            continue
        title = f"{heading}: {name.replace('_', ' ')}"
        inner = [row for row in group.values() if isinstance(row, Mapping)]
        if inner and len(inner) == len(group):
            columns = list(inner[0])
            shown = list(group.items())[:200]
            rows = [(key, *(measured(column, row.get(column)) for column in columns)) for key, row in shown]
            yield Section(heading=title, table=Table(columns=("name", *columns), rows=rows))
            continue
        # A group of one number each, such as one a class, holds the measure that stands first in the results.
        measure = next((key for key, value in results.items() if not isinstance(value, Mapping)), "")
        plain = [
            (key, measured(key if in_points(key) else measure, value))
            for key, value in group.items()
            if not isinstance(value, Mapping)
        ]
        yield Section(heading=title, table=Table(columns=("name", "value"), rows=plain[:200]))
        yield from _groups(title, group)


def _training(record: Record) -> Section:
    lines = [line for line in record.metrics if line.get("kind") == "train"]
    first, last = (lines[0], lines[-1]) if lines else ({}, {})
    shown = [name for name in last if name == "loss" or name.startswith(("loss/", "metric/"))]
    compared = [first, last] if len(lines) > 1 else [last]
    rows = [(name, *(line.get(name) for line in compared)) for name in shown]
    columns = ("", *(f"step {number(line.get('step'))}" for line in compared))
    notes = [
        ("Images a second", last.get("images_per_second")),
        ("Steps left out because their loss was not finite", record.status.get("skipped_steps")),
        ("Lines of the run's records left out because a kill tore them", record.damaged_lines),
    ]
    return Section(
        heading="Training",
        text="\n".join(f"{note}: {number(count)}." for note, count in notes if count),
        table=Table(columns=columns, rows=rows),
        svg=learning_curves(record.metrics),
    )


def _previews(record: Record) -> Section:
    files = record.previews
    shown = files if len(files) <= PREVIEWS else [files[0], *files[1 - PREVIEWS :]]
    left_out = len(files) - len(shown)
    return Section(
        heading="Pictures",
        text=f"{left_out} more are in the folder previews." if left_out else "",
        pictures=[Picture(image=file, caption=file.stem.replace("-", " ")) for file in shown],
    )


def _data(record: Record) -> Section:
    choices = _group(record.choices, "data")
    lines = [
        f"{word}: {', '.join(str(spec) for spec in choices[name])}"
        for word, name in (("Training", "train"), ("Evaluation", "val"))
        if isinstance(choices.get(name), list) and choices[name]
    ]
    if "images" in record.status:
        lines.append(f"Images: {number(record.status['images'])}.")
    reasons: dict[str, dict[str, None]] = {}
    for line in record.skipped:
        # One file may be met again in every epoch; it still is one file.
        reasons.setdefault(str(line.get("reason", "unknown")), {})[str(line.get("path", "?"))] = None
    rows = [
        (reason, len(paths), ", ".join(PurePath(path).name for path in list(paths)[:FIRST_FILES]))
        for reason, paths in sorted(reasons.items(), key=lambda item: -len(item[1]))
    ]
    lines.append(f"Files skipped: {number(sum(len(paths) for paths in reasons.values()))}.")
    return Section(
        heading="Data", text="\n".join(lines), table=Table(columns=("reason", "files", "first of them"), rows=rows)
    )


def _transfer(record: Record) -> Section:
    columns = ("section", "outcome", "tensors", "parameters")
    rows = record.transfer.get("rows")
    told = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
    return Section(
        heading="Handed over from an earlier run",
        table=Table(columns=columns, rows=[[row.get(name) or "other" for name in columns] for row in told]),
    )


def _next_steps(record: Record, folder: Path) -> Section:
    """The commands that go on from here."""
    place = _relative(folder)
    pretext = str(record.status.get("resume")).startswith("ssldet pretrain ")
    verb = "pretrain" if pretext else "finetune"
    steps = [
        ("go on after a stop", f"ssldet {verb} --resume {place}"),
        ("run the same again", f"ssldet {verb} --recipe {place}/run.toml"),
    ]
    if pretext:
        steps.append(("fine-tune on labels", f"ssldet finetune {place} --data coco:ANNOTATIONS.json:IMAGES"))
    return Section(heading="Commands", code="\n\n".join(f"# {why}\n{command}" for why, command in steps))


def _surroundings(record: Record) -> Section:
    rows: list[tuple[str, Any]] = []
    for name in _SURROUNDINGS:
        value = record.status.get(name)
        rows += list(value.items()) if isinstance(value, Mapping) else [(name, str(value))] if value is not None else []
    return Section(heading="Environment", table=Table(rows=rows))


def _figure(name: str, value: object) -> str:
    """Return a measure as text."""
    shown = measured(name, value)
    return shown if isinstance(shown, str) else number(shown)


def _results(record: Record) -> Mapping[str, Any]:
    stated = _group(record.status, "results")
    return stated or {k: v for k, v in record.last("eval").items() if k not in {"kind", "step", "epoch", "seconds"}}


def _headline(record: Record) -> str:
    """Name the metric that counts: the one that the task names if it was measured, else the first that was."""
    return headline_of(_task(record), _results(record))


def _task(record: Record) -> type[Task] | None:
    name = _group(record.choices, "task").get("name")
    # Only what is registered: a report must not import whatever a file names.
    if not isinstance(name, str) or name not in names(Task.group):
        return None
    try:
        kind: type[Task] = find(Task.group, name)
    except ConfigError:
        return None
    return kind


def _relative(folder: Path) -> str:
    """Name a folder from the working directory where it lies below, else by its last part."""
    here, there = Path.cwd(), folder.resolve()
    return shlex.quote(there.relative_to(here).as_posix() if there.is_relative_to(here) else there.name)


def _group(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = values.get(name)
    return value if isinstance(value, Mapping) else {}
