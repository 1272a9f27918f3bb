"""Findings -> sections that explain a result: examples, mistakes and their costs, classes, sizes, curves."""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from ssldet.blind_scores import finite
from ssldet.escapes import counted
from ssldet.report.curves import curves
from ssldet.report.record import Record
from ssldet.report.sections import Bar, Gallery, Picture, Section
from ssldet.report.wording import ABSENT, in_points, points

OUTCOMES = {
    "found": ("Found", "Nothing was found."),
    "missed": ("Missed", "Nothing was missed."),
    "false": ("False", "Nothing was detected falsely."),
}
"""Outcome -> heading of its pictures, and what is said without any."""

MOST_BARS = 40
"""Classes that are shown; of more, the best and the worst."""
SIZES = {"small": ("APs", "below 32² pixels"), "medium": ("APm", "up to 96² pixels"), "large": ("APl", "above")}
"""Size -> its figure, and what it is."""


def quality(record: Record, results: Mapping[str, Any]) -> list[Section]:
    """Explain the result of a run by what its last evaluation found; empty where it said nothing.

    Args:
        record: What the run wrote down.
        results: What was measured last.
    """
    sections = [
        _examples(record),
        _mistakes(record),
        _classes(record, results),
        _sizes(record, results),
        _curves(record),
    ]
    return [section for section in sections if section is not None]


def shows_classes(record: Record, results: Mapping[str, Any]) -> bool:
    """Tell whether the classes stand in a chart, so that no table need repeat them."""
    return _classes(record, results) is not None


def _examples(record: Record) -> Section | None:
    examples = [row for row in _list(record.findings.get("examples")) if str(row.get("outcome")) in OUTCOMES]
    if not examples:
        return None
    galleries = [
        Gallery(
            heading=heading,
            kind=outcome,
            pictures=[_picture(row, record.examples) for row in examples if row["outcome"] == outcome],
            empty=empty,
        )
        for outcome, (heading, empty) in OUTCOMES.items()
    ]
    balance = record.findings.get("balance")
    score = finite(balance.get("score")) if isinstance(balance, Mapping) else None
    above = "" if score is None else f" Detections of a confidence of {score:.2f} and above count."
    text = f"Solid frame: detected. Dashed frame: the true object. The most confident ones stand first.{above}"
    return Section(heading="Hits and misses", text=text, galleries=galleries)


def _picture(row: Mapping[str, Any], folder: Path) -> Picture:
    score, overlap = finite(row.get("score")), finite(row.get("overlap"))
    parts = [str(row.get("name", ""))]
    if score is not None:
        parts[0] += f" {score:.2f}"
    if row.get("error"):
        parts.append(str(row["error"]))
    if overlap is not None:
        parts.append(f"IoU\N{NO-BREAK SPACE}{overlap:.2f}")
    # A file of findings names pictures of its own folder and no others.
    return Picture(image=folder / PurePath(str(row.get("picture", ""))).name, caption=", ".join(parts))


def _mistakes(record: Record) -> Section | None:
    rows = [
        (row, cost, int(count))
        for row in _list(record.findings.get("errors"))
        if (cost := finite(row.get("cost"))) is not None and (count := finite(row.get("count"))) is not None
    ]
    if not rows:
        return None
    most = max(0.01, *(cost for _, cost, _ in rows))
    bars = [
        Bar(
            name=str(row.get("kind", "")),
            share=max(0.0, cost) / most,
            value=f"{points(max(0.0, cost))} points, {counted(count, 'time')}",
            note=str(row.get("meaning", "")),
        )
        for row, cost, count in rows
    ]
    text = (
        "What each kind of mistake costs: the points of AP50 that would be won if it alone were undone (TIDE, Bolya et "
        "al., 2020). The costs do not add up."
    )
    return Section(heading="What goes wrong", text=text, bars=bars)


def _classes(record: Record, results: Mapping[str, Any]) -> Section | None:
    counts, measured = record.findings.get("classes"), results.get("per_class")
    if not isinstance(counts, Mapping) or not isinstance(measured, Mapping):
        return None
    name = next((key for key, value in results.items() if not isinstance(value, Mapping)), "")
    rows = []
    for label, value in measured.items():
        inner = value.get(name) if isinstance(value, Mapping) else value
        share = finite(inner)
        if share is not None and in_points(name):
            rows.append((label, share, finite(counts.get(label))))
    rows.sort(key=lambda row: -row[1])
    if len(rows) < 2:
        return None
    left_out = len(rows) - MOST_BARS
    if left_out > 0:
        rows = rows[: MOST_BARS // 2] + rows[-MOST_BARS // 2 :]
    bars = [
        Bar(
            name=str(label),
            share=max(0.0, share),
            value=points(share),
            note="" if count is None else counted(int(count), "object"),
        )
        for label, share, count in rows
    ]
    more = f" The best and the worst; {left_out} more stand in run.json." if left_out > 0 else ""
    absent = f" {ABSENT} stands for classes without an object." if any(share < 0 for _, share, _ in rows) else ""
    return Section(heading="Classes", text=f"{name} in points, and objects measured on.{more}{absent}", bars=bars)


def _sizes(record: Record, results: Mapping[str, Any]) -> Section | None:
    counts = record.findings.get("sizes")
    if not isinstance(counts, Mapping):
        return None
    bars = [
        Bar(
            name=size,
            share=max(0.0, share),
            value=points(share),
            note=f"{meaning}: {counted(int(finite(counts.get(size)) or 0), 'object')}",
        )
        for size, (name, meaning) in SIZES.items()
        if (share := finite(results.get(name))) is not None
    ]
    return Section(heading="Sizes of objects", text="AP in points.", bars=bars) if bars else None


def _curves(record: Record) -> Section | None:
    drawn = record.findings.get("curves")
    series = {}
    for name, values in drawn.items() if isinstance(drawn, Mapping) else ():
        if isinstance(values, list) and len(values) > 1 and all(finite(value) is not None for value in values):
            series[str(name)] = [(place / (len(values) - 1), value) for place, value in enumerate(values)]
    if not series:
        return None
    text = (
        "Precision is the share of detections that are right, recall the share of objects that are found, from the "
        "most confident detections to all of them. Classes are drawn at an overlap of 0.50."
    )
    drawing = curves(series, "Precision and recall", "precision", "recall", limits=(-0.02, 1.02))
    return Section(heading="Precision and recall", text=text, svg={"Precision and recall": drawing})


def _list(value: object) -> Iterator[Mapping[str, Any]]:
    for row in value if isinstance(value, list) else ():
        if isinstance(row, Mapping):
            yield row
