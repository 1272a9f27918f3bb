"""Results -> statistics: means with intervals, differences paired by seed, and significance in words.

Intervals are Student's: they grow as fast as few seeds require, where resampling three values can never leave their
range. The test is his too, of differences paired by seed; its p-values are adjusted for the number of comparisons of a
downstream task, after Benjamini and Hochberg. Where a method has several pretrainings, seeds that begin with the same
one count as one. Beside a difference that is not significant stands the smallest one that so many seeds with this
spread would most likely have shown, because "not seen" says little where little could be seen.
"""

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats
from scipy.optimize import brentq

from benchmarks.results import Results, Row
from benchmarks.suite import Claim

LEVEL = 0.05
"""Differences with an adjusted p-value below this are called significant."""

CONFIDENCE = 0.95

PERCENT = 100.0
"""Metrics are shares in the code and percentages in a report, as in papers."""

POWER = 0.8
"""Chance of being significant that a difference needs to count as one that could have been seen."""

Group = tuple[str, str, float, str]
"""Downstream task, model, share of the labels, method."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One method under one condition, over seeds.

    Attributes:
        downstream: Name of the downstream task.
        model: Name of the model.
        fraction: Share of the labels.
        method: Name of the method.
        metric: Name of the metric.
        values: One value per seed.
        mean: Mean of the values.
        spread: Standard deviation of the values; `None` for one seed.
        interval: Confidence interval of the mean, over what is independent as in `Difference`; `None` for one value.
        seconds: Mean time of a row, pretraining included.
    """

    downstream: str
    model: str
    fraction: float
    method: str
    metric: str
    values: tuple[float, ...]
    mean: float
    spread: float | None
    interval: tuple[float, float] | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two methods under one condition, paired by seed.

    Attributes:
        downstream: Name of the downstream task.
        model: Name of the model.
        fraction: Share of the labels.
        method: Name of the first method.
        baseline: Name of the second method, or of the second task where two tasks are compared.
        values: First minus second, one value per seed.
        independent: The same where seeds share no run, else one mean per shared pretraining: seeds that begin with the
            same pretraining say little about another one. If all seeds share one, nothing is known of others, and each
            seed stands for itself.
        mean: Mean of the independent values.
        interval: Confidence interval of the mean; `None` for one value.
        p: p-value of the paired t-test, adjusted for the comparisons of the task; `None` for fewer than two values.
        visible: The smallest mean that would be significant with a chance of `POWER`, if values differ as much as these
            do, even where all other comparisons of the task show nothing; `None` for fewer than two values.
    """

    downstream: str
    model: str
    fraction: float
    method: str
    baseline: str
    values: tuple[float, ...]
    independent: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None
    p: float | None
    visible: float | None

    @property
    def significant(self) -> bool:
        """Whether the difference is unlikely to be chance."""
        return self.p is not None and self.p < LEVEL

    def words(self) -> str:
        """Return the direction and significance in words."""
        if self.p is None:
            return "one seed: shows nothing about chance"
        direction = "better" if self.mean > 0 else "worse" if self.mean < 0 else "equal"
        seeds = f"{sum(value * self.mean > 0 for value in self.values)} of {len(self.values)} seeds"
        if self.significant:
            return f"significantly {direction} (p = {self.p:.2g}, {seeds})"
        return f"{direction} in the mean, not significant (p = {self.p:.2g}, {seeds}{self.limit()})"

    def limit(self) -> str:
        """Return in words which differences would have been missed; empty where nothing is known of it."""
        return "" if not self.visible else f", less than {PERCENT * self.visible:.2f} points would mostly be missed"


def summaries(results: Results) -> list[Summary]:
    """Summarise every method under every condition, in the order of the suite."""
    metrics = {entry["name"]: entry["metric"] for entry in results.suite["downstreams"]}
    summarised = []
    for (downstream, model, fraction, method), rows in _grouped(results).items():
        values = tuple(float(row.results[metrics[downstream]]) for row in rows)
        summarised.append(
            Summary(
                downstream=downstream,
                model=model,
                fraction=fraction,
                method=method,
                metric=metrics[downstream],
                values=values,
                mean=float(np.mean(values)),
                spread=float(np.std(values, ddof=1)) if len(values) > 1 else None,
                interval=interval(_independent(values, [row.arm.jobs for row in rows])),
                seconds=float(np.mean([row.seconds or 0.0 for row in rows])),
            )
        )
    return summarised


def differences(results: Results, baseline: str) -> list[Difference]:
    """Compare every method with a baseline, seed by seed.

    Args:
        results: The results.
        baseline: Name of the baseline; if it was not measured, there are no differences.
    """
    return _adjusted(_compared(results, baseline, lambda group: (*group[:3], baseline)))


def differences_of_tasks(results: Results, task: str, baseline: str) -> list[Difference]:
    """Compare what each method reaches on one downstream task with what it reaches on another, seed by seed.

    Args:
        results: The results.
        task: Name of the first task.
        baseline: Name of the second task, which is measured by the same metric.
    """
    return _adjusted(_compared(results, baseline, lambda group: (baseline, *group[1:]) if group[0] == task else group))


def _compared(results: Results, baseline: str, other: Callable[[Group], Group]) -> list[Difference]:
    """Compare each group of rows with another one, seed by seed; one that is compared with itself is passed over."""
    groups = _grouped(results)
    metrics = {entry["name"]: entry["metric"] for entry in results.suite["downstreams"]}
    compared = [
        _difference(group, baseline, rows, groups[other(group)], metrics[group[0]])
        for group, rows in groups.items()
        if other(group) != group and other(group) in groups
    ]
    return [difference for difference in compared if difference.values]


def differences_over_shares(results: Results, baseline: str, task: str) -> list[Difference]:
    """Compare methods with a baseline in the mean over all shares of the labels, seed by seed.

    Args:
        results: The results.
        baseline: Name of the baseline.
        task: Name of the downstream task; methods that were not measured with every share of it are left out.

    Returns:
        Differences whose `fraction` is zero.
    """
    each = defaultdict[tuple[str, str], list[Difference]](list)
    for difference in differences(results, baseline):
        if difference.downstream == task:
            each[difference.model, difference.method].append(difference)
    shares = {difference.fraction for group in each.values() for difference in group}
    return _adjusted([_mean_difference(group) for group in each.values() if len(group) == len(shares)])


def _mean_difference(each: Sequence[Difference]) -> Difference:
    """Return the mean of differences over the same seeds."""
    values, independent = (
        tuple(float(np.mean(column)) for column in zip(*columns, strict=True))
        for columns in ([one.values for one in each], [one.independent for one in each])
    )
    return replace(
        each[0],
        fraction=0.0,
        values=values,
        independent=independent,
        mean=float(np.mean(independent)),
        interval=interval(independent),
        p=_paired(independent),
    )


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return Student's confidence interval of a mean; `None` for one value.

    Args:
        values: The sample.
    """
    if len(values) < 2:
        return None
    if len(set(values)) == 1:
        return values[0], values[0]
    low, high = stats.t.interval(CONFIDENCE, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    return float(low), float(high)


def smallest_visible(values: Sequence[float], comparisons: int = 1) -> float | None:
    """Return the smallest mean difference that a t-test of as many values would show with a chance of `POWER`.

    Args:
        values: Differences, whose spread is taken for that of all; `None` is returned for fewer than two.
        comparisons: Number of comparisons for which p-values are adjusted.
    """
    if len(values) < 2:
        return None
    freedom, error = len(values) - 1, float(stats.sem(values))
    threshold = stats.t.isf(LEVEL / comparisons / 2, freedom)

    def lacking(shift: float) -> float:
        """Chance that is lacking if the mean lies this many standard errors from zero."""
        return POWER - float(stats.nct.sf(threshold, freedom, shift))

    # Half of all cases are seen at about the threshold itself; ten times as far nearly all are.
    return error * float(brentq(lacking, 0.0, 10 * threshold))


def verdicts(results: Results) -> list[tuple[str, str, str]]:
    """Return the words, the task and the verdict of each claim of a suite on each of its tasks.

    Args:
        results: The results.
    """
    tasks = [task["name"] for task in results.suite["downstreams"]]
    return [(claim.words, task, judge(claim, results, task)) for claim in results.claims() for task in tasks]


def judge(claim: Claim, results: Results, downstream: str) -> str:
    """Return in words whether a claim holds at this scale.

    Args:
        claim: The claim.
        results: The results.
        downstream: Name of the downstream task on which it is checked.
    """
    compared = [
        difference
        for difference in differences(results, claim.lower)
        if difference.method == claim.higher and difference.downstream == downstream
    ]
    if not compared:
        return "not measured"
    told = [
        f"{_condition(difference, compared)}{_verdict(claim, difference)} ({_in_numbers(difference)})"
        for difference in compared
    ]
    return "; ".join(told)


def _condition(difference: Difference, compared: Sequence[Difference]) -> str:
    """Return the model and the share of labels, each only where not all differences have the same."""
    parts = [difference.model] if len({one.model for one in compared}) > 1 else []
    parts += [f"{difference.fraction:.0%} of labels"] if len({one.fraction for one in compared}) > 1 else []
    return f"{', '.join(parts)}: " if parts else ""


def _verdict(claim: Claim, difference: Difference) -> str:
    if difference.p is None:
        return "one seed: not decided"
    if claim.kind == "no gain":
        if difference.mean > 0 and difference.significant:
            return "does not reproduce: there is a gain"
        return "no gain is shown"
    if difference.mean == 0:
        return "not shown: equal in the mean"
    if difference.mean > 0:
        return "reproduces" if difference.significant else "not shown: higher in the mean, not significant"
    return (
        "does not reproduce: reversed" if difference.significant else "not shown: reversed in the mean, not significant"
    )


def _in_numbers(difference: Difference) -> str:
    low, high = difference.interval or (difference.mean, difference.mean)
    p = "" if difference.p is None else f", p = {difference.p:.2g}"
    limit = "" if difference.significant else difference.limit()
    return f"{PERCENT * difference.mean:+.2f} [{PERCENT * low:+.2f}, {PERCENT * high:+.2f}]{p}{limit}"


def _grouped(results: Results) -> dict[Group, list[Row]]:
    groups: dict[Group, list[Row]] = defaultdict(list)
    metrics = {entry["name"]: entry["metric"] for entry in results.suite["downstreams"]}
    for row in results.measured():
        if is_number(row.results.get(metrics[row.arm.downstream])):
            groups[row.arm.downstream, row.arm.model, row.arm.fraction, row.arm.method].append(row)
    return groups


def is_number(value: object) -> bool:
    """Return whether a metric has a value; COCO's code writes -1 where there was nothing to find."""
    return isinstance(value, int | float) and value != -1


def _difference(group: Group, baseline: str, rows: list[Row], others: list[Row], metric: str) -> Difference:
    theirs = {row.arm.seed: row for row in others}
    pairs = [(row, theirs[row.arm.seed]) for row in rows if row.arm.seed in theirs]
    values = tuple(float(one.results[metric]) - float(other.results[metric]) for one, other in pairs)
    independent = _independent(values, [(*one.arm.jobs, *other.arm.jobs) for one, other in pairs])
    downstream, model, fraction, method = group
    return Difference(
        downstream=downstream,
        model=model,
        fraction=fraction,
        method=method,
        baseline=baseline,
        values=values,
        independent=independent,
        mean=float(np.mean(independent)) if independent else 0.0,
        interval=interval(independent),
        p=_paired(independent),
        visible=None,
    )


def _independent(values: Sequence[float], runs: Sequence[Sequence[str]]) -> tuple[float, ...]:
    """Return one mean of the values of each set of shared runs; the values if none, or one for all, are shared.

    Args:
        values: One per seed.
        runs: Addresses of the runs on which each value rests.
    """
    uses = Counter(address for addresses in runs for address in set(addresses))
    groups: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for addresses, value in zip(runs, values, strict=True):
        groups[tuple(address for address in addresses if uses[address] > 1) or tuple(addresses)].append(value)
    return tuple(values) if len(groups) == 1 else tuple(float(np.mean(group)) for group in groups.values())


def _paired(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    if len(set(values)) == 1:
        # The test is undefined for equal values: there is no difference at all, or always the same one.
        return 1.0 if values[0] == 0 else 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        test: Any = stats.ttest_1samp(values, 0.0)
    return float(test.pvalue)


def _adjusted(compared: list[Difference]) -> list[Difference]:
    """Adjust p-values for the number of comparisons of each downstream task."""
    result = list(compared)
    for downstream in {difference.downstream for difference in compared}:
        places = [n for n, entry in enumerate(compared) if entry.downstream == downstream and entry.p is not None]
        if places:
            adjusted = stats.false_discovery_control([compared[place].p for place in places])
            for place, p in zip(places, adjusted, strict=True):
                visible = smallest_visible(compared[place].independent, len(places))
                result[place] = replace(compared[place], p=float(p), visible=visible)
    return result
