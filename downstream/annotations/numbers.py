"""values of a foreign file -> finite numbers, or `None`."""

import math

LARGEST = 2**31
"""No image has more pixels along a side, and no coordinate lies farther from it."""


def finite_number(value: object) -> float | None:
    """Return a number that a JSON file holds; `None` for truth values, text, and what no finite float can hold.

    Args:
        value: Anything that a file may hold.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def number_in(text: str) -> float | None:
    """Return the number that a text stands for; `None` for other text, infinities and NaN.

    Args:
        text: A word of a text file.
    """
    try:
        number = float(text)
    except ValueError:
        return None
    # Python reads 1_0 as 10, which no annotation tool writes.
    return number if math.isfinite(number) and "_" not in text else None
