"""faults of an annotation file -> one AnnotationError: everything that is wrong, said at once."""

import codecs
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ssldet.data.files import beside
from ssldet.documents import binary_kind
from ssldet.errors import AnnotationError
from ssldet.escapes import printable, shortened
from ssldet.regular import read_bytes

Form = TypeVar("Form")

SHOWN = 10
"""Places that an error lists for each kind of fault; the rest is counted."""
KEPT = 1000
"""Places that are remembered for each kind of fault, for `ssldet data check`."""
shown = shortened
"""How a foreign value looks, on one line and cut to a readable length."""
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"\s*:?|[{}\[\],]')
"""The tokens of JSON by which its objects and keys can be followed."""
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""First bytes of a text file -> its encoding; UTF-32 before UTF-16, whose mark is the beginning of the other's."""


class Problems:
    """Collects what is wrong with one file or folder.

    Attributes:
        path: The file or folder, named at the top of the message.
    """

    def __init__(self, path: Path) -> None:
        """Start with nothing wrong.

        Args:
            path: The file or folder that is read.
        """
        self.path = path
        self._places: dict[str, list[tuple[str, str]]] = {}
        self._counts: dict[str, int] = {}
        self._total = 0

    def add(self, where: str, what: str, remedy: str) -> None:
        """Note one fault.

        Args:
            where: A JSON pointer (`$.annotations[3].bbox`) or `file:line`.
            what: What was found there.
            remedy: What should be there and what to do; faults with the same remedy are listed together.
        """
        self._total += 1
        self._counts[remedy] = self._counts.get(remedy, 0) + 1
        places = self._places.setdefault(remedy, [])
        if len(places) < KEPT:
            places.append((where, what))

    def __len__(self) -> int:
        """Number of faults."""
        return self._total

    def entries(self) -> list[dict[str, str]]:
        """Return `where`, `what` and `remedy` of every fault that is remembered, one kind after the other."""
        return [
            {"where": where, "what": what, "remedy": remedy}
            for remedy, places in self._places.items()
            for where, what in places
        ]

    def stop(self) -> None:
        """Go on only if nothing is wrong.

        Raises:
            AnnotationError: One line for each fault, up to ten of each kind and the count of the others.
        """
        if self._total:
            raise AnnotationError(self.message())

    def message(self) -> str:
        """Return what `stop` says."""
        lines = [f"{self.path}: {self._total} problem{'s' if self._total > 1 else ''}"]
        for remedy, places in self._places.items():
            lines += [printable(f"  {where}: {what}; {remedy}") for where, what in places[:SHOWN]]
            if (more := self._counts[remedy] - SHOWN) > 0:
                lines.append(printable(f"  … and {more} more of this kind ({remedy})"))
        return "\n".join(lines)


