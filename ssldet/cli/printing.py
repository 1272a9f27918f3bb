"""What a verb returns -> standard output, as text or as JSON."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from textwrap import indent
from typing import Any

from ssldet.cli.console import tell
from ssldet.escapes import counted, printable_lines
from ssldet.report.wording import ABSENT

MOST_ROWS = 40
"""Largest number of detections that are listed on a terminal."""


def prints(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Print the result of a verb, as JSON or as text."""

    @wraps(verb)
    def run(*positional: Any, json_: bool = False, **named: Any) -> None:
        result = verb(*positional, **named)
        document = result.to_json() if hasattr(result, "to_json") else result
        if json_:
            tell(json.dumps(document, default=str, allow_nan=False))
        elif result is not None:
            tell(printable_lines(_text(result)))

    return run


@dataclass(frozen=True)
class FoundTable:
    """What `ssldet.predict` returned, as a person reads it.

    Attributes:
        result: As it was returned.
        threshold: Least confidence that is listed.
        drawn: Whether there are pictures.
    """

    result: dict[str, Any]
    threshold: float
    drawn: bool

    def __str__(self) -> str:
        """Return a table of the confident detections, and a line that says how many there are and where all are."""
        rows = [row for row in self.result["predictions"] if row["score"] >= self.threshold]
        cells = [["image", "class", "confidence", "left", "top", "width", "height"]]
        for row in rows[:MOST_ROWS]:
            named = str(row.get("category", row["category_id"]))
            sides = [f"{side:.0f}" for side in row["bbox"]]
            cells.append([str(row["image_id"]), named, f"{row['score']:.2f}", *sides])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(
                [
                    *(text.ljust(width) for text, width in zip(line[:2], widths[:2], strict=True)),
                    *(text.rjust(width) for text, width in zip(line[2:], widths[2:], strict=True)),
                ]
            )
            for line in cells
        ]
        more = [f"… and {len(rows) - MOST_ROWS} more"] if len(rows) > MOST_ROWS else []
        count, out = len(self.result["predictions"]), self.result["out"]
        sure, images = counted(len(rows), "detection"), counted(self.result["images"], "image")
        found = f"{sure} of confidence {self.threshold:g} or more in {images}"
        whole = f"{counted(count, 'detection')} in predictions.json"
        files = f"pictures, and all {whole}" if self.drawn else f"all {whole}"
        lost = self.result.get("unreadable", {})
        unread = [f"can't be read: {path} ({reason})" for path, reason in lost.items()]
        best = max((row["score"] for row in self.result["predictions"]), default=None)
        hint = [] if rows or best is None else [f"the most confident one has {best:.2f}: a lower --threshold shows it"]
        return "\n".join([*(lines if rows else []), *more, *unread, *hint, f"{found}; {out} holds {files}"])

    def to_json(self) -> dict[str, Any]:
        """Return the result as it was."""
        return self.result


@dataclass(frozen=True)
class Figures:
    """What `ssldet.evaluate` returned, as a person reads it.

    Attributes:
        result: As it was returned; -1 stands for what the data don't hold, as in COCO's own code.
    """

    result: dict[str, Any]

    def __str__(self) -> str:
        """Return one line for each figure, a dash for what the data don't hold, and what the dash means."""
        text = _text(_with_dashes(self.result))
        return f"{text}\n{ABSENT}: no such object in the data" if ABSENT in text else text

    def to_json(self) -> dict[str, Any]:
        """Return the result as it was."""
        return self.result


def _with_dashes(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_dashes(inner) for name, inner in value.items()}
    return ABSENT if isinstance(value, float) and value == -1 else value


@contextmanager
def progress_shown(shown: bool) -> Iterator[None]:
    """Show the progress of a run and what it remarks, or warnings and errors only.

    Args:
        shown: False shows problems only, on the terminal; the run's own log has everything.
    """
    from ssldet.engine.log import SHOWN

    handlers = logging.getLogger("ssldet").handlers
    levels = [handler.level for handler in handlers]
    token = SHOWN.set(shown)
    try:
        for handler in handlers:
            handler.setLevel(handler.level if shown else logging.WARNING)
        yield
    finally:
        SHOWN.reset(token)
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)


def _text(result: Any) -> str:
    if isinstance(result, dict):
        width = max((len(str(key)) for key in result), default=0)
        return "\n".join(f"{key:<{width}}  {_entry(value)}" for key, value in result.items())
    if isinstance(result, list):
        return "\n".join(map(_text, result))
    return f"{result:.4f}" if isinstance(result, float) else str(result)


def _entry(value: Any) -> str:
    """Return the text after a name; nested values begin on a new line, indented."""
    return "\n" + indent(_text(value), "  ") if isinstance(value, dict) and value else _text(value)
