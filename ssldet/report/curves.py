"""Numbers over steps -> SVG text: learning curves for screen and paper, in colours for colour-blind readers.

The same numbers give the same text, byte for byte. The text has no links, and names are never read as formulas.
"""

import io
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle, islice
from statistics import fmean
from typing import Any, TypeGuard

from ssldet.report.wording import in_points, one_line

Number = int | float
Points = Sequence[tuple[Number, Number]]
"""Step and value, in any order."""

MOST_POINTS = 400
"""Longer series are averaged over equally many points, so that a file stays small."""

# Okabe and Ito's colours in an order that keeps neighbours apart; each pass through them changes the stroke.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
_STROKES = ("-", "--", ":")
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "ssldet",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#71717a",
    "axes.labelcolor": "#3f3f46",
    "xtick.color": "#71717a",
    "ytick.color": "#71717a",
    "xtick.labelcolor": "#3f3f46",
    "ytick.labelcolor": "#3f3f46",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e7",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}
_FONTS = "system-ui, 'Segoe UI', 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
# Colours stand in the style of every part, which only such rules can replace.
_DARK_COLOURS = (
    ("#ffffff", "#131316"),
    ("#3f3f46", "#c8c8d0"),
    ("#71717a", "#8b8b96"),
    ("#e4e4e7", "#2d2d33"),
    ("#0072b2", "#4aa8e0"),
    ("#4d4d4d", "#b0b0b8"),
)
_DARK_RULES = " ".join(
    f'[style*="{name}: {light}"] {{ {name}: {dark} !important }}'
    for light, dark in _DARK_COLOURS
    for name in ("fill", "stroke")
)
_DARK = f"@media screen and (prefers-color-scheme: dark) {{ text {{ fill: #ededf0 }} {_DARK_RULES} }}"
_PANELS = (
    ("Loss", "weighted sum"),
    ("Loss terms, last layer", "before weighting"),
    ("Metrics while training", "value"),
    ("Evaluation", "value"),
    ("Health: rank of the vectors of images", "rank"),
    ("Health: spread and neighbours", "value"),
    ("Learning rate", "lr"),
)


def curves(
    series: Mapping[str, Points],
    title: str,
    ylabel: str,
    xlabel: str = "step",
    limits: tuple[float, float] | None = None,
) -> str:
    """Draw one line per series.

    Args:
        series: Name -> points; a value that is not finite is left out and counted below the drawing.
        title: Shown above.
        ylabel: Shown beside the vertical axis.
        xlabel: Shown below the horizontal axis.
        limits: Ends of the vertical axis; `None` fits it to the values.
    """
    return seed_curves({name: [points] for name, points in series.items()}, title, ylabel, xlabel, limits)


def seed_curves(
    groups: Mapping[str, Sequence[Points]],
    title: str,
    ylabel: str,
    xlabel: str = "step",
    limits: tuple[float, float] | None = None,
) -> str:
    """Draw groups of runs that differ by their seed only: each run as a thin line, their mean as a thick one.

    Args:
        groups: Name -> one series of points per seed.
        title: Shown above.
        ylabel: Shown beside the vertical axis.
        xlabel: Shown below the horizontal axis.
        limits: Ends of the vertical axis; `None` fits it to the values.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context():
        # A reader's own matplotlibrc must not change a report.
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        figure = Figure(figsize=(7.2, 2.9), layout="constrained")
        axes = figure.subplots()
        styles = _styles(len(groups))
        dropped = sum(_draw(axes, runs, *style) for runs, style in zip(groups.values(), styles, strict=True))
        axes.set_title(one_line(title))
        axes.set_xlabel(one_line(xlabel))
        axes.set_ylabel(one_line(ylabel))
        if limits is not None:
            axes.set_ylim(*limits)
        axes.ticklabel_format(axis="y", scilimits=(-3, 4), useMathText=False)
        _legend(axes, list(groups))
        if dropped:
            figure.supxlabel(f"not finite and left out: {dropped}", fontsize=8, color="#b91c1c")
        return _text_of(figure)


def panels_of_lines(panels: Mapping[str, Mapping[str, tuple[Points, Points]]]) -> str:
    """Draw points, each series with a line through them in a panel of its own.

    Args:
        panels: Label below a column -> label beside a row -> points, and the ends of a line; columns have equal rows.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows = list(next(iter(panels.values())))
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        figure = Figure(figsize=(2.3 * len(panels), 2.1 * len(rows)), layout="constrained")
        grid = figure.subplots(len(rows), len(panels), squeeze=False, sharey="row")
        for column, (label, series) in enumerate(panels.items()):
            for row, name in enumerate(rows):
                axes, (points, line) = grid[row][column], series[name]
                axes.plot(*zip(*line, strict=True), color=_COLOURS[6], linewidth=0.9)
                axes.plot(*zip(*points, strict=True), color=_COLOURS[0], linestyle="", marker="o", markersize=4)
                axes.set_xlim(left=0)
                axes.set_xlabel(one_line(label) if row == len(rows) - 1 else "")
                axes.set_ylabel(one_line(name) if column == 0 else "")
        for first, *_ in grid:
            # Only now, because a limit that is set ends the search for one that shows all panels of the row.
            first.set_ylim(bottom=0)
        return _text_of(figure)


