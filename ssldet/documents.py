"""text -> the plain values of JSON and YAML: nesting is limited, and whatever is wrong is one error of one line."""

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml

DEPTH = 32
"""Deepest nesting of YAML that is read; what people write by hand needs a few levels."""
FAST_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The loader of libyaml, where PyYAML was built with it."""


BINARY = {
    b"\x1f\x8b": "is gzip-compressed; gunzip it",
    b"PK\3\4": "is a zip archive; unzip it",
    b"BZh": "is bzip2-compressed; bunzip2 it",
    b"\xfd7zXZ\0": "is xz-compressed; unxz it",
    b"\x28\xb5\x2f\xfd": "is zstd-compressed; unzstd it",
    b"\x89PNG": "is a PNG picture",
    b"\xff\xd8\xff": "is a JPEG picture",
    b"%PDF": "is a PDF document",
    b"\x93NUMPY": "is a NumPy array",
}
"""First bytes of files that are taken for text -> what they are, and what helps."""


def binary_kind(content: bytes) -> str:
    """Say what a file is that is no text; empty where its first bytes do not tell.

    Args:
        content: What it holds, or begins with.
    """
    return next((kind for begin, kind in BINARY.items() if content.startswith(begin)), "")


class OddDocumentError(ValueError):
    """A text that is no document, or one beyond the limits of this module."""


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Args:
        text: From a file that somebody else may have written.

    Raises:
        OddDocumentError: It is no text or not JSON, is nested too deeply, or holds a number with thousands of digits.
    """
    if isinstance(text, bytes) and (kind := binary_kind(text)):
        raise OddDocumentError(kind)
    try:
        return json.loads(text)
    except RecursionError as error:
        raise OddDocumentError("nested too deeply") from error
    except ValueError as error:
        raise OddDocumentError(str(error)) from error


def parse_json_object(text: str | bytes) -> dict[str, Any]:
    """Return the entries of a JSON text that is an object.

    Args:
        text: From a file that somebody else may have written.

    Raises:
        OddDocumentError: It is not JSON, or something else than an object.
    """
    found = parse_json(text)
    if not isinstance(found, dict):
        raise OddDocumentError(f"holds {type(found).__name__} instead of an object")
    return found


def parse_yaml(text: str, loader: Any = FAST_LOADER, *, aliases: bool = True) -> Any:
    """Return the value of a YAML text.

    Args:
        text: From a file that somebody else may have written.
        loader: A safe loader of PyYAML.
        aliases: Whether a value may be referred to again.

    Raises:
        OddDocumentError: It is nested too deeply, or refers to a value where that is not allowed.
        YAMLError: It is not YAML.
    """
    with _without_collector():
        _refuse_odd_structure(text, aliases=aliases)
        return yaml.load(text, Loader=loader)  # noqa: S506  # a safe loader


@contextmanager
def _without_collector() -> Iterator[None]:
    """Let nothing look for garbage: that takes two thirds of the time of reading 50,000 names, and finds none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _refuse_odd_structure(text: str, *, aliases: bool) -> None:
    """Stop before a document is built that is beyond the limits."""
    depth = 0
    for event in yaml.parse(text, Loader=FAST_LOADER):
        # A few bytes of anchors and aliases can stand for gigabytes once somebody prints them.
        if not aliases and isinstance(event, yaml.AliasEvent):
            raise OddDocumentError("holds an alias (*name); write the values out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH:
            raise OddDocumentError(f"nested more than {DEPTH} levels deep")
