"""What a step costs, as `python -m benchmarks costs` measured it -> straight lines, a table and a drawing."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report.text import markdown
from ssldet.regular import read_text
from ssldet.report.curves import Points, panels_of_lines
from ssldet.report.sections import Table

COST_AXES = {
    "batch": "images of a batch",
    "side": "thousand pixels of an image",
    "queries": "queries",
    "patches": "patches of an image",
    "layers": "layers of encoder and decoder",
}
"""What grows -> how to call it."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A straight line through points.

    Attributes:
        start: Its value at zero.
        slope: Its rise for each unit.
        bend: Largest distance of a point from it, as a share of the point's value.
    """

    start: float
    slope: float
    bend: float


def line_through(points: Sequence[tuple[float, float]]) -> Line:
    """Return the line of least squares.

    Args:
        points: Pairs of what grows and what it costs; two at least.
    """
    middle, height = (sum(column) / len(points) for column in zip(*points, strict=True))
    slope = sum((x - middle) * (y - height) for x, y in points) / sum((x - middle) ** 2 for x, _ in points)
    start = height - slope * middle
    return Line(start=start, slope=slope, bend=max(abs(start + slope * x - y) / y for x, y in points))


def points_of(document: Mapping[str, Any], axis: str, cost: str) -> list[tuple[float, float]]:
    """Return what was measured along an axis; sides are given as thousands of pixels, with which work grows.

    Args:
        document: What `measure_costs` wrote.
        axis: A name from `COST_AXES`.
        cost: `seconds` or `bytes`.
    """
    found = [(row["value"], row[cost]) for row in document["results"] if row["axis"] == axis]
    return [(x * x / 1000 if axis == "side" else x, y / 1e6 if cost == "bytes" else y) for x, y in found]


def drawing_of_costs(document: Mapping[str, Any]) -> str:
    """Draw what a step costs as one thing about it grows, with a straight line through the points.

    Args:
        document: What `python -m benchmarks costs` measured.
    """
    costs = {"seconds": "seconds of a step", "bytes": "MB of a step"}

    def panel(axis: str, cost: str) -> tuple[Points, Points]:
        points = points_of(document, axis, cost)
        line, end = line_through(points), max(x for x, _ in points)
        return points, [(0.0, line.start), (end, line.start + line.slope * end)]

    return panels_of_lines(
        {words: {name: panel(axis, cost) for cost, name in costs.items()} for axis, words in COST_AXES.items()}
    )


def table_of_costs(results: Path) -> str:
    """Tabulate what one more of each thing costs a step, and how far the points lie from a straight line.

    Args:
        results: Folder of committed results.
    """
    document: Mapping[str, Any] = json.loads(read_text(results / "costs.json"))
    rows = []
    for axis, words in COST_AXES.items():
        points = {cost: points_of(document, axis, cost) for cost in ("seconds", "bytes")}
        time, memory = (line_through(points[cost]) for cost in ("seconds", "bytes"))
        rows.append(
            (
                words,
                f"{points['seconds'][0][0]:g} to {points['seconds'][-1][0]:g}",
                f"{1000 * time.slope:.3g} ms",
                f"{time.bend:.0%}",
                f"{memory.slope:.3g} MB",
                f"{memory.bend:.0%}",
            )
        )
    columns = ("what grows", "measured", "time of one more", "bend", "memory of one more", "bend")
    machine = document["machine"]
    where = f"{machine['processor']}, one thread, torch {machine['torch']}"
    return f"{markdown(Table(columns=columns, rows=rows))}\n\n{where}."
