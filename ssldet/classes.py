"""names of two class heads -> which classes are the same: to transfer a class head, and to read its outputs."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SAME = {"aeroplane": "airplane", "motorbike": "motorcycle", "sofa": "couch", "tvmonitor": "tv"}
"""VOC's name -> COCO's name of the same class; names that differ by a space alone need no entry."""


@dataclass(frozen=True, kw_only=True)
class ClassRows:
    """For each class of one class head, the row of the same class in another one.

    Attributes:
        theirs: Class names of the other head, in the order of its rows; empty text where a row stands for no class.
        ours: Class names of our head.
        rows: For each of our classes its row in their head; `None` where they don't have that class.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    rows: tuple[int | None, ...]

    @property
    def found(self) -> tuple[str, ...]:
        """Our classes that they have too."""
        return tuple(name for name, row in zip(self.ours, self.rows, strict=True) if row is not None)

    @property
    def fresh(self) -> tuple[str, ...]:
        """Our classes that they don't have."""
        return tuple(name for name, row in zip(self.ours, self.rows, strict=True) if row is None)

    @property
    def unused(self) -> tuple[str, ...]:
        """Their classes that we don't have."""
        matched = set(self.rows)
        return tuple(name for row, name in enumerate(self.theirs) if name and row not in matched)

    def __str__(self) -> str:
        """Return one line."""
        parts = [f"{len(self.found)} of {len(self.ours)} classes found by name among {len(self.theirs)}"]
        moved = [
            f"{name} from {row} ({self.theirs[row]})"
            for name, row in zip(self.ours, self.rows, strict=True)
            if row is not None
        ]
        parts += [f"{word}: {_first_names(names)}" for word, names in (("rows", moved), ("new", self.fresh)) if names]
        if self.unused:
            parts.append(f"left behind: {_first_names(self.unused)}")
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Return plain values: the row that each class started from, null for a fresh one."""
        return {"rows": dict(zip(self.ours, self.rows, strict=True)), "unused": list(self.unused)}


def match_classes(theirs: Sequence[str], ours: Sequence[str]) -> ClassRows:
    """Find our classes among theirs by name; case, spaces, hyphens and underscores make no difference.

    VOC's and COCO's names of the same class match (`SAME`). A name that fits two of theirs is not matched.

    Args:
        theirs: Class names of the other head; empty text where a row stands for no class.
        ours: Class names of our head.
    """
    plain = [_plain(name) for name in theirs]
    count = Counter(plain)
    place = {name: row for row, name in enumerate(plain) if name and count[name] == 1}
    written = Counter(theirs)
    exact = {name: row for row, name in enumerate(theirs) if name and written[name] == 1}
    rows = tuple(exact.get(name, place.get(_plain(name)) if name else None) for name in ours)
    return ClassRows(theirs=tuple(theirs), ours=tuple(ours), rows=rows)


def names_alike(names: Sequence[str]) -> list[list[str]]:
    """Return the groups of names that differ by case, spaces, hyphens or underscores alone.

    Args:
        names: Class names of one set.
    """
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        groups.setdefault(_joined(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _plain(name: str) -> str:
    joined = _joined(name)
    return SAME.get(joined, joined)


def _joined(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter not in " -_")


def _first_names(names: Sequence[str], shown: int = 10) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
