"""text and paths from files -> text that can be printed: nothing in it clears a screen, forges a line or is no UTF-8.

Errors escape themselves (`ssldet.errors`), log lines do by `EscapingFormatter`, and the command line escapes what it
prints. Line ends of a message are its own, so a name that may hold one is escaped where it joins the message.
"""

import logging
import os
from pathlib import Path


def printable(text: str) -> str:
    r"""Return a text of a file with control characters and line ends escaped, as in `\x1b`.

    Args:
        text: A name, or one line of a message.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def printable_lines(text: str) -> str:
    r"""Return a message of several lines with each of them escaped.

    Args:
        text: A message; only `\n` ends a line of it.
    """
    return text if text.isprintable() else "\n".join(map(printable, text.split("\n")))


def shown(path: str | Path) -> str:
    r"""Return a path that can be printed and written anywhere: bytes that are not UTF-8 become `\xe9`.

    Args:
        path: A path or a part of one.
    """
    try:
        return printable(os.fsencode(path).decode("utf-8", "backslashreplace"))
    except UnicodeEncodeError:
        return printable(str(path))


def shortened(value: object, limit: int = 60) -> str:
    """Return how a value looks, on one line and cut to a readable length.

    Args:
        value: Anything that a file may hold.
        limit: Largest number of characters.
    """
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # Python writes out no whole number of more than some thousand digits
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: `1 image`, `2,400 images`, `3 boxes`.

    Args:
        number: How many there are.
        noun: In the singular.
        plural: Where it does more than end in `s`.
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def is_text(text: str) -> bool:
    """Say whether a text can be written as UTF-8: JSON and YAML can hold halves of characters.

    Args:
        text: A name.
    """
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


class EscapingFormatter(logging.Formatter):
    """Escapes every line of a log message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the formatted record, escaped.

        Args:
            record: What was logged.
        """
        return printable_lines(super().format(record))
