"""Results -> the parts of a report as text, tables and drawings, independent of the file format."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from benchmarks.plan import TRIED_ON
from benchmarks.published import TABLES
from benchmarks.report.drawings import drawings_of_labels, drawings_of_learning, drawings_of_pretraining
from benchmarks.results import Results
from benchmarks.statistics import PERCENT, Difference, Group, Summary, differences, is_number, summaries, verdicts
from ssldet.citations import citation
from ssldet.escapes import counted
from ssldet.report.sections import Table
from ssldet.report.wording import duration

DASH = "\u2013"
"""Fills a cell without a value."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A heading and its contents.

    Attributes:
        heading: The heading.
        text: Paragraphs.
        code: Preformatted text.
        table: A table.
        drawings: Title -> SVG.
    """

    heading: str
    text: str = ""
    code: str = ""
    table: Table | None = None
    drawings: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def file_of(title: str) -> str:
        """Return a file name for a drawing."""
        return re.sub(r"\W+", "-", title.casefold()).strip("-")


def contents(results: Results) -> list[Part]:
    """Return all parts of a report, in order."""
    parts = [
        _verdicts(results),
        _main(results),
        _methods(results),
        *_published(results),
        Part(heading="Learning", text=_LEARNING, drawings=drawings_of_learning(results)),
        Part(heading="Fewer labels", drawings=drawings_of_labels(results)),
        _costs(results),
        _pretraining(results),
        _absent(results),
        Part(heading="How it was compared", text=_rules(results)),
        Part(heading="Where it ran", text=_environment(results)),
        Part(heading="Recipes", code=_recipes(results)),
        Part(heading="What to cite", code=_citations(results)),
    ]
    return [part for part in parts if part.text or part.code or part.drawings or (part.table and part.table.rows)]


def _methods(results: Results) -> Part:
    """Say what each method that was measured is, since its name says little."""
    measured = {row.arm.method for row in results.measured()}
    told = results.suite["methods"]
    rows = [(method["name"], method["title"]) for method in told if method["name"] in measured]
    return Part(heading="Methods", table=Table(columns=("method", "what it is"), rows=rows))


_LEARNING = (
    "Thin lines are seeds, thick ones their mean. Against compute, a curve begins where its pretraining ended; time "
    "was measured on this machine, and a pretraining that several arms share counts in full for each."
)


def result_table(results: Results) -> Table:
    """Return one row per method and condition: mean, spread, interval, differences, published figure."""
    several = len(results.suite["models"]) > 1
    against = {role: _by_group(results, role) for role in ("none", "backbone")}
    rows = []
    for summary in summaries(results):
        key = (summary.downstream, summary.model, summary.fraction, summary.method)
        rows.append(
            (
                summary.downstream,
                *([summary.model] if several else []),
                summary.method,
                f"{summary.fraction:.0%}",
                _mean(summary),
                _range(summary.interval),
                len(summary.values),
                *(_difference(against[role].get(key)) for role in against),
                published_figure(results, summary),
            )
        )
    columns = (
        "task",
        *(["model"] if several else []),
        "method",
        "labels",
        "mean ± s.d.",
        "95 % interval",
        "seeds",
        "more than none",
        "more than backbone",
        "published, full scale",
    )
    return Table(columns=columns, rows=rows)


def published_figure(results: Results, summary: Summary) -> float | str:
    """Return the figure that the paper published for the same row at full scale, or a dash."""
    task = next(entry for entry in results.suite["downstreams"] if entry["name"] == summary.downstream)
    row = task.get("row", {}).get(summary.method)
    for name in results.suite["tables"]:
        figure = TABLES[name].figure(row, summary.metric) if row else None
        if figure is not None:
            return figure
    return DASH


def _verdicts(results: Results) -> Part:
    missing = [method for method in results.suite["methods"] if method["missing"]]
    lines = [f"{method['name']} could not be run: {method['missing']}." for method in missing]
    if results.in_part:
        done = sum(row.status == "finished" for row in results.rows)
        lines.insert(0, f"In part: {done} of {len(results.rows)} rows have a result.")
    table = Table(
        columns=("statement", "task", "what shows here: difference [95 % interval] in points"), rows=verdicts(results)
    )
    return Part(heading="What shows", text=" ".join(lines), table=table)


def _main(results: Results) -> Part:
    metrics = ", ".join(sorted({f"{task['name']}: {task['metric']}" for task in results.suite["downstreams"]}))
    return Part(heading="Results", text=f"In percent ({metrics}).", table=result_table(results))


def _published(results: Results) -> list[Part]:
    return [
        Part(
            heading=f"Published, {name}: {TABLES[name].title}",
            text=f"Printed by the paper at its own scale, not measured here. {TABLES[name].note}".strip(),
            table=TABLES[name].table(),
        )
        for name in results.suite["tables"]
    ]


def _costs(results: Results) -> Part:
    entries, seen = summaries(results), _images_seen(results)
    several = len({entry.fraction for entry in entries}) > 1
    # The cheapest start that was measured.
    named = (_name_of(results, role) for role in ("none", "backbone"))
    baseline = next((name for name in named if any(entry.method == name for entry in entries)), "")
    plain = {(entry.downstream, entry.model, entry.fraction): entry for entry in entries if entry.method == baseline}
    rows = []
    for entry in entries:
        base = plain.get((entry.downstream, entry.model, entry.fraction))
        gain = None if base is None else PERCENT * (entry.mean - base.mean)
        minutes = None if base is None else (entry.seconds - base.seconds) / 60
        paid = gain / minutes if gain is not None and minutes is not None and minutes > 0 else None
        method = f"{entry.method}, {entry.model}" if len(results.suite["models"]) > 1 else entry.method
        method += f", {entry.fraction:.0%}" if several else ""
        images = counted(round(seen[entry.downstream, entry.model, entry.fraction, entry.method]), "image")
        rows.append((entry.downstream, method, PERCENT * entry.mean, images, duration(entry.seconds), gain, paid))
    rows.sort(key=lambda row: (str(row[0]), -(row[6] if isinstance(row[6], float) else -1e9)))
    return Part(
        heading="What it costs",
        text=f"Ranked by points gained over {baseline} for each minute that pretraining adds, on this machine."
        if baseline
        else "",
        table=Table(
            columns=("task", "method", "mean", "seen in all", "time in all", "gain", "gain a minute"), rows=rows
        ),
    )


def _images_seen(results: Results) -> dict[Group, float]:
    """Return how many images the steps of all stages look at, in the mean over seeds; one counts every time."""
    seen: dict[Group, list[int]] = defaultdict(list)
    for row in results.measured():
        arm, runs = row.arm, [results.runs[address] for address in row.arm.jobs]
        seen[arm.downstream, arm.model, arm.fraction, arm.method].append(
            sum(run["steps"] * run["batch"] for run in runs)
        )
    return {group: fmean(images) for group, images in seen.items()}


def _pretraining(results: Results) -> Part:
    numbers_of: dict[str, list[dict[str, float]]] = defaultdict(list)
    for record in results.runs.values():
        if record["purpose"]["verb"] == "pretrain" and record["status"] == "finished":
            numbers = {name: value for name, value in record["results"].items() if isinstance(value, int | float)}
            losses = [value for _, value in record["losses"][-5:] if value is not None]
            numbers_of[record["title"]].append(numbers | ({"last loss": fmean(losses)} if losses else {}))
    names = list(dict.fromkeys(name for runs in numbers_of.values() for numbers in runs for name in numbers))
    rows = [
        (title, len(runs), *(_mean_of([numbers[name] for numbers in runs if name in numbers]) for name in names))
        for title, runs in numbers_of.items()
    ]
    return Part(
        heading="Pretraining",
        text="Means of all pretrainings of a kind, measured on held-out images where the task has a measure; losses of "
        "different tasks do not compare."
        if rows
        else "",
        table=Table(columns=("run", "runs", *names), rows=rows),
        drawings=drawings_of_pretraining(results),
    )


def _mean_of(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _absent(results: Results) -> Part:
    lacking: dict[tuple[str, str, str, str], int] = defaultdict(int)
    metrics = {entry["name"]: entry["metric"] for entry in results.suite["downstreams"]}
    for row in results.rows:
        if row.status != "finished":
            lacking[row.arm.downstream, row.arm.method, row.status, row.reason] += 1
        elif not is_number(row.results.get(metrics[row.arm.downstream])):
            why = f"nothing to measure by {metrics[row.arm.downstream]}"
            lacking[row.arm.downstream, row.arm.method, row.status, why] += 1
    table = Table(
        columns=("task", "method", "rows", "state", "why"),
        rows=[(task, method, count, state, why) for (task, method, state, why), count in lacking.items()],
    )
    return Part(heading="Without result", table=table)


def _rules(results: Results) -> str:
    suite = results.suite
    rates = (
        f"The learning rate of fine-tuning was chosen from {', '.join(f'{rate:g}' for rate in suite['rates'])} for "
        f"every method alike, by one further seed, measured on {TRIED_ON:.0%} of the training images."
        if suite["rates"]
        else "Learning rates are those of the recipes, the same for every method, and were not tuned."
    )
    seeds, pretrainings = ", ".join(map(str, suite["seeds"])), counted(suite["pretrainings"], "pretraining")
    return (
        f"Seeds {seeds}; seeds take turns with {pretrainings} of "
        "each method, so intervals hold the chance of fine-tuning, and that of pretraining only as far as there are "
        "several. All methods fine-tune the same model on the same images in the same order, for the same number of "
        "steps, and are measured alike, after the last one: nothing is chosen by the images that are measured on. "
        f"{rates}\n\n"
        "Intervals are Student's, one for each figure; seeds that share one of several pretrainings count as one. The "
        "test is a t-test of differences paired by seed, adjusted for the number of comparisons of a task with one "
        "baseline (Benjamini and Hochberg). Significant means p < 0.05. Where a difference is not, the report adds "
        "below which size so many seeds with this spread would have missed it more often than once in five times."
    )


def _environment(results: Results) -> str:
    devices = sorted({str(record["device"]) for record in results.runs.values() if record["device"]})
    versions = sorted(
        {
            ", ".join(f"{name} {number}" for name, number in record["versions"].items())
            for record in results.runs.values()
            if record["versions"]
        }
    )
    hardware = results.hardware
    time = sum(record["seconds"] or 0.0 for record in results.runs.values())
    lines = [
        f"{hardware['processor']}, {hardware['cores']} cores, {hardware['system']}, Python {hardware['python']}; "
        f"runs on {', '.join(devices) or 'nothing yet'}; {duration(time)} of training in all.",
        f"Code {results.code}; {'; '.join(versions)}.",
    ]
    if len(versions) > 1 or len(devices) > 1:
        lines.append("Mixed: runs of different devices or versions stand side by side.")
    return "\n\n".join(lines)


def _recipes(results: Results) -> str:
    return "\n\n".join(f"# {title}\n{text}" for title, text in results.recipes.items())


def _citations(results: Results) -> str:
    groups: list[Mapping[str, Any]] = [*results.suite["methods"], *results.suite["downstreams"]]
    keys = dict.fromkeys(key for entry in groups for key in entry["cite"])
    return "\n\n".join(filter(None, map(citation, keys)))


def _name_of(results: Results, role: str) -> str:
    return next((str(method["name"]) for method in results.suite["methods"] if method["role"] == role), "")


def _by_group(results: Results, role: str) -> dict[tuple[str, str, float, str], Difference]:
    return {
        (entry.downstream, entry.model, entry.fraction, entry.method): entry
        for entry in differences(results, _name_of(results, role))
    }


def _mean(summary: Summary) -> str:
    spread = "" if summary.spread is None else f" ± {PERCENT * summary.spread:.2f}"
    return f"{PERCENT * summary.mean:.2f}{spread}"


def _range(interval: tuple[float, float] | None) -> str:
    return DASH if interval is None else f"{PERCENT * interval[0]:.2f} to {PERCENT * interval[1]:.2f}"


def _difference(difference: Difference | None) -> str:
    return DASH if difference is None else f"{PERCENT * difference.mean:+.2f}: {difference.words()}"
