"""group, name -> object: what installed packages offer through entry points, listed without importing any of it."""

import ast
import logging
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ssldet.errors import ConfigError, suggest
from ssldet.regular import read_bytes

log = logging.getLogger(__name__)

OURS = ("ssldet", "pretext", "downstream")
"""The packages of this distribution."""

MOST_LISTED = 20
"""How many names an error lists; a reader of more is sent to the list."""
GROUPS = {
    "ssldet.tasks": "task",
    "ssldet.recipes": "recipe",
    "ssldet.detectors": "detector",
    "ssldet.backbones": "backbone",
    "ssldet.augmentations": "augmentation",
    "ssldet.sources": "data format",
    "ssldet.checkers": "labelled data format",
    "ssldet.converters": "labelled data format to write",
    "ssldet.datasets": "generated data set",
    "ssldet.scorers": "scorer",
    "ssldet.exporters": "exporter",
    "ssldet.importers": "importer",
    "ssldet.verbs": "verb",
    "ssldet.loggers": "logger",
}
"""Entry-point group -> the word for one of its members."""
FIELDS = {
    "ssldet.tasks": "task.name",
    "ssldet.detectors": "detector.name",
    "ssldet.augmentations": "task.augmentation",
}
"""Entry-point group -> the field of a run that may name a `module:Object` instead of one of its members."""


def names(group: str) -> list[str]:
    """List what a group offers, sorted; imports nothing.

    Args:
        group: One of `GROUPS`.
    """
    return sorted(_claims(group))


def summary(group: str, name: str) -> str:
    """Return the first line of the docstring of what a name stands for; imports nothing.

    Args:
        group: One of `GROUPS`.
        name: As listed by `names`.

    Returns:
        The line of the class or function; of its module where it is neither, or has none; empty where the source can't
        be read.
    """
    return _told(group, name).partition("\n")[0]


def remark(group: str, name: str, word: str) -> list[str]:
    """Return what a line such as `Needs: CPU; 64 px.` of a name's docstring lists; imports nothing.

    Args:
        group: One of `GROUPS`.
        name: As listed by `names`.
        word: What stands before the colon.

    Returns:
        The parts between semicolons; none where there is no such line.
    """
    line = next((line for line in _told(group, name).splitlines() if line.startswith(f"{word}: ")), "")
    return [part.strip() for part in line.partition(": ")[2].removesuffix(".").split(";") if part.strip()]


def _told(group: str, name: str) -> str:
    """Return the docstring of what a name stands for, or else of its module."""
    entry = _ours_first(_claims(group)[name])[0]
    module = _source_of(entry.module)
    if module is None:
        return ""
    return _docstring_in(module.body, entry.attr.split(".")) or ast.get_docstring(module) or ""


def find(group: str, name: str) -> Any:
    """Import and return the object that an installed package registered; nothing else is ever imported here.

    Args:
        group: One of `GROUPS`.
        name: As listed by `names`.

    Raises:
        ConfigError: No such name, two packages claim it, or its package fails when it is imported.
    """
    claims = _claims(group)
    if name not in claims:
        many = f"what is installed: ssldet list {group.removeprefix('ssldet.')}"
        known = many if len(claims) > MOST_LISTED else f"installed: {', '.join(sorted(claims)) or 'none'}"
        raise ConfigError(f"no {_word(group)} {name!r}{suggest(name, claims)}; {known}")
    entries = _ours_first(claims[name])
    if len(entries) > 1:
        rivals = " and ".join(sorted(entry.value for entry in entries))
        raise ConfigError(f"{_word(group)} {name!r} is claimed by {rivals}; uninstall one of the packages")
    return _import(entries[0])


def find_or_import(group: str, name: str) -> Any:
    """Return what a person named on the command line or in a call; only here may a name import an unregistered module.

    Args:
        group: One of `GROUPS`.
        name: As listed by `names`, or `package.module:Object` for one that no package registers.

    Raises:
        ConfigError: As `find`.
    """
    return _import(EntryPoint(name=name, value=name, group=group)) if ":" in name else find(group, name)


