"""group, name -> object: what installed packages offer through entry points, listed without importing any of it."""

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ssldet.errors import ConfigError, suggest

GROUPS = {
    "ssldet.tasks": "task",
    "ssldet.recipes": "recipe",
    "ssldet.detectors": "detector",
    "ssldet.backbones": "backbone",
    "ssldet.sources": "data format",
    "ssldet.checkers": "labelled data format",
    "ssldet.converters": "labelled data format to write",
    "ssldet.datasets": "generated data set",
    "ssldet.scorers": "scorer",
    "ssldet.exporters": "exporter",
    "ssldet.importers": "importer",
    "ssldet.verbs": "verb",
}
"""Entry-point group -> the word for one of its members."""


def names(group: str) -> list[str]:
    """List what a group offers, sorted; imports nothing.

    Args:
        group: One of `GROUPS`.
    """
    return sorted(_claims(group))


def find(group: str, name: str) -> Any:
    """Import and return the object behind a name.

    Args:
        group: One of `GROUPS`.
        name: As listed by `names`, or `package.module:Object` for one that no package registers.

    Raises:
        ConfigError: No such name, two packages claim it, or its package does not import.
    """
    claims = _claims(group)
    word = GROUPS.get(group, group)
    if ":" in name:
        claims = {name: [EntryPoint(name=name, value=name, group=group)]}
    if name not in claims:
        known = ", ".join(sorted(claims)) or "none"
        raise ConfigError(f"no {word} {name!r}{suggest(name, claims)}; installed: {known}")
    entries = claims[name]
    if len(entries) > 1:
        rivals = " and ".join(sorted(entry.value for entry in entries))
        raise ConfigError(f"{word} {name!r} is claimed by {rivals}; uninstall one of the packages")
    try:
        return entries[0].load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{word} {name!r} ({entries[0].value}) can't be imported: {error}") from error


def name_of(group: str, value: object) -> str:
    """Return a name that `find` turns back into this class or function: the registered one, else `module:Object`.

    Args:
        group: One of `GROUPS`.
        value: What `find` would return.
    """
    target = f"{getattr(value, '__module__', '?')}:{getattr(value, '__qualname__', '?')}"
    for name, entries in _claims(group).items():
        if any(entry.value == target for entry in entries):
            return name
    return target


@cache
def _claims(group: str) -> dict[str, list[EntryPoint]]:
    claims: dict[str, dict[str, EntryPoint]] = {}
    for entry in entry_points(group=group):
        # An editable install beside its own build folder lists one entry twice; that is one claim.
        claims.setdefault(entry.name, {})[entry.value] = entry
    return {name: list(by_value.values()) for name, by_value in claims.items()}