def text_of(path: Path) -> str:
    """Return the text of a small file, whatever editor wrote it: UTF-8, or what its byte order mark says.

    Args:
        path: A file.

    Raises:
        AnnotationError: It can't be read, or is no text.
    """
    try:
        content = read_bytes(path)
    except OSError as error:
        raise AnnotationError(f"can't be read ({error.strerror})") from error
    if kind := binary_kind(content):
        raise AnnotationError(kind)
    encoding = next((name for mark, name in BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise AnnotationError(f"not {encoding} text at byte {error.start}; save it as UTF-8") from error


def json_of(
    path: Path, form: type[Form], expects: str, *, hook: Callable[[dict[str, Any]], dict[str, Any]] | None = None
) -> Form:
    """Return what a JSON file holds.

    Args:
        path: A file.
        form: What must be outermost: `dict` or `list`.
        expects: What that should be, and what to do, in words.
        hook: Sees, and may replace, every object while it is read.

    Raises:
        AnnotationError: It can't be read, or holds something else.
    """
    try:
        content = read_bytes(path)
        if kind := binary_kind(content):
            raise AnnotationError(f"{path}: {kind}; expects {expects}")
        document = json.loads(content, object_pairs_hook=partial(_unique, hook))
    except OSError as error:
        hint = beside(path) if isinstance(error, FileNotFoundError) else ""
        raise AnnotationError(f"{path}: can't be read ({error.strerror}){hint}; expects {expects}") from error
    except _RepeatedKeyError as error:
        place = place_of_repetition(content.decode(json.detect_encoding(content), "replace"))
        raise AnnotationError(f"{path}: {place or shown(error.args[0])} stands twice; keep one of the two") from error
    except json.JSONDecodeError as error:
        raise AnnotationError(f"{path}: {_no_json(error)}; expects {expects}") from error
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: not UTF-8 text at offset {error.start}; save it as UTF-8") from error
    except RecursionError as error:
        raise AnnotationError(f"{path}: nested too deeply; expects {expects}; is it the right file?") from error
    except ValueError as error:
        raise AnnotationError(f"{path}: holds a number that can't be read ({error})") from error
    if not isinstance(document, form):
        raise AnnotationError(f"{path}: $: {shown(document)}; expects {expects}")
    return document


def _no_json(error: json.JSONDecodeError) -> str:
    """Say where a text stops being JSON, and what may have happened to it."""
    if not error.doc.strip():
        return "is empty"
    place = f"not JSON at line {error.lineno} column {error.colno} (offset {error.pos}): {error.msg}"
    if not error.doc[error.pos :].strip() or error.msg.startswith("Unterminated string"):
        return f"{place}; is it cut off?"
    return f"{place}; are these several files joined into one?" if error.msg == "Extra data" else place


class _RepeatedKeyError(Exception):
    """An object of a JSON file has a key twice; Python would keep the last value in silence."""


def _unique(hook: Callable[[dict[str, Any]], dict[str, Any]] | None, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object as a dictionary, if every key stands in it once."""
    record = dict(pairs)
    if len(record) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedKeyError(next(key for key in keys if keys.count(key) > 1))
    return record if hook is None else hook(record)


def place_of_repetition(text: str) -> str | None:
    """Return line, JSON pointer and name of the first key that an object has twice.

    Args:
        text: Sound JSON.
    """
    # For each open object or list: its keys, and the key or the number of the entry that is read.
    stack: list[tuple[set[str] | None, list[Any]]] = []
    for match in TOKEN.finditer(text):
        word = match.group()
        if word in "{[":
            stack.append((set() if word == "{" else None, ["" if word == "{" else 0]))
        elif word in "}]":
            stack.pop()
        elif word == "," and stack[-1][0] is None:
            stack[-1][1][0] += 1
        elif word.endswith(":") and stack:
            keys, here = stack[-1]
            key = json.loads(word[:-1].rstrip())
            if keys is not None and key in keys:
                above = "".join(f".{at[0]}" if owned is not None else f"[{at[0]}]" for owned, at in stack[:-1])
                return f"line {text.count(chr(10), 0, match.start()) + 1}: ${above}: the key {shown(key)}"
            here[0] = key
            if keys is not None:
                keys.add(key)
    return None


def records(
    owner: Mapping[str, Any], name: str, problems: Problems, where: str = "$", *, may_be_empty: bool = False
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Walk a list of objects with the JSON pointer of each; what is no list or no object goes to the problems.

    Args:
        owner: What holds the list.
        name: Under which name.
        problems: Where faults are noted.
        where: JSON pointer of the owner.
        may_be_empty: Whether a list without entries is fine.
    """
    found = owner.get(name)
    if not isinstance(found, list):
        problems.add(f"{where}.{name}", shown(found) if name in owner else "missing", "expects a list of objects")
        return
    if not found and not may_be_empty:
        problems.add(f"{where}.{name}", "empty", "expects at least one entry")
    for number, record in enumerate(found):
        if isinstance(record, dict):
            yield f"{where}.{name}[{number}]", record
        else:
            problems.add(f"{where}.{name}[{number}]", shown(record), "expects an object")
