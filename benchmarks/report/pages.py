"""committed results -> tables of the documentation: `python -m benchmarks tables`.

A page names a table in a comment, `<!-- table: NAME -->`, and everything up to `<!-- end -->` is written from the
committed JSON, so that no figure there is typed.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.report.costs import table_of_costs
from benchmarks.report.text import markdown
from benchmarks.results import Results, read_results
from benchmarks.statistics import PERCENT, Difference, Summary, differences, summaries
from ssldet.errors import ConfigError, suggest
from ssldet.regular import read_text
from ssldet.report.sections import Table

RESULTS = Path("benchmarks/results")
_BLOCK = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def write_tables(text: str, results: Path = RESULTS) -> str:
    """Return a page with its tables written anew.

    Args:
        text: The page.
        results: Folder of committed results.

    Raises:
        ConfigError: The page names a table that does not exist.
    """

    def table(block: re.Match[str]) -> str:
        name = block["name"]
        if name not in TABLES:
            raise ConfigError(f"no table {name!r}{suggest(name, list(TABLES))}")
        return f"{block[1]}{TABLES[name](results)}\n{block[3]}"

    return _BLOCK.sub(table, text)


def _suite(results: Path, name: str) -> Results:
    return read_results(results / f"{name}.json")


def _means(results: Results) -> dict[tuple[str, str, str], str]:
    """Return downstream task, model and method -> mean in points."""
    return {(one.downstream, one.model, one.method): f"{PERCENT * one.mean:.2f}" for one in summaries(results)}


def _words(difference: Difference) -> str:
    sure = "" if difference.significant else ", not significant"
    better = "better" if difference.mean > 0 else "**worse**" if difference.significant else "worse"
    agree = sum(value * difference.mean > 0 for value in difference.values)
    return f"{better} in {agree} of {len(difference.values)} seeds{sure} (p = {difference.p:.2g})"


def _detectors(results: Path) -> str:
    titles = {
        ("zoo-detectors-tiny", "detr"): "DETR",
        ("zoo-detectors-tiny", "deformable_detr"): "Deformable DETR, learned starts",
        ("zoo-detectors-tiny", "fp_detr"): "FP-DETR, pretrained by contrasting crops",
        ("zoo-detectors-two-stage-tiny", "deformable_detr"): "Deformable DETR, two stages",
    }
    rows = []
    for name in dict.fromkeys(file for file, _ in titles):
        suite = _suite(results, name)
        means = _means(suite)
        rows += [
            (
                titles[name, one.model.partition("-")[2] or one.model],
                means[one.downstream, one.model, "none"],
                means[one.downstream, one.model, one.method],
                _words(one),
            )
            for one in differences(suite, "none")
        ]
    return markdown(Table(columns=("detector", "from scratch", "pretrained", "difference"), rows=rows))


def _methods(results: Path) -> str:
    """Tabulate every pretext task of the zoo, against fresh weights and against a pretrained backbone alone."""
    suite = _suite(results, "zoo-methods-tiny")
    titles = {method["name"]: method["title"] for method in suite.suite["methods"]}
    against = {name: {one.method: one for one in differences(suite, name)} for name in ("none", "backbone")}

    def words(method: str, baseline: str) -> str:
        difference = against[baseline].get(method)
        return "" if difference is None else f"{PERCENT * difference.mean:+.2f}, {_words(difference)}"

    rows = [
        (titles[one.method], f"{PERCENT * one.mean:.2f}", words(one.method, "none"), words(one.method, "backbone"))
        for one in sorted(summaries(suite), key=lambda one: -one.mean)
    ]
    columns = ("pretrained by", "AP", "more than fresh weights", "more than the backbone alone")
    return markdown(Table(columns=columns, rows=rows))


def _matching(results: Path) -> str:
    suite = _suite(results, "ours-matching-tiny")
    means = {method: mean for (_, _, method), mean in _means(suite).items()}
    rows = [
        (words, means[f"own_group/{jitter}"], means[f"global/{jitter}"], means["none"])
        for jitter, words in (("none", "none"), ("full", "UP-DETR's"))
    ]
    return markdown(Table(columns=("jitter of patches", "`own_group`", "`global`", "no pretraining"), rows=rows))


def _pretraining(results: Path) -> str:
    """Tabulate UP-DETR's suite: what each start gives on generated scenes and on photographs."""
    suite = _suite(results, "paper-table1-tiny")
    named = {"short": "scenes, 80 steps", "long": "scenes, 160 steps", "cards": "photographs of cards, 800 steps"}
    starts = {
        "backbone": "a backbone pretrained on the same images",
        "updetr": "UP-DETR on a fresh, frozen backbone",
        "both": "that backbone, then UP-DETR on it",
    }
    means = _means(suite)
    rows = [
        (
            named[one.downstream],
            starts[one.method],
            means[one.downstream, one.model, "none"],
            means[one.downstream, one.model, one.method],
            _words(one),
        )
        for one in differences(suite, "none")
    ]
    return markdown(Table(columns=("fine-tuned on", "start", "AP of fresh weights", "AP", "difference"), rows=rows))


