"""JSON objects, one a line -> values: what a torn file still holds, and numbers that JSON has no word for."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssldet.regular import read_text


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON objects, one a line; leave out what is no object, such as a last line torn by a kill."""
    return read_apart(path)[0]


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
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            objects.append(value)
        else:
            damaged[number] = line
    return objects, damaged


def finite(value: Any) -> Any:
    """Return the same document with null for every number that JSON has no word for."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
