"""class names, class names -> which one is which: to hand a class head over, and to read its answers."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SAME = {"aeroplane": "airplane", "motorbike": "motorcycle", "sofa": "couch", "tvmonitor": "tv"}
"""Names that VOC and COCO give to one thing; those that differ by a space alone need no entry."""


@dataclass(frozen=True, kw_only=True)
class ClassRows:
    """Which class of one numbering each class of another one is.

    Attributes:
        theirs: Names in the one numbering; empty text where a number stands for no class.
        ours: Names in the other.
        rows: For each of ours the number of the same class in theirs; none where they don't have it.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    rows: tuple[int | None, ...]

    @property
    def found(self) -> tuple[str, ...]:
        """Those of ours that they have too."""
        return tuple(name for name, row in zip(self.ours, self.rows, strict=True) if row is not None)

    @property
    def fresh(self) -> tuple[str, ...]:
        """Those of ours that they don't have."""
        return tuple(name for name, row in zip(self.ours, self.rows, strict=True) if row is None)

    @property
    def unused(self) -> tuple[str, ...]:
        """Those of theirs that we don't ask for."""
        asked = set(self.rows)
        return tuple(name for row, name in enumerate(self.theirs) if name and row not in asked)

    def __str__(self) -> str:
        """Say it in one line."""
        parts = [f"{len(self.found)} of {len(self.ours)} classes found by name among {len(self.theirs)}"]
        moved = [
            f"{name} from {row} ({self.theirs[row]})"
            for name, row in zip(self.ours, self.rows, strict=True)
            if row is not None
        ]
        parts += [f"{word}: {_few(names)}" for word, names in (("rows", moved), ("new", self.fresh)) if names]
        if self.unused:
            parts.append(f"left behind: {_few(self.unused)}")
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Return plain values: which row each class started from, null for a fresh one."""
        return {"rows": dict(zip(self.ours, self.rows, strict=True)), "unused": list(self.unused)}


def match_classes(theirs: Sequence[str], ours: Sequence[str]) -> ClassRows:
    """Find our classes among theirs by name; case, spaces, hyphens and underscores make no difference.

    VOC's and COCO's words for one thing are known to be one. A name that means two of theirs means none.

    Args:
        theirs: Names in the one numbering; empty text where a number stands for no class.
        ours: Names in the other.
    """
    plain = [_plain(name) for name in theirs]
    count = Counter(plain)
    place = {name: row for row, name in enumerate(plain) if name and count[name] == 1}
    exact = {name: row for row, name in enumerate(theirs) if name and theirs.count(name) == 1}
    rows = tuple(exact.get(name, place.get(_plain(name)) if name else None) for name in ours)
    return ClassRows(theirs=tuple(theirs), ours=tuple(ours), rows=rows)


def _plain(name: str) -> str:
    joined = "".join(letter for letter in name.casefold() if letter not in " -_")
    return SAME.get(joined, joined)


def _few(words: Sequence[str], shown: int = 10) -> str:
    more = f" and {len(words) - shown} more" if len(words) > shown else ""
    return ", ".join(words[:shown]) + more
