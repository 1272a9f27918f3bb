"""committed results of suites -> tables of the documentation: what each start gives, and how sure a difference is."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.report.text import markdown
from benchmarks.results import MEASURES, Results, read_results
from benchmarks.statistics import (
    PERCENT,
    Difference,
    Summary,
    differences,
    differences_of_tasks,
    differences_over_shares,
    summaries,
    verdicts,
)
from ssldet.blind_scores import blind_score
from ssldet.escapes import counted
from ssldet.report.sections import Table

ON_SCENES = {"short": "scenes, 80 steps", "long": "scenes, 160 steps", "cards": "cards at 64 pixels"}
OF_CLAIMS: Mapping[str, Mapping[str, str]] = {
    "paper-table1-tiny": ON_SCENES,
    "paper-table5-tiny": ON_SCENES,
    "paper-table6-tiny": ON_SCENES,
    "paper-fig6-tiny": ON_SCENES,
    "paper-fig7-tiny": ON_SCENES,
    "ours-matching-tiny": ON_SCENES,
    "ours-orderings-tiny": {"own": "30 photographs, pretrained backbone"},
    "ours-few-labels-tiny": {
        "own": "1 to 10 % of 296 photographs, pretrained backbone",
        "ten_shots": "ten objects of each class, pretrained backbone",
        "self_training": "30 photographs, then self-training",
    },
    "ours-small-tiny": {"own": "296 photographs, pretrained backbone"},
    "ours-matching-small-tiny": {"own": "296 photographs at 160 pixels, pretrained backbone"},
    "ours-backbone-swap-tiny": {"own": "296 photographs at 160 pixels, exchanged backbone"},
}
"""Suite whose claims are tabulated -> name of a task -> what it is, in a few words."""


def of_suite(results: Path, name: str) -> Results:
    """Return the committed results of a suite."""
    return read_results(results / f"{name}.json")


def _means(results: Results) -> dict[tuple[str, str, str], str]:
    """Return downstream task, model and method -> mean in points."""
    return {(one.downstream, one.model, one.method): f"{PERCENT * one.mean:.2f}" for one in summaries(results)}


def in_words(difference: Difference) -> str:
    """Say whether a difference is a gain, in how many seeds, and how sure that is, or which one would show."""
    if len(difference.values) == 1:
        return f"{PERCENT * difference.mean:+.1f} in one seed, which shows nothing about chance"
    sure = "" if difference.significant else ", not significant"
    better = "better" if difference.mean > 0 else "**worse**" if difference.significant else "worse"
    agree = sum(value * difference.mean > 0 for value in difference.values)
    limit = f"; {PERCENT * difference.visible:.0f} points would show" if sure and difference.visible else ""
    return f"{better} in {agree} of {len(difference.values)} seeds{sure} (p = {difference.p:.2g}{limit})"


def _with_seeds(values: Sequence[float]) -> str:
    """Return the mean in points, and the value of every seed."""
    return f"{PERCENT * fmean(values):.1f} ({' '.join(f'{PERCENT * value:.1f}' for value in values)})"


def _learned(suite: Results, method: str) -> str:
    """Return the measure of a method's pretrainings on held-out images, and what is reached without looking at them."""
    ended = [run["results"] or {} for run in suite.runs.values() if run["purpose"]["method"] == method]
    for name in MEASURES:
        if found := [results for results in ended if name in results]:
            reached = fmean(results[name] for results in found)
            blind = _without_looking(found, name)
            return f"`{name}` {reached:.3f}" + (f" ({blind})" if blind else "")
    return ""


def _without_looking(ended: Sequence[Mapping[str, Any]], name: str) -> str:
    """Return the mean of what is reached without looking, by results of pretrainings; empty where that is not known."""
    blind = [value for _, value in (blind_score(name, results) for results in ended) if value is not None]
    return f"{fmean(blind):.3f}" if blind else ""


def _recall(suite: Results, task: str, fraction: float, method: str) -> str:
    found = [
        row.results["AR100"]
        for row in suite.measured()
        if (row.arm.downstream, row.arm.fraction, row.arm.method) == (task, fraction, method)
    ]
    return f"{PERCENT * fmean(found):.1f}"


