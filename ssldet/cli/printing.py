"""What a verb returns -> standard output, as text or as JSON."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from textwrap import indent
from typing import Any

from ssldet.cli.console import tell
from ssldet.escapes import printable_lines


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
