"""key -> BibTeX entry: what to cite for a task, from the one list of references."""

import re
from functools import cache
from importlib.resources import files
from pathlib import Path


def citation(key: str) -> str:
    """Return the entry of a key; empty where the list has none, as for somebody else's task.

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