def learning_curves(records: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Draw the metrics of one run.

    Args:
        records: Lines of `metrics.jsonl`, in order; where a step occurs twice, after a resume, the later one counts.

    Returns:
        Title -> SVG text, one per kind of metric that was measured at two steps or more.
    """
    panels: dict[str, dict[str, dict[Number, Number]]] = {title: {} for title, _ in _PANELS}
    for record in records:
        step = record.get("step")
        for name, value in record.items():
            if (
                (place := _panel(record.get("kind"), name))
                and _is_number(step)
                and (value is None or _is_number(value))
            ):
                # The metrics file holds null for a value that is not finite.
                panels[place[0]].setdefault(place[1], {})[step] = math.nan if value is None else value
    drawings = {}
    for title, ylabel in _PANELS:
        series = {name: _scaled(name, points) for name, points in panels[title].items()}
        # A line needs two points; a single measurement stands in the tables.
        if any(len(points) > 1 for points in series.values()):
            series = {name: points for name, points in series.items() if points}
            # A single line has no legend, so the axis shows its name.
            drawings[title] = curves(series, title, ylabel if len(series) > 1 else next(iter(series)))
    return drawings


def _scaled(name: str, points: Mapping[Number, Number]) -> Points:
    """Return points to draw: average precision and its kin in points of 0..100, without what the data don't hold."""
    if not in_points(name):
        return list(points.items())
    return [(step, 100 * value) for step, value in points.items() if value != -1]


def _panel(kind: object, name: str) -> tuple[str, str] | None:
    """Return the title of the drawing for a metric, and the name of its line."""
    if kind == "eval":
        return None if name in {"step", "epoch", "seconds"} else ("Evaluation", name)
    if kind == "health" and name not in {"step", "images"}:
        rank = name.startswith("rank_")
        return "Health: rank of the vectors of images" if rank else "Health: spread and neighbours", name
    if kind != "train":
        return None
    if name == "loss":
        return "Loss", "loss"
    if name == "lr":
        return "Learning rate", "lr"
    for prefix, title in (("loss/", "Loss terms, last layer"), ("metric/", "Metrics while training")):
        if name.startswith(prefix):
            return title, name.removeprefix(prefix)
    return None


def _draw(axes: Any, runs: Sequence[Points], colour: str, stroke: Any) -> int:
    """Draw one group; return the number of values that were left out."""
    finite = [sorted((x, y) for x, y in run if math.isfinite(x) and math.isfinite(y)) for run in runs]
    thinned = [_thinned(run) for run in finite if run]
    several = len(runs) > 1
    for run in thinned if several else []:
        axes.plot(*zip(*run, strict=True), color=colour, linestyle=stroke, linewidth=0.7, alpha=0.45)
    mean = _mean(thinned)
    if mean:
        axes.plot(*zip(*mean, strict=True), color=colour, linestyle=stroke, linewidth=2.2 if several else 1.5)
    if mean and len(mean) <= 12:
        axes.plot(*zip(*mean, strict=True), color=colour, linestyle="", marker="o", markersize=4)
    return sum(len(run) for run in runs) - sum(len(run) for run in finite)


def _mean(runs: Sequence[Points]) -> Points:
    """Return the mean over seeds at every step that all of them reached."""
    if len(runs) == 1:
        return runs[0]
    values: dict[Number, list[Number]] = defaultdict(list)
    for run in runs:
        for x, y in run:
            values[x].append(y)
    return [(x, fmean(ys)) for x, ys in sorted(values.items()) if len(ys) == len(runs)]


def _thinned(points: Points) -> Points:
    if len(points) <= MOST_POINTS:
        return points
    size = math.ceil(len(points) / MOST_POINTS)
    chunks = [points[start : start + size] for start in range(0, len(points), size)]
    return [(fmean(x for x, _ in chunk), fmean(y for _, y in chunk)) for chunk in chunks]


def _styles(count: int) -> list[tuple[str, Any]]:
    return list(islice(((colour, stroke) for stroke in cycle(_STROKES) for colour in _COLOURS), count))


def _legend(axes: Any, names: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    if not axes.lines:
        axes.text(0.5, 0.5, "no finite values", transform=axes.transAxes, ha="center", va="center", color="#71717a")
    if len(names) < 2:
        return
    styles = _styles(len(names))
    keys = [Line2D([], [], color=colour, linestyle=stroke, linewidth=2) for colour, stroke in styles]
    # The leading blank keeps names that start with an underscore, which a legend would hide.
    axes.figure.legend(keys, [f" {one_line(name, 32)}" for name in names], loc="outside right upper")


def _text_of(figure: Any) -> str:
    """Return the SVG without date, program and document type, and with common fonts."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace("'DejaVu Sans'", _FONTS)
    start = text.index(">") + 1
    return f"{text[:start]}\n<style>{_DARK}</style>{text[start:]}"


def _is_number(value: object) -> TypeGuard[Number]:
    return isinstance(value, int | float) and not isinstance(value, bool)