def find_or_imported(group: str, name: str) -> Any:
    """Return what a file names: a registered object, or `package.module:Object` of a module that is imported already.

    A file must not choose which code runs, so this never imports a module that no package registered.

    Args:
        group: One of `GROUPS`.
        name: What the file says.

    Raises:
        ConfigError: As `find`; or nobody has imported the module so far, and the message says how its owner does.
    """
    module, colon, path = name.partition(":")
    if not colon:
        return find(group, name)
    value: Any = sys.modules.get(module)
    for part in path.split("."):
        value = getattr(value, part, None)
    if value is None:
        word = _word(group)
        raise ConfigError(
            f"{word} {name!r} is not registered, and a file may not choose what is imported; if you trust it, add "
            f"--set {FIELDS.get(group, f'{word}.name')}={name}, or import {module} before you call ssldet"
        )
    return value


def name_of(group: str, value: object) -> str:
    """Return the name of this class or function: the registered one, else `module:Object`.

    Args:
        group: One of `GROUPS`.
        value: What `find` or `find_or_imported` would return.
    """
    target = f"{getattr(value, '__module__', '?')}:{getattr(value, '__qualname__', '?')}"
    for name, entries in _claims(group).items():
        if any(entry.value == target for entry in entries):
            return name
    return target


def _word(group: str) -> str:
    return GROUPS.get(group, group)


@cache
def _source_of(module: str) -> ast.Module | None:
    """Parse the file of a module; the package above it is found, and nothing is imported."""
    top, *inner = module.split(".")
    try:
        spec = find_spec(top)
        folders = [] if spec is None else list(map(Path, spec.submodule_search_locations or ()))
        places = [folder.joinpath(*inner) for folder in folders]
        files = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
        if spec is not None and not folders and spec.origin:
            files = [Path(spec.origin)]
        path = next((file for file in files if file.is_file()), None)
        return None if path is None else ast.parse(read_bytes(path))
    except (OSError, ValueError, SyntaxError, ImportError):
        return None


def _docstring_in(body: Sequence[ast.stmt], names: Sequence[str]) -> str | None:
    """Return the docstring of a class or function that some statements define."""
    for statement in body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef) and statement.name == names[0]:
            return ast.get_docstring(statement) if len(names) == 1 else _docstring_in(statement.body, names[1:])
    return None


def _import(entry: EntryPoint) -> Any:
    """Load an entry; whatever a package does on import, it costs one line and never the program."""
    try:
        return entry.load()
    except (Exception, SystemExit) as error:  # a package's own code may fail in any way
        told = str(error).strip().partition("\n")[0]
        why = told if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: {told}"
        if isinstance(error, ModuleNotFoundError) and entry.module.startswith(str(error.name)):
            why += "; put its folder on PYTHONPATH, or install it"
        raise ConfigError(f"{_word(entry.group)} {entry.name!r} ({entry.value}) can't be imported: {why}") from error


def _ours_first(entries: list[EntryPoint]) -> list[EntryPoint]:
    """Let a name of this package stay what it is, whatever another package claims."""
    ours = [entry for entry in entries if entry.value.partition(".")[0].partition(":")[0] in OURS]
    if not ours or len(ours) == len(entries):
        return entries
    rivals = ", ".join(sorted(entry.value for entry in entries if entry not in ours))
    _warn(f"{_word(ours[0].group)} {ours[0].name!r} stays {ours[0].value}; {rivals} claims a name that is taken")
    return ours


@cache
def _warn(message: str) -> None:
    """Say something once."""
    log.warning(message)


@cache
def _claims(group: str) -> dict[str, list[EntryPoint]]:
    claims: dict[str, dict[str, EntryPoint]] = {}
    for entry in entry_points(group=group):
        # An editable install beside its own build folder lists one entry twice; that is one claim.
        claims.setdefault(entry.name, {})[entry.value] = entry
    return {name: list(by_value.values()) for name, by_value in claims.items()}
