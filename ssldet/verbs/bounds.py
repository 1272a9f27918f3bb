"""numbers that a verb takes besides its recipe -> nothing, or every one that does not fit, before anything is read."""

import math
from collections.abc import Mapping

from ssldet.errors import ConfigError
from ssldet.hints import Within

COUNT, SHARE = Within(1), Within(0, 1)
"""Bounds of a number of things, of which there must be one, and of a share of something."""


def require_within(numbers: Mapping[str, tuple[object, Within]]) -> None:
    """Let a verb begin only with numbers that mean something to it.

    Args:
        numbers: Name of the argument -> what was given, and its bounds; `None` was not given.

    Raises:
        ConfigError: With one line for each that lies outside, or is no number.
    """
    wrong = [
        f"{name}: {value!r} does not fit; expects a number, {bounds}"
        for name, (value, bounds) in numbers.items()
        if value is not None and not _lies(value, bounds)
    ]
    if wrong:
        raise ConfigError(wrong)


def _lies(value: object, bounds: Within) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return False
    return bounds.low <= value <= bounds.high
