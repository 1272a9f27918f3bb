"""type annotations of configurations -> what a field accepts, in words."""

import math
import types
from dataclasses import Field, dataclass, fields
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Within:
    """Bounds of a number, for `Annotated[int, Within(1)]`; both ends are allowed.

    Attributes:
        low: Smallest value.
        high: Largest value.
    """

    low: int | float = -math.inf
    high: int | float = math.inf

    def __str__(self) -> str:
        """Say the bounds as a person would, and exactly: `9.22e+18` is not what is accepted."""
        low, high = (f"{end:g}" if isinstance(end, float) else str(end) for end in (self.low, self.high))
        return f"at least {low}" if self.high == math.inf else f"from {low} to {high}"


def describe(hint: Any) -> str:
    """Return what a field with this annotation accepts, in words."""
    if is_a(hint, Annotated):
        bare, *extras = get_args(hint)
        return ", ".join([describe(bare), *(str(extra) for extra in extras if isinstance(extra, Within))])
    if is_a(hint, Literal):
        return "one of " + ", ".join(repr(choice) for choice in get_args(hint))
    if is_union(hint):
        return " or ".join("none" if option is type(None) else describe(option) for option in get_args(hint))
    if is_a(hint, tuple):
        return f"a list of {_several(describe(get_args(hint)[0]))}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def _several(words: str) -> str:
    """Return what one entry of a list accepts, in the plural."""
    plurals = {"a whole number": "whole numbers", "a number": "numbers", "text": "texts"}
    bare, comma, bounds = words.partition(", ")
    return f"{plurals.get(bare, bare)}{comma}{bounds}"


def choices_of(hint: Any) -> list[Any]:
    """Return the words and numbers that an annotation enumerates."""
    if is_a(hint, Literal):
        return list(get_args(hint))
    return [choice for inner in get_args(hint) for choice in choices_of(inner)]


def config_fields(kind: type) -> tuple[Field[Any], ...]:
    """Return the fields of a configuration that its caller sets."""
    return tuple(field for field in fields(kind) if field.init)


def hints_of(kind: type) -> dict[str, Any]:
    """Return the annotation of each field of a configuration."""
    found = get_type_hints(kind, include_extras=True)
    return {field.name: found[field.name] for field in config_fields(kind)}


def is_a(hint: Any, origin: Any) -> bool:
    """Tell whether an annotation is a `Literal`, a `tuple` or an `Annotated`."""
    return get_origin(hint) is origin or (origin is Annotated and hasattr(hint, "__metadata__"))


def is_union(hint: Any) -> bool:
    """Tell whether an annotation allows one of several types."""
    return get_origin(hint) in (Union, types.UnionType)
