"""stages of a model -> BibTeX entries: what to cite, from the one list of references."""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from ssldet.errors import ConfigError
from ssldet.registry import find


def cited(stages: Iterable[Mapping[str, Any]]) -> str:
    """Return the entries that a model owes: the paper of its detector, and that of every stage's task.

    Args:
        stages: What is known of each, such as its task and its detector as plain values; unknown ones are passed over.
    """
    known = list(stages)
    keys = [*_cites(known, "detector", "ssldet.detectors"), *_cites(known, "task", "ssldet.tasks")]
    return "\n\n".join(dict.fromkeys(filter(None, map(citation, keys))))


def _cites(stages: Iterable[Mapping[str, Any]], part: str, group: str) -> Iterator[str]:
    """Yield the key that one part of each stage cites."""
    for stage in stages:
        try:
            yield find(group, str(stage[part]["name"])).cite
        except (ConfigError, AttributeError, KeyError, TypeError):
            continue


def citation(key: str) -> str:
    """Return the entry of a key; empty where the list has none, as for a task of another package.

    Args:
        key: Such as a task's `cite`.
    """
    return _entries().get(key, "")


@cache
def _entries() -> dict[str, str]:
    packed = files("ssldet") / "references.bib"
    # A checkout has the list at its root; a wheel carries it inside the package.
    source = packed if packed.is_file() else Path(__file__).parents[1] / "references.bib"
    text = source.read_text(encoding="utf-8")
    return {entry[1]: entry[0] for entry in re.finditer(r"^@\w+\{([^,\s]+),.*?^\}", text, re.DOTALL | re.MULTILINE)}
