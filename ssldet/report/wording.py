"""Any value -> text that is safe to show: control characters are escaped, numbers formatted, paths shortened."""

import math
import re
import unicodedata
from pathlib import Path

MISSING = "n/a"
ABSENT = "\N{EN DASH}"
"""Shown for a measure of what the data don't hold, such as large objects, which COCO gives as -1."""
_SHARES = re.compile(r"(AP|AR|PQ|SQ|RQ)(\d+|[sml])?|voc\d*")
_PART = r"[^\s/\\\"'<>:,;\[\](){}]+"
_PATH = re.compile(rf"(?<![\w.~…/-])(?:(?:/{_PART}){{2,}}|[A-Za-z]:(?:[\\/]{_PART}){{2,}})")


def printable(text: object) -> str:
    r"""Return text in which every character is visible.

    Control characters, direction overrides and the surrogates of names that are not UTF-8 become `\x1b`, `\u202e`,
    `\udcff`; line ends, tabs and every kind of space stay.

    Args:
        text: Any value; converted by `str`.
    """
    return "".join(
        char if char.isprintable() or char in "\n\t" or unicodedata.category(char) == "Zs" else _escaped(char)
        for char in str(text)
    )


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()


def one_line(text: object, limit: int = 200) -> str:
    r"""Return `printable` text on one line, cut with an ellipsis.

    Args:
        text: Any value.
        limit: Longest result in characters.
    """
    line = printable(text).replace("\n", r"\n").replace("\t", r"\t")
    return line if len(line) <= limit else line[: limit - 1] + "…"


def without_places(text: str) -> str:
    """Shorten absolute paths to two parts at most, so that a report does not reveal where it was made.

    Args:
        text: Text in which paths may stand; links with a scheme stay.
    """
    home = str(Path.home())
    if len(home) > 1:
        text = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text)
    return _PATH.sub(lambda match: _tail(match[0]), text)


def _tail(path: str) -> str:
    parts = [part for part in re.split(r"[/\\]", path) if part]
    return "…/" + "/".join(parts[-2:] if len(parts) > 2 else parts[-1:])


def number(value: object) -> str:
    """Return a number with four significant digits, thousands separated by a thin space; `n/a` for a missing one.

    Args:
        value: A number; `None`, not-a-number, infinity and any other value count as missing.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return MISSING
    if isinstance(value, int) or value == 0:
        return f"{int(value):,}".replace(",", "\u202f")
    if 1e-3 <= abs(value) < 1e4:
        return f"{value:.{max(0, 3 - math.floor(math.log10(abs(value))))}f}"
    return f"{value:.3g}"


def in_points(name: str) -> bool:
    """Tell whether a measure is one that the literature gives in points, 0 to 100: average precision and its kin.

    Args:
        name: Such as `AP50`, `mask_AP` or `voc07_ap`.
    """
    return any(_SHARES.fullmatch(part) for part in name.split("_"))


def points(value: object) -> str:
    """Return a share of 0..1 as points with one decimal; a dash for -1, by which COCO says that there is nothing.

    Args:
        value: A number; anything else counts as missing.
    """
    if value == -1:
        return ABSENT
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return MISSING
    return f"{100 * value:.1f}"


def measured(name: str, value: object) -> object:
    """Return the value of a measure as a table shows it.

    Args:
        name: Of the measure.
        value: What was measured.
    """
    return points(value) if in_points(name) else value


def duration(seconds: object) -> str:
    """Return a time such as `45 s`, `3 min 20 s`, `2 h 05 min` or `3 d 04 h`.

    Args:
        seconds: A number of seconds; any other value counts as missing.
    """
    if not isinstance(seconds, int | float) or not math.isfinite(seconds) or seconds < 0:
        return MISSING
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, name, part, part_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // part:02d} {part_name}"
    return f"{whole} s"