def detectors(results: Path) -> str:
    """Tabulate every detector of the zoo, from scratch and pretrained."""
    titles = {
        ("zoo-detectors-tiny", "detr"): "DETR",
        ("zoo-detectors-tiny", "deformable_detr"): "Deformable DETR, learned starts",
        ("zoo-detectors-tiny", "fp_detr"): "FP-DETR, pretrained by contrasting crops",
        ("zoo-detectors-two-stage-tiny", "deformable_detr"): "Deformable DETR, two stages, starts may overlap",
        ("zoo-detectors-apart-tiny", "deformable_detr"): "Deformable DETR, two stages, starts apart",
    }
    rows = []
    for name in dict.fromkeys(file for file, _ in titles):
        suite = of_suite(results, name)
        means = _means(suite)
        rows += [
            (
                titles[name, one.model.partition("-")[2] or one.model],
                means[one.downstream, one.model, "none"],
                means[one.downstream, one.model, one.method],
                in_words(one),
            )
            for one in differences(suite, "none")
        ]
    return markdown(Table(columns=("detector", "from scratch", "pretrained", "difference"), rows=rows))


def claims(results: Path) -> str:
    """Tabulate what suites of the paper's statements, and of ours, show of each; what was not measured is left out."""
    rows = [
        (words, named[task], verdict)
        for name, named in OF_CLAIMS.items()
        for words, task, verdict in verdicts(of_suite(results, name))
        if verdict != "not measured"
    ]
    return markdown(
        Table(columns=("statement", "task", "at this scale: difference [95 % interval] in points"), rows=rows)
    )


def methods(results: Path) -> str:
    """Tabulate every pretext task of the zoo, against fresh weights and against a pretrained backbone alone."""
    suite = of_suite(results, "zoo-methods-tiny")
    titles = {method["name"]: method["title"] for method in suite.suite["methods"]}
    against = {name: {one.method: one for one in differences(suite, name)} for name in ("none", "backbone")}

    def words(method: str, baseline: str) -> str:
        difference = against[baseline].get(method)
        return "" if difference is None else f"{PERCENT * difference.mean:+.2f}, {in_words(difference)}"

    rows = [
        (titles[one.method], f"{PERCENT * one.mean:.2f}", words(one.method, "none"), words(one.method, "backbone"))
        for one in sorted(summaries(suite), key=lambda one: -one.mean)
    ]
    columns = ("pretrained by", "AP", "more than fresh weights", "more than the backbone alone")
    return markdown(Table(columns=columns, rows=rows))


def matching(results: Path) -> str:
    """Tabulate both scopes of matching with and without jitter, on a backbone of random weights."""
    suite = of_suite(results, "ours-matching-tiny")
    means = {method: mean for (_, _, method), mean in _means(suite).items()}
    kinds = ("own_group", "global")
    rows = [
        (
            words,
            *(means[f"{kind}/{jitter}"] for kind in kinds),
            means["none"],
            *(_learned(suite, f"{kind}/{jitter}") for kind in kinds),
        )
        for jitter, words in (("none", "none"), ("full", "UP-DETR's"))
    ]
    found = (f"{kind}: found (without looking)" for kind in kinds)
    return markdown(Table(columns=("jitter of patches", *kinds, "no pretraining", *found), rows=rows))


def pretraining(results: Path) -> str:
    """Tabulate UP-DETR's suite: what each start gives on generated scenes and on photographs."""
    suite = of_suite(results, "paper-table1-tiny")
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
            in_words(one),
        )
        for one in differences(suite, "none")
    ]
    return markdown(Table(columns=("fine-tuned on", "start", "AP of fresh weights", "AP", "difference"), rows=rows))


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


def small(results: Path) -> str:
    """Tabulate how the recipes named small rise with and without pretraining."""
    starts = {"backbone": "fresh transformer", "own_group": "pretrained"}
    return _rise(of_suite(results, "ours-small-tiny"), starts, ("AP50", "AP75"))


def learning(results: Path, measures: Mapping[str, Sequence[str]]) -> str:
    """Tabulate what pretext tasks measure on held-out photographs as pretraining goes on, in the mean over its seeds.

    Args:
        results: Folder of committed results.
        measures: Method of `zoo/small` -> names of its measures.
    """
    suite = of_suite(results, "zoo-small-tiny")
    rows, steps = [], list[int]()
    for method, names in measures.items():
        runs = [
            run
            for run in suite.runs.values()
            if (run["purpose"]["verb"], run["purpose"]["method"]) == ("pretrain", method) and run["curve"]
        ]
        steps = [point["step"] for point in runs[0]["curve"]]
        for name in names:
            means = [
                fmean(point[name] for point in points) for points in zip(*(run["curve"] for run in runs), strict=True)
            ]
            without = _without_looking([run["results"] for run in runs], name)
            rows.append(
                (f"`{method}`, {counted(len(runs), 'seed')}", f"`{name}`", *(f"{one:.3f}" for one in means), without)
            )
    columns = ("task", "measure", *(f"after {step} steps" for step in steps), "without looking")
    return markdown(Table(columns=columns, rows=rows))


