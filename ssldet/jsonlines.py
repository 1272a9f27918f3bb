"""JSON objects, one per line -> values: the whole lines of a damaged file, and numbers that JSON can't express."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ssldet.regular import open_regular, read_text


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON objects, one a line; leave out what is no object, such as a last line torn by a kill."""
    return read_apart(path)[0]


def each_line(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a file one after the other, as `read_lines` returns them.

    A file that grows with every step of a run must not be in memory as a whole each time that it is looked through.
    """
    try:
        file = open_regular(path)
    except FileNotFoundError:
        return
    with file:
        for line in file:
            if (value := _object(line.decode("utf-8", "replace"))) is not None:
                yield value


def read_apart(path: Path) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """Read a file of JSON objects, one a line; empty where there is no file.

    Returns:
        The objects, and the lines that are none, such as one torn by a kill, by their numbers from 1.
    """
    try:
        lines = read_text(path, errors="replace").splitlines()
    except FileNotFoundError:
        return [], {}
    objects, damaged = [], {}
    for number, line in enumerate(lines, start=1):
        value = _object(line)
        if value is None:
            damaged[number] = line
        else:
            objects.append(value)
    return objects, damaged


def _object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def finite(value: Any) -> Any:
    """Return the same document with null for every number that JSON has no word for."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