def _steps(results: Path) -> str:
    measured: list[Mapping[str, Any]] = json.loads(read_text(results / "gpu.json"))["results"]
    rates = {(row["form"], row["batch"]): row["images_per_second"] for row in measured if row["part"] == "steps"}
    words = {
        "plain fp32": "plain PyTorch, float32, patches without jitter",
        "fp32": "`precision=32`",
        "tf32": "the same with TF32",
        "bf16": "`precision=bf16`",
        "bf16 channels last": "the same, weights in channels-last order",
    }
    sizes = sorted({batch for _, batch in rates})
    rows = [
        (text, *("" if (rate := rates.get((form, size))) is None else f"{rate:.0f}" for size in sizes))
        for form, text in words.items()
    ]
    return markdown(Table(columns=("images a second", *(f"batch {size}" for size in sizes)), rows=rows))


def _with_seeds(values: Sequence[float]) -> str:
    """Return the mean in points, and the value of every seed."""
    return f"{PERCENT * fmean(values):.1f} ({' '.join(f'{PERCENT * value:.1f}' for value in values)})"


def _rise(suite: Results, starts: Mapping[str, str], metrics: Sequence[str]) -> str:
    """Tabulate how metrics rise while methods are fine-tuned: the mean, and every seed.

    Args:
        suite: The results.
        starts: Method -> its name in the table.
        metrics: Names of metrics.
    """
    rows_of = {name: [row for row in suite.measured() if row.arm.method == name] for name in starts}
    curves = {name: [suite.runs[row.arm.jobs[-1]]["curve"] for row in rows] for name, rows in rows_of.items()}
    finetuning = [(row.seconds or 0.0) - row.pretraining for rows in rows_of.values() for row in rows]
    minutes = sum(finetuning) / len(finetuning) / 60
    steps = [point["step"] for point in next(iter(curves.values()))[0]]
    pairs = [(metric, name) for metric in metrics for name in starts]

    def cell(metric: str, name: str, place: int) -> str:
        return _with_seeds([curve[place][metric] for curve in curves[name]])

    rows = [
        (f"{step:,}", f"{minutes * step / steps[-1]:.0f}", *(cell(*pair, place) for pair in pairs))
        for place, step in enumerate(steps)
    ]
    columns = ("steps", "minutes", *(f"{metric}, {starts[name]}" for metric, name in pairs))
    return markdown(Table(columns=columns, rows=rows))


def _small(results: Path) -> str:
    starts = {"backbone": "fresh transformer", "own_group": "pretrained"}
    return _rise(_suite(results, "ours-small-tiny"), starts, ("AP50", "AP75"))


def _small_run(results: Path) -> str:
    """Tabulate the evaluations of one run of `detection/small` with nothing beside it, as its folder recorded them."""
    measured: Mapping[str, Any] = json.loads(read_text(results / "small-run.json"))
    metrics = ("AP", "AP50", "AP75")
    rows = [
        (f"{point['step']:,}", f"{point['seconds'] / 60:.1f}", *(f"{PERCENT * point[name]:.1f}" for name in metrics))
        for point in measured["curve"]
    ]
    return markdown(Table(columns=("steps", "minutes", *metrics), rows=rows))


