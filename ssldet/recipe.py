"""Run <-> text: override a frozen configuration by dotted paths, check it whole, write it so that it runs again.

A configuration is a tree of frozen dataclasses. Types and `Annotated` bounds say what each field accepts; a class may
add a method `problems() -> list[str]` for what no single field can know, and a mapping `retired` of fields that it once
had, which files may still hold. Every function here reports **all** problems at once, each with its path, the nearest
right name and what would be accepted.
"""

import hashlib
import json
import math
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, is_dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import tomli_w

from ssldet.errors import ConfigError, reason_of, suggest
from ssldet.hints import Within as Within
from ssldet.hints import choices_of, config_fields, describe, hints_of, is_a, is_union
from ssldet.registry import find_or_imported, name_of
from ssldet.regular import read_text

Config = TypeVar("Config")

WHOLE = range(-(2**63), 2**63)
"""Which whole numbers a field can hold: those of 64 bits, as in TOML and in every tensor."""

SHOWN = 60
"""Characters of a value that a message shows."""

BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
"""What a yes-or-no field may be called on a command line."""

UNSET = ("none", "null", "")
"""What None may be called on a command line and in a file, where a field can be None; we write the first."""


def override(config: Config, assignments: Mapping[str, object]) -> Config:
    """Return the configuration with some fields replaced.

    Args:
        config: A frozen dataclass.
        assignments: Dotted path -> new value; text is read according to the field's type.

    Raises:
        ConfigError: With one line for each path that doesn't exist and each value that doesn't fit.
    """
    document = to_document(config)
    wrong: list[str] = []
    for path, value in assignments.items():
        branch, owner = document, config
        *parents, leaf = path.split(".")
        for depth, step in enumerate(parents):
            if not is_dataclass(getattr(owner, step, None)):
                above = ".".join(parents[:depth])
                wrong.append(_no_group(owner, step, path, f"{above}.{step}".removeprefix(".")))
                break
            branch, owner = branch[step], getattr(owner, step)
        else:
            if leaf not in hints_of(type(owner)) and not (leaf == "name" and hasattr(owner, "group")):
                wrong.append(_no_field(owner, leaf, ".".join(parents)))
            elif is_dataclass(getattr(owner, leaf, 0)) and not isinstance(value, Mapping) and not is_dataclass(value):
                inner = ", ".join(f"{path}.{name}" for name in hints_of(type(getattr(owner, leaf))))
                wrong.append(f"{path}: is a group of fields; set one of {inner}")
            else:
                branch[leaf] = to_document(value) if is_dataclass(value) else value
    result, more = _build(type(config), document, "")
    if wrong or more:
        raise ConfigError([*wrong, *more, *_problems_of_the_rest(config, assignments)])
    return result  # type: ignore[no-any-return]


def _problems_of_the_rest(config: object, assignments: Mapping[str, object]) -> list[str]:
    """Say what else is wrong once the assignments that don't fit are left out, so that nothing waits its turn."""
    if len(assignments) == 1:
        return []
    fitting = {}
    for path, value in assignments.items():
        with suppress(ConfigError):
            override(config, {path: value})
            fitting[path] = value
    return _own_problems(override(config, fitting), "")


def check(config: object) -> None:
    """Let a configuration pass only if it can run.

    Raises:
        ConfigError: With one line a problem.
    """
    _, wrong = _build(type(config), to_document(config), "")
    wrong += _own_problems(config, "")
    if wrong:
        raise ConfigError(wrong)


def leaves(config: object) -> dict[str, Any]:
    """Return dotted path -> value of every field that is not itself a group of fields."""
    return dict(_walk(to_document(config), ""))


def diff(old: object, new: object) -> list[tuple[str, Any, Any]]:
    """Return (path, old value, new value) of every field that differs; a missing field is None."""
    before, after = leaves(old), leaves(new)
    paths = dict.fromkeys([*before, *after])
    return [(p, before.get(p), after.get(p)) for p in paths if before.get(p) != after.get(p)]


