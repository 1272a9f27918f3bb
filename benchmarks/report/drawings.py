"""Results -> curves: a metric against epochs, total compute and labels; losses of pretraining."""

from collections import defaultdict
from collections.abc import Iterator

from benchmarks.results import MEASURES, Results, Row
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
        for row in _rows(results, name):
            by_epoch, by_second = _curves(row, results, metric)
            epochs[_label(row, results)].append(by_epoch)
            compute[_label(row, results)].append(by_second)
        if epochs:
            drawings[f"{name}, against epochs"] = seed_curves(epochs, f"{name}: fine-tuning", axis, "epoch")
            title = f"{name}: pretraining included"
            drawings[f"{name}, against compute"] = seed_curves(compute, title, axis, "seconds")
    return drawings


def _curves(row: Row, results: Results, metric: str) -> tuple[Points, Points]:
    """Return a metric in points against epochs of fine-tuning, and against seconds of all stages, of one row.

    Before its first step a detector scores zero; where fine-tuning has several stages, each goes on where the last one
    ended.
    """
    epochs: list[tuple[float, float]] = [(0.0, 0.0)]
    compute: list[tuple[float, float]] = [(row.pretraining, 0.0)]
    epoch, second = 0.0, row.pretraining
    for address in row.arm.jobs:
        record = results.runs[address]
        if record["purpose"]["verb"] != "finetune":
            continue
        epochs_a_step = record["batch"] / max(1, record["images"] or 1)
        seconds_a_step = (record["seconds"] or 0.0) / max(1, record["steps"])
        for point in record["curve"]:
            if metric in point:
                value = PERCENT * point[metric]
                epochs.append((epoch + point["step"] * epochs_a_step, value))
                compute.append((second + point["step"] * seconds_a_step, value))
        epoch += record["steps"] * epochs_a_step
        second += record["seconds"] or 0.0
    return epochs, compute


def drawings_of_labels(results: Results) -> dict[str, str]:
    """Draw every task's final metric against the share of labels, if several shares were measured."""
    if len({row.arm.fraction for row in results.measured()}) < 2:
        return {}
    drawings = {}
    for task in results.suite["downstreams"]:
        curves: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
        for row in _rows(results, task["name"]):
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
    """Draw the losses of all pretraining runs, and what they measure on held-out images, against steps."""
    losses: Runs = defaultdict(list)
    measures: dict[str, Runs] = {name: defaultdict(list) for name in MEASURES}
    for record in results.runs.values():
        purpose = record["purpose"]
        if purpose["verb"] != "pretrain":
            continue
        model = f", {purpose['model']}" if purpose.get("model") else ""
        label = f"{purpose['method']}{model}, stage {purpose['stage']}"
        if points := [(x, y) for x, y in record["losses"] if y is not None]:
            losses[label].append(points)
        for name, curves in measures.items():
            if points := [(point["step"], point[name]) for point in record["curve"] if name in point]:
                curves[label].append(points)
    drawings = {"Loss of pretraining": seed_curves(losses, "pretraining", "loss")} if losses else {}
    return drawings | {
        f"{name} of pretraining": seed_curves(curves, "pretraining, held-out images", name)
        for name, curves in measures.items()
        if curves
    }


def _rows(results: Results, task: str) -> Iterator[Row]:
    return (row for row in results.measured() if row.arm.downstream == task)


def _label(row: Row, results: Results, *, fraction: bool = True) -> str:
    parts = [row.arm.method]
    if len(results.suite["models"]) > 1:
        parts.append(row.arm.model)
    if fraction and len(results.suite["fractions"]) > 1:
        parts.append(f"{row.arm.fraction:.0%}")
    return ", ".join(parts)
