"""records of a foreign file -> checked ids, flags, sizes and areas: one rule for COCO's files and for tables."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from downstream.annotations.numbers import LARGEST, finite_number
from downstream.annotations.problems import Problems, shown
from ssldet.escapes import is_text

Record = Mapping[str, Any]
"""An object of a JSON file, or a row of a table."""


def how_stated(record: Record, name: str) -> str:
    """Return how the value of an entry looks.

    Args:
        record: What may hold the entry.
        name: Its name.
    """
    return shown(record[name]) if name in record else "missing"


def other_kind(value: object, known: Iterable[object]) -> str:
    """Say that a number is known as text, or a text as a number, which look alike; empty where that isn't so.

    Args:
        value: An id that is not known.
        known: Those that are.
    """
    twin = next((key for key in known if str(key) == str(value) and type(key) is not type(value)), None)
    if twin is None:
        return ""
    mine, other = ("text", "the number") if isinstance(value, str) else ("a number", "the text")
    return f" ({mine}, where the annotations have {other} {shown(twin)})"


def id_in(record: Record, name: str, where: str, problems: Problems) -> int | None:
    """Return an id that must be a number; `None` after a fault went to the problems.

    Args:
        record: What holds it.
        name: Under which name.
        where: Where the record stands, to name in messages.
        problems: Takes what is wrong.
    """
    value = record.get(name)
    if type(value) is int and abs(value) < 2**63:
        return value
    problems.add(f"{where}.{name}", how_stated(record, name), "expects a whole number, without quotes or decimals")
    return None


def image_id_in(record: Record, name: str, where: str, problems: Problems) -> int | str | None:
    """Return the id of an image, a number or a name; `None` after a fault went to the problems.

    Args:
        record: What holds it.
        name: Under which name.
        where: Where the record stands, to name in messages.
        problems: Takes what is wrong.
    """
    value = record.get(name)
    if isinstance(value, str) and value.strip() and is_text(value):
        return value
    if isinstance(value, str):
        problems.add(f"{where}.{name}", shown(value), "expects a whole number or a name")
        return None
    return id_in(record, name, where, problems)


def require_one_kind(keys: Collection[int | str], places: Sequence[str], problems: Problems) -> None:
    """Note ids of images where some are numbers and others text: those of the kind that is rarer.

    Args:
        keys: The ids.
        places: Where each of them stands, to name in messages.
        problems: Takes what is wrong.
    """
    texts = sum(isinstance(key, str) for key in keys)
    numbers = len(keys) - texts
    if not (texts and numbers):
        return
    rarer, others = (str, "whole numbers") if texts <= numbers else (int, "text")
    for key, place in zip(keys, places, strict=True):
        if isinstance(key, rarer):
            what = f"{shown(key)}, where those of other images are {others}"
            problems.add(place, what, "write the ids of all images alike")


def flag_in(record: Record, name: str, where: str, problems: Problems) -> bool:
    """Return a flag, which is off where it is not stated.

    Args:
        record: What may hold it.
        name: Under which name.
        where: Where the record stands, to name in messages.
        problems: Takes what is wrong.
    """
    value = record.get(name, 0)
    if value not in (0, 1):
        problems.add(f"{where}.{name}", shown(value), "expects 0 or 1")
    return bool(value)


def area_in(record: Record, where: str, problems: Problems) -> float | None:
    """Return a stated area; `None` where none is stated, or no finite number.

    Args:
        record: What may hold it.
        where: Where the record stands, to name in messages.
        problems: Takes what is wrong.
    """
    value = record.get("area")
    if not isinstance(value, int | float | None):
        problems.add(f"{where}.area", shown(value), "expects a number, or leave it out")
    return finite_number(value)


def size_in(record: Record, where: str, problems: Problems) -> tuple[int, int]:
    """Return the stated height and width; zeros where none is stated, to be read from the image.

    Args:
        record: What may hold them.
        where: Where the record stands, to name in messages.
        problems: Takes what is wrong.
    """
    if record.get("height") is None and record.get("width") is None:
        return 0, 0
    sides = []
    for side in ("height", "width"):
        number = finite_number(record.get(side))
        if number is None or not 1 <= number < LARGEST or number != int(number):
            remedy = "expects the number of pixels, or leave both sides out"
            problems.add(f"{where}.{side}", how_stated(record, side), remedy)
        else:
            sides.append(int(number))
    return (sides[0], sides[1]) if len(sides) == 2 else (0, 0)
