"""what files say of their model beside the tensors -> the same, once the type of every entry was checked.

Files of other projects state options of their training run (`args`); those that we write in other projects' formats
also state, in ssldet's words, the task, the class names and the data's number of each class.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssldet.errors import CheckpointError
from ssldet.escapes import is_text, shortened

STATEMENT = "ssldet"
"""Entry of a file in which we state things in our own words."""

HOLDS: Mapping[str, tuple[type, type | None]] = {
    "task": (dict, None),
    "detector": (dict, None),
    "classes": (list, str),
    "category_ids": (list, int),
    "choices": (dict, None),
    "lineage": (list, dict),
}
"""What entries in our words hold, and what those that are lists hold."""


def odd_entries(info: Mapping[str, Any]) -> list[str]:
    """Return the names of entries that are not of their kind.

    Args:
        info: What a file states in our words; entries may be absent.
    """
    return [name for name, (kind, inner) in HOLDS.items() if name in info and not _is_of(info[name], kind, inner)]


def _is_of(value: object, kind: type, inner: type | None) -> bool:
    if not isinstance(value, kind):
        return False
    # A truth value is a whole number to Python, and to nobody else.
    return inner is None or all(
        isinstance(item, inner) and not isinstance(item, bool) and (not isinstance(item, str) or is_text(item))
        for item in (value if isinstance(value, list) else ())
    )


def statement_in(options: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return what a file states in our words; empty if we have not written it.

    Args:
        options: Entries of the file beside the tensors.
        path: Names the file in a message.

    Raises:
        CheckpointError: An entry is not of its kind.
    """
    stated = options.get(STATEMENT)
    if not isinstance(stated, dict):
        return {}
    if odd := odd_entries(stated):
        raise CheckpointError(
            f"{path}: its entry {STATEMENT!r} holds no usable {', '.join(odd)}; export the model again, or remove the "
            "entry"
        )
    return stated


def whole_option(options: Mapping[str, Any], name: str, otherwise: int, path: Path) -> int:
    """Return an option that is a positive whole number.

    Args:
        options: Options of a training run.
        name: Name of the option.
        otherwise: What it is where the file does not say.
        path: Names the file in a message.

    Raises:
        CheckpointError: It is something else.
    """
    given = options.get(name, otherwise)
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise CheckpointError(f"{path}: its option {name}={shortened(given)} must be a positive whole number")
    return given


def share_option(options: Mapping[str, Any], name: str, otherwise: float, path: Path) -> float:
    """Return an option that is a share from 0 to below 1.

    Args:
        options: Options of a training run.
        name: Name of the option.
        otherwise: What it is where the file does not say.
        path: Names the file in a message.

    Raises:
        CheckpointError: It is something else.
    """
    given = options.get(name, otherwise)
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given < 1:
        raise CheckpointError(f"{path}: its option {name}={shortened(given)} must lie from 0 to below 1")
    return float(given)
