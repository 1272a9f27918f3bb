"""name of a measure, results -> what is reached without looking at the images, which a result must beat."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

CONSTANT, CHANCE = "one and the same answer whatever the images show", "chance"
"""Ways to answer without looking, in words."""
HARDLY_BETTER = 0.05
"""Share of the way from there to a perfect score, below which a result is called hardly better."""


def blind_score(measure: str, results: Mapping[str, Any]) -> tuple[str, float | None]:
    """Return how to answer without looking, in words, and what that reaches; `None` where it was not measured.

    Args:
        measure: Name of a measure, such as `patch_iou`.
        results: What an evaluation returned.
    """
    for name, words in _names(measure):
        if (value := finite(results.get(name))) is not None:
            return words, value
    return "", None


def share_of_the_way(score: float, blind: float) -> float:
    """Return how far a score is from a blind answer to a perfect one, as a share of the way.

    Args:
        score: What was reached.
        blind: What is reached without looking.
    """
    return (score - blind) / max(1e-9, 1 - blind)


def finite(value: object) -> float | None:
    """Return a finite number; `None` for anything else that a file may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _names(measure: str) -> Iterator[tuple[str, str]]:
    yield f"{measure}_constant", CONSTANT
    yield f"{measure}_chance", CHANCE
    yield f"{measure.partition('_')[0]}_chance", CHANCE
    yield "chance", CHANCE