def _resemblance(results: Path) -> str:
    """Tabulate how well patches of photographs are found with and without the part of the score that is not learned."""
    measured: Mapping[str, Any] = json.loads(read_text(results / "resemblance.json"))
    curves: Mapping[str, Mapping[str, float]] = measured["patch_iou"]
    steps = list(next(iter(curves.values())))
    rows = [(words, *(f"{curve[step]:.2f}" for step in steps)) for words, curve in curves.items()]
    constant = f"{measured['patch_iou_constant']:.2f}"
    rows.append(("the best constant box", *(constant for _ in steps)))
    return markdown(Table(columns=("`patch_iou`", *(f"after {step} steps" for step in steps)), rows=rows))


def _two_stage(results: Path) -> str:
    starts = {"none": "fresh weights", "pretrained": "pretrained"}
    return _rise(_suite(results, "zoo-detectors-two-stage-tiny"), starts, ("AP", "AR10"))


def _small_differences(results: Path) -> str:
    """Tabulate what each start of the recipes named small gives at the end of fine-tuning."""
    suite = _suite(results, "ours-small-tiny")
    titles = {method["name"]: method["title"] for method in suite.suite["methods"]}
    rows = [
        (titles[one.method], f"{PERCENT * one.mean:+.1f}", len(one.values), _words(one))
        for one in differences(suite, "backbone")
    ]
    columns = ("start", "AP50 more than the backbone alone", "seeds", "difference")
    return markdown(Table(columns=columns, rows=rows))


def _few_labels(results: Path, name: str = "ours-few-labels-tiny") -> str:
    """Tabulate what each start gives with a share of the labels, and how much more than the backbone alone."""
    suite = _suite(results, name)
    starts = {"backbone": "fresh transformer", "own_group": "UP-DETR", "supervised": "other labels"}
    shares = {
        "own": "{:.0%} of the labels",
        "ten_shots": "ten objects of each class",
        "self_training": "{:.0%}, self-trained",
    }
    measured = {(one.downstream, one.fraction, one.method): one for one in summaries(suite)}
    against = {(one.downstream, one.fraction, one.method): one for one in differences(suite, "backbone")}

    def cell(one: Summary | None) -> str:
        return "not measured" if one is None else _with_seeds(one.values)

    rows = [
        (
            shares[task].format(fraction),
            *(cell(measured.get((task, fraction, start))) for start in starts),
            _words(against[task, fraction, "own_group"]),
            " → ".join(_recall(suite, task, fraction, start) for start in ("backbone", "own_group")),
        )
        for task, fraction in dict.fromkeys((task, fraction) for task, fraction, _ in measured)
        if (task, fraction, "own_group") in against
    ]
    columns = (
        "labelled",
        *(f"AP50, {name}" for name in starts.values()),
        "UP-DETR against a fresh transformer",
        "AR100 of these two",
    )
    return markdown(Table(columns=columns, rows=rows))


def _starts(results: Path, name: str, baseline: str) -> str:
    """Tabulate what each start of a suite with one downstream task gives, and how much more than one of them.

    Args:
        results: Folder of committed results.
        name: The suite's file.
        baseline: Method that the others are compared with.
    """
    suite = _suite(results, name)
    titles = {method["name"]: method["title"] for method in suite.suite["methods"]}
    against = {one.method: _words(one) for one in differences(suite, baseline)}
    rows = [
        (
            titles[one.method],
            _with_seeds(one.values),
            _recall(suite, one.downstream, one.fraction, one.method),
            against.get(one.method, ""),
        )
        for one in summaries(suite)
    ]
    return markdown(Table(columns=("start", "AP50", "AR100", f"against {titles[baseline]}"), rows=rows))


def _recall(suite: Results, task: str, fraction: float, method: str) -> str:
    found = [
        row.results["AR100"]
        for row in suite.measured()
        if (row.arm.downstream, row.arm.fraction, row.arm.method) == (task, fraction, method)
    ]
    return f"{PERCENT * fmean(found):.1f}"


