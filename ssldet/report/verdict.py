"""Results, findings -> a verdict in words: is it good, and compared with what?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ssldet.blind_scores import HARDLY_BETTER, blind_score, finite, share_of_the_way
from ssldet.report.record import Record
from ssldet.report.wording import measured, number

BLIND = "boxes that are the same in every image"
"""What detections are compared with, in words."""

FEW_OBJECTS = 100
"""Fewer objects than this give rough figures."""
MOST, SOME = 0.75, 0.4
"""Balance of recall and precision (F1) from which most, and some, objects are found."""
MUCH_BETTER = 0.5
"""Share of the way from the baseline to a perfect score, above which a result is called so."""

_SHARES = (
    (0.95, "nearly all"),
    (0.80, "most"),
    (0.71, "about three quarters of the"),
    (0.59, "about two thirds of the"),
    (0.42, "about half of the"),
    (0.29, "about a third of the"),
    (0.20, "about a quarter of the"),
    (0.10, "some"),
    (0.005, "few"),
    (0.0, "no"),
)
"""Least share -> its words; between two fractions, the nearer one's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How good a model is.

    Attributes:
        grade: `good`, `so` or `bad`; empty where nothing was measured.
        sentence: The verdict in one sentence.
        reasons: What it rests on, a sentence each.
        comparisons: Name and value of what the result is compared with.
    """

    grade: str = ""
    sentence: str = ""
    reasons: Sequence[str] = ()
    comparisons: Sequence[tuple[str, str]] = ()


def verdict_of(record: Record, results: Mapping[str, Any], headline: str, others: Mapping[str, float]) -> Verdict:
    """Judge a run.

    Args:
        record: What the run wrote down.
        results: What was measured last.
        headline: Name of the measure that counts.
        others: How the same training went from another start: words -> the same measure.
    """
    value = finite(results.get(headline))
    if value is None or value < 0:
        return Verdict()
    name, baseline = _baseline(record, results, headline)
    balance = _balance(record)
    grade, sentence = _judged(value, baseline, name, balance)
    reasons = []
    if balance is not None and not balance[1]:
        reasons.append("It finds no object, at whatever confidence.")
    elif balance is not None:
        score, recall, precision = balance
        reasons.append(
            f"At a confidence of {score:.2f}, which balances both best, it finds {recall:.0%} of the objects, and "
            f"{precision:.0%} of its detections are right."
        )
    if baseline is not None:
        reasons.append(f"{headline} is {_text(headline, value)}; {name} would reach {_text(headline, baseline)}.")
    reasons += [
        f"{words}: {headline} {_text(headline, other)}, {_text(headline, abs(value - other))} "
        f"{'less' if other < value else 'more'} than this run."
        for words, other in others.items()
    ]
    objects = finite(record.findings.get("objects"))
    if objects is not None and objects < FEW_OBJECTS:
        reasons.append(f"Measured on {number(int(objects))} objects only, so that other images may give other figures.")
    compared = [] if baseline is None else [(name, _text(headline, baseline))]
    compared += [(words, _text(headline, other)) for words, other in others.items()]
    return Verdict(grade=grade, sentence=sentence, reasons=reasons, comparisons=compared)


def _judged(
    value: float, baseline: float | None, name: str, balance: tuple[float, float, float] | None
) -> tuple[str, str]:
    way = 1.0 if baseline is None else share_of_the_way(value, baseline)
    if baseline is not None and value <= baseline:
        return "bad", f"No better than {name}: it has not learned to look at the images."
    if balance is not None:
        _, recall, precision = balance
        f1 = 2 * recall * precision / (recall + precision) if recall + precision else 0.0
        grade = "good" if f1 >= MOST else "so" if f1 >= SOME else "bad"
        right = _share(precision).replace("of the", "of its")
        return grade, f"It finds {_share(recall)} objects, and {right} detections are right."
    if baseline is None:
        return "", ""
    if way < HARDLY_BETTER:
        return "bad", f"Hardly better than {name}."
    if way < MUCH_BETTER:
        return "so", f"Better than {name}, and far from perfect."
    return "good", f"Much better than {name}."


def _share(value: float) -> str:
    """Return a share in words."""
    return next(words for least, words in _SHARES if value >= least)


def _baseline(record: Record, results: Mapping[str, Any], headline: str) -> tuple[str, float | None]:
    """Return what the result is compared with, in words and as a figure."""
    blind = record.findings.get("baseline")
    if isinstance(blind, Mapping) and (value := finite(blind.get(headline))) is not None and value >= 0:
        return BLIND, value
    return blind_score(headline, results)


def _balance(record: Record) -> tuple[float, float, float] | None:
    """Return confidence, recall and precision at their best balance."""
    balance = record.findings.get("balance")
    if not isinstance(balance, Mapping):
        return None
    score, recall, precision = (finite(balance.get(name)) for name in ("score", "recall", "precision"))
    return None if score is None or recall is None or precision is None else (score, recall, precision)


def _text(name: str, value: float) -> str:
    shown = measured(name, value)
    return shown if isinstance(shown, str) else number(shown)