def two_stage(results: Path, name: str) -> str:
    """Tabulate how two-stage Deformable DETR rises on scenes with and without pretraining."""
    starts = {"none": "fresh weights", "pretrained": "pretrained"}
    return _rise(of_suite(results, name), starts, ("AP", "AR10"))


def self_training(results: Path) -> str:
    """Tabulate what self-training adds to fine-tuning, and what as many steps on the labels alone add."""
    suite = of_suite(results, "zoo-small-tiny")
    titles = {"backbone": "fresh transformer", "random_query_patch": "pretrained on random query patches"}
    values = {(one.method, one.downstream): one.values for one in summaries(suite)}
    compared = {one.method: one for one in differences_of_tasks(suite, "self_training", "longer")}
    rows = [
        (
            title,
            *(_with_seeds(values[method, task]) for task in ("own", "longer", "self_training")),
            f"{PERCENT * compared[method].mean:+.1f}, {in_words(compared[method])}",
        )
        for method, title in titles.items()
    ]
    columns = (
        "start",
        "fine-tuned",
        "then more steps on labels",
        "or self-training",
        "self-training against more steps",
    )
    return markdown(Table(columns=columns, rows=rows))


def small_differences(results: Path) -> str:
    """Tabulate what each start of the recipes named small gives at the end of fine-tuning."""
    suite = of_suite(results, "ours-small-tiny")
    titles = {method["name"]: method["title"] for method in suite.suite["methods"]}
    rows = [
        (titles[one.method], f"{PERCENT * one.mean:+.1f}", len(one.values), in_words(one))
        for one in differences(suite, "backbone")
    ]
    columns = ("start", "AP50 more than the backbone alone", "seeds", "difference")
    return markdown(Table(columns=columns, rows=rows))


def few_labels(results: Path) -> str:
    """Tabulate what each start gives with a share of the labels, and how much more than the backbone alone."""
    suite = of_suite(results, "ours-few-labels-tiny")
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
            in_words(against[task, fraction, "own_group"]),
            " → ".join(_recall(suite, task, fraction, start) for start in ("backbone", "own_group")),
        )
        for task, fraction in dict.fromkeys((task, fraction) for task, fraction, _ in measured)
        if (task, fraction, "own_group") in against
    ]
    over = {one.method: one for one in differences_over_shares(suite, "backbone", "own")}
    gains = (f"{PERCENT * over[start].mean:+.1f}" if start in over else "" for start in list(starts)[1:])
    rows.append(("gain in the mean over all shares", "", *gains, in_words(over["own_group"]), ""))
    columns = (
        "labelled",
        *(f"AP50, {name}" for name in starts.values()),
        "UP-DETR against a fresh transformer",
        "AR100 of these two",
    )
    return markdown(Table(columns=columns, rows=rows))


def starts(results: Path, name: str, baseline: str) -> str:
    """Tabulate what each start of a suite gives, and how much more than one of them with the same fine-tuning.

    Args:
        results: Folder of committed results.
        name: The suite's file.
        baseline: Method that the others are compared with.
    """
    suite = of_suite(results, name)
    titles = {method["name"]: method["title"] for method in suite.suite["methods"]}
    against = {(one.downstream, one.method): in_words(one) for one in differences(suite, baseline)}
    then = {
        "ten_shots": ", ten objects of each class",
        "self_training": ", then self-training",
        "longer": ", then as many steps on labels",
    }
    rows = [
        (
            titles[one.method] + then.get(one.downstream, ""),
            _with_seeds(one.values),
            _recall(suite, one.downstream, one.fraction, one.method),
            _learned(suite, one.method),
            against.get((one.downstream, one.method), ""),
        )
        for one in summaries(suite)
    ]
    columns = ("start", "AP50", "AR100", "pretraining: measured (without looking)", f"against {titles[baseline]}")
    return markdown(Table(columns=columns, rows=rows))