def _demo(results: Path) -> str:
    """Tabulate what `ssldet demo --json` printed; its folder and its report are left out of the committed file."""
    measured: Mapping[str, Any] = json.loads(read_text(results / "demo.json"))
    starts = {"pretrained": "pretrained on 3,000 scenes without labels", "scratch": "fresh weights, same budget"}
    rows = [
        (words, *(" ".join(f"{value:.3f}" for value in measured[f"{name}_{start}"]) for name in ("ap", "ap50")))
        for start, words in starts.items()
    ]
    columns = ("start of fine-tuning, 500 labelled scenes", "AP, three seeds", "AP50, three seeds")
    table = markdown(Table(columns=columns, rows=rows))
    return (
        f"{table}\n\nPatches of held-out scenes are found with an overlap of {measured['patch_iou']:.3f}; "
        f"the best constant box reaches {measured['patch_iou_constant']:.3f}."
    )


def _found(results: Path) -> str:
    """Tabulate for a newcomer what is found with and without pretraining, on generated scenes and on photographs."""
    demo: Mapping[str, Any] = json.loads(read_text(results / "demo.json"))
    run: Mapping[str, Any] = json.loads(read_text(results / "small-run.json"))
    suite = _suite(results, "ours-small-tiny")
    scratch, pretrained = (PERCENT * fmean(demo[f"ap50_{start}"]) for start in ("scratch", "pretrained"))
    means = {one.method: PERCENT * one.mean for one in summaries(suite)}
    (difference,) = (one for one in differences(suite, "backbone") if one.method == "own_group")
    few = _suite(results, "ours-few-labels-six-seeds-tiny")
    on_few = {one.method: one for one in summaries(few)}
    (gain,) = differences(few, "backbone")
    last = run["curve"][-1]
    length = f"{last['step']:,} steps in {last['seconds'] / 60:.0f} minutes"
    rows = [
        ("generated scenes, 500 labelled; fresh backbone", f"{scratch:.1f}", f"{pretrained:.1f}", "three seeds"),
        (
            "photographs of playing cards, 296 labelled; pretrained backbone, 800 steps",
            f"{means['backbone']:.1f}",
            f"{means['own_group']:.1f}",
            _words(difference),
        ),
        (
            f"the same, {on_few['own_group'].fraction:.0%} of them labelled, at 160 pixels, 300 steps",
            f"{PERCENT * on_few['backbone'].mean:.1f}",
            f"{PERCENT * on_few['own_group'].mean:.1f}",
            _words(gain),
        ),
        (f"the same photographs, {length}", f"{PERCENT * last['AP50']:.1f}", "not measured", "one seed"),
    ]
    columns = ("held-out AP50, in points, on", "transformer from scratch", "pretrained without labels", "")
    return markdown(Table(columns=columns, rows=rows))


def _speed(results: Path) -> str:
    measured: Mapping[str, Any] = json.loads(read_text(results / "speed.json"))
    rows = [
        (
            f"{row['work']} ({row['note']})" if row["note"] else row["work"],
            row["against"],
            f"{row['ratio']:.2f}",
            f"{row['low']:.2f} to {row['high']:.2f}",
        )
        for row in measured["results"]
    ]
    loads = [row["load"] for row in measured["results"]]
    machine = measured["machine"]
    table = markdown(Table(columns=("work", "against", "times as fast", "half of all rounds"), rows=rows))
    where = f"{machine['processor']}, one thread, torch {machine['torch']}"
    return f"{table}\n\n{where}; {min(loads):.0f} to {max(loads):.0f} programs shared {machine['cores']} cores."


TABLES: dict[str, Callable[[Path], str]] = {
    "backbone_swap": partial(_starts, name="ours-backbone-swap-tiny", baseline="exchanged"),
    "costs": table_of_costs,
    "demo": _demo,
    "few_labels": _few_labels,
    "few_labels_six_seeds": partial(_few_labels, name="ours-few-labels-six-seeds-tiny"),
    "found": _found,
    "detectors": _detectors,
    "matching": _matching,
    "matching_small": partial(_starts, name="ours-matching-small-tiny", baseline="backbone"),
    "methods": _methods,
    "pretraining": _pretraining,
    "resemblance": _resemblance,
    "speed": _speed,
    "small": _small,
    "small_differences": _small_differences,
    "small_run": _small_run,
    "steps": _steps,
    "two_stage": _two_stage,
}
"""Name -> folder of committed results -> table in Markdown."""