def fingerprint(config: object) -> str:
    """Return 12 hexadecimal digits that change whenever a field changes."""
    text = json.dumps(to_document(config), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def dumps(config: object, comment: str = "") -> str:
    """Return the configuration as TOML.

    Args:
        config: A frozen dataclass.
        comment: Lines to put on top.
    """
    header = "".join(f"# {line}\n" for line in comment.splitlines())
    return header + tomli_w.dumps(to_document(config))


def load(kind: type[Config], path: Path) -> Config:
    """Read what `dumps` wrote.

    Args:
        kind: The dataclass at the top.
        path: A TOML file.

    Raises:
        ConfigError: The file is not TOML, or does not describe a `kind`.
    """
    result, wrong = _build(kind, read_document(path), "")
    if wrong:
        raise ConfigError([f"{path}: {line}" for line in wrong])
    return result  # type: ignore[no-any-return]


def read_document(path: Path) -> dict[str, Any]:
    """Read what `dumps` wrote as nested plain values, whether or not what it names is installed.

    Args:
        path: A TOML file.

    Raises:
        ConfigError: The file is not TOML.
    """
    try:
        return tomllib.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a readable recipe file ({reason_of(error)})") from error


def to_document(config: object) -> dict[str, Any]:
    """Return nested plain values; a class chosen by name carries it as `name`, an unset field is the word `none`."""
    document: dict[str, Any] = {}
    group = getattr(type(config), "group", None)
    if group is not None:
        document["name"] = name_of(group, type(config))
    for field in config_fields(type(config)):
        value = getattr(config, field.name)
        document[field.name] = to_document(value) if is_dataclass(value) else _plain(value)
    return document


def from_document(kind: type[Config], document: Mapping[str, Any]) -> Config:
    """Build what `to_document` described.

    Raises:
        ConfigError: With one line a problem.
    """
    result, wrong = _build(kind, document, "")
    if wrong:
        raise ConfigError(wrong)
    return result  # type: ignore[no-any-return]


def _plain(value: Any) -> Any:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _walk(document: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        if isinstance(value, Mapping):
            yield from _walk(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _own_problems(config: object, prefix: str) -> list[str]:
    wrong = []
    for field in config_fields(type(config)):
        value = getattr(config, field.name)
        if is_dataclass(value):
            wrong += _own_problems(value, f"{prefix}{field.name}.")
    tell: Callable[[], list[str]] | None = getattr(config, "problems", None)
    return wrong + [prefix + line for line in (tell() if tell else [])]


def _build(kind: type, document: Mapping[str, Any], prefix: str) -> tuple[Any, list[str]]:
    """Return the object, and what was wrong; the object is None unless nothing was."""
    group = getattr(kind, "group", None)
    if group is not None:
        if "name" not in document:
            return None, [f"{prefix}name: missing; it says which class to build"]
        try:
            kind = _class_of(kind, group, str(document["name"]))
        except ConfigError as error:
            return None, [f"{prefix}name: {error}"]
    hints = hints_of(kind)
    wrong = [
        _no_field(kind, key, prefix.removesuffix("."))
        for key in document
        if key not in hints | getattr(kind, "retired", {}) and not (group is not None and key == "name")
    ]
    values: dict[str, Any] = {}
    for field in config_fields(kind):
        path = prefix + field.name
        if field.name not in document:
            if field.default is MISSING and field.default_factory is MISSING:
                wrong.append(f"{path}: missing; expects {describe(hints[field.name])}")
            continue
        values[field.name], problems = _read(hints[field.name], document[field.name], path)
        wrong += problems
    return (None if wrong else kind(**values)), wrong


def _class_of(base: type, group: str, name: str) -> type:
    """Return the class that a document names; what only looks like one, such as a function, is never called."""
    chosen = find_or_imported(group, name)
    if not (isinstance(chosen, type) and issubclass(chosen, base) and is_dataclass(chosen)):
        raise ConfigError(f"{name!r} is no {base.__name__}")
    return chosen


def _read(hint: Any, value: Any, path: str) -> tuple[Any, list[str]]:
    """Read one value as its annotation says; text is taken as it would be typed on a command line."""
    bounds = [extra for extra in get_args(hint)[1:] if isinstance(extra, Within)] if is_a(hint, Annotated) else []
    bare = get_args(hint)[0] if is_a(hint, Annotated) else hint
    if is_dataclass(bare):
        if not isinstance(value, Mapping):
            return None, [f"{path}: expects a table of fields, got {value!r}"]
        return _build(bare, value, f"{path}.")  # type: ignore[arg-type]
    if is_union(bare):
        if type(None) in get_args(bare) and is_unset(value):
            return None, []
        options = [option for option in get_args(bare) if option is not type(None)]
        attempts = [_read(Annotated[option, *bounds] if bounds else option, value, path) for option in options]
        return next(((read, []) for read, problems in attempts if not problems), attempts[-1])
    try:
        read = _scalar(bare, value, path)
    except ValueError:
        return None, [_misfit(hint, value, path)]
    if any(not bound.low <= read <= bound.high for bound in bounds):
        return None, [_misfit(hint, value, path)]
    return read, []


def is_unset(value: object) -> bool:
    """Tell whether a value stands for None: None itself, or what people type for it."""
    return value is None or (isinstance(value, str) and value.strip().casefold() in UNSET)


def _scalar(hint: Any, value: Any, path: str) -> Any:
    """Read a leaf; raises ValueError where the value does not fit without loss."""
    if is_a(hint, Literal):
        for choice in get_args(hint):
            if value == choice or (isinstance(value, str) and value == str(choice)):
                return choice
    elif is_a(hint, tuple):
        if isinstance(value, str):
            value = [part.strip() for part in value.strip("[]() ").split(",") if part.strip()]
        if isinstance(value, list | tuple):
            inner = get_args(hint)
            kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
            if len(kinds) == len(value):
                return tuple(_scalar(kind, item, path) for kind, item in zip(kinds, value, strict=True))
    elif hint is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.casefold() in BOOLEANS:
            return BOOLEANS[value.casefold()]
    elif hint is int and not isinstance(value, bool) and isinstance(value, int | float | str):
        return whole_number(value)
    elif hint is float and not isinstance(value, bool) and isinstance(value, int | float | str):
        with suppress(OverflowError):
            if math.isfinite(number := float(value)):
                return number
    elif hint is str and isinstance(value, str):
        return value
    raise ValueError(path)


def whole_number(value: int | float | str) -> int:
    """Read a whole number exactly; it never passes through a float, which holds 53 bits only.

    Args:
        value: A number, or text such as `1000` or `1e3`.

    Raises:
        ValueError: It has a fraction, is not finite, or has more than 64 bits.
    """
    try:
        number = Decimal(value)
    except InvalidOperation as error:
        raise ValueError(value) from error
    # The size is looked at before the digits are written out: `1e999999999` is short, and its digits are not.
    if not number.is_finite() or number.adjusted() > 18 or number != number.to_integral_value():
        raise ValueError(value)
    whole = int(number)
    if whole not in WHOLE:
        raise ValueError(value)
    return whole


def _misfit(hint: Any, value: Any, path: str) -> str:
    choices = [str(choice) for choice in choices_of(hint)]
    shown = _shown(value)
    expected = describe(hint)
    limit = ", of 64 bits at most" if "a whole number" in expected and _is_large(value) else ""
    near = suggest(shown.strip("'"), choices)
    return f"{path}: {shown} does not fit; expects {expected}{limit}{near}"


def _is_large(value: Any) -> bool:
    with suppress(InvalidOperation, TypeError, ValueError):
        number = Decimal(value)
        return number.is_finite() and number.adjusted() >= 18
    return False


def _shown(value: Any) -> str:
    """Return what a message shows of a value, on one line however long the value is."""
    try:
        text = repr(value)
    except ValueError:  # Python writes out no whole number of more than some thousand digits
        return "a number of thousands of digits"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… ({len(text)} characters)"


def _no_group(owner: object, name: str, path: str, place: str) -> str:
    """Say why a path can't go on below a name: it stands for a single value, or for nothing."""
    if name in hints_of(type(owner)):
        return f"{path}: {place} is a single value, without fields of its own; set {place} itself"
    return _no_field(owner, name, place.rpartition(".")[0])


def _no_field(owner: object, name: str, path: str) -> str:
    kind = owner if isinstance(owner, type) else type(owner)
    known = list(hints_of(kind))
    where = f"{path}.{name}" if path else name
    return f"{where}: no such field{suggest(name, known)}; fields here: {', '.join(known)}"
