"""Results -> curves: a metric against epochs, total compute and labels; losses of pretraining."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.results import Results, Row
from benchmarks.statistics import PERCENT
from ssldet.report.curves import Points, seed_curves

Runs = dict[str, list[Points]]
"""Method -> one curve per seed."""


def drawings_of_learning(results: Results) -> dict[str, str]:
    """Draw every task's metric during fine-tuning, against epochs and against the time of all stages."""
    drawings = {}
    for task in results.suite["downstreams"]:
        name, metric = task["name"], task["metric"]
        axis = f"{metric}, points"
        epochs: Runs = defaultdict(list)
        compute: Runs = defaultdict(list)
        for row, last in _rows(results, name):
            points = [(point["step"], PERCENT * point[metric]) for point in last["curve"] if metric in point]
            # Before its first step a detector scores zero.
            points = [(0.0, 0.0), *points]
            epoch = last["batch"] / max(1, last["images"] or 1)
            second = (last["seconds"] or 0.0) / max(1, last["steps"])
            before = (row.seconds or 0.0) - (last["seconds"] or 0.0)
            epochs[_label(row, results)].append([(step * epoch, value) for step, value in points])
            compute[_label(row, results)].append([(before + step * second, value) for step, value in points])
        if epochs:
            drawings[f"{name}, against epochs"] = seed_curves(epochs, f"{name}: fine-tuning", axis, "epoch")
            title = f"{name}: pretraining included"
            drawings[f"{name}, against compute"] = seed_curves(compute, title, axis, "seconds")
    return drawings


def drawings_of_labels(results: Results) -> dict[str, str]:
    """Draw every task's final metric against the share of labels, if several shares were measured."""
    if len({row.arm.fraction for row in results.measured()}) < 2:
        return {}
    drawings = {}
    for task in results.suite["downstreams"]:
        curves: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
        for row, _ in _rows(results, task["name"]):
            value = row.results.get(task["metric"])
            if isinstance(value, int | float):
                curves[_label(row, results, fraction=False), row.arm.seed].append((row.arm.fraction, PERCENT * value))
        groups: Runs = defaultdict(list)
        for (label, _), points in curves.items():
            groups[label].append(points)
        if groups:
            title = f"{task['name']}: fewer labels"
            axis = f"{task['metric']}, points"
            drawings[f"{task['name']}, against labels"] = seed_curves(groups, title, axis, "share of labels")
    return drawings


def drawings_of_pretraining(results: Results) -> dict[str, str]:
    """Draw the losses of all pretraining runs."""
    groups: Runs = defaultdict(list)
    for record in results.runs.values():
        purpose = record["purpose"]
        if purpose["verb"] == "pretrain" and record["losses"]:
            points = [(x, y) for x, y in record["losses"] if y is not None]
            model = f", {purpose['model']}" if purpose.get("model") else ""
            groups[f"{purpose['method']}{model}, stage {purpose['stage']}"].append(points)
    return {"Loss of pretraining": seed_curves(groups, "pretraining", "loss")} if groups else {}


def _rows(results: Results, task: str) -> Iterator[tuple[Row, Mapping[str, Any]]]:
    for row in results.measured():
        if row.arm.downstream == task:
            yield row, results.runs[row.arm.jobs[-1]]


def _label(row: Row, results: Results, *, fraction: bool = True) -> str:
    parts = [row.arm.method]
    if len(results.suite["models"]) > 1:
        parts.append(row.arm.model)
    if fraction and len(results.suite["fractions"]) > 1:
        parts.append(f"{row.arm.fraction:.0%}")
    return ", ".join(parts)
