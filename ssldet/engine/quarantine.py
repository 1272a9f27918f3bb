"""Skipped files -> quarantine.jsonl, and a stop where there are too many of them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from ssldet.engine.writing import Lines
from ssldet.errors import DataError
from ssldet.jsonlines import read_lines
from ssldet.ranks import gather_objects, rank
from ssldet.source import Source
from ssldet.types import Skipped

EVALUATED = "evaluated"
"""What a line of the file says of an image that the run is measured on; lines without `set` are of training images."""


class Quarantine:
    """The files of a training set that can't be used, each counted once, over all ranks and restarts.

    Attributes:
        found: Path -> reason.
    """

    def __init__(self, source: Source, limit: float, path: Path | None = None) -> None:
        """Begin with what the source knew before training.

        Args:
            source: The training images.
            limit: Share of the set that may be unusable.
            path: The file; what an earlier part of the run wrote there counts too. `None` keeps it in memory.

        Raises:
            DataError: More than the limit already.
        """
        self._total, self._limit = len(source) + len(source.skipped), limit
        self._file = Lines(path) if path is not None else None
        written = [line for line in (read_lines(path) if path is not None else []) if line.get("set") != EVALUATED]
        self.found: dict[str, str] = {str(line.get("path")): str(line.get("reason")) for line in written}
        self._waiting: dict[str, str] = {}
        self.add(source.skipped)
        self._take(self._waiting)
        self._require_few()

    def add(self, skipped: Iterable[Skipped]) -> None:
        """Take in what this rank met."""
        for entry in skipped:
            if entry.path not in self.found:
                self._waiting[entry.path] = entry.reason

    def settle(self) -> None:
        """Tell all ranks and write it down; every rank must call this at the same step.

        Raises:
            DataError: More than the limit; on every rank alike.
            SetupError: The file could not be written for the third time in a row.
        """
        for theirs in gather_objects(self._waiting):
            self._take(theirs)
        self._require_few()

    def counts(self) -> dict[str, int]:
        """Return reason -> number of files, the most frequent first."""
        return dict(Counter(self.found.values()).most_common())

    def _take(self, fresh: dict[str, str]) -> None:
        new = {path: reason for path, reason in fresh.items() if path not in self.found}
        self.found |= new
        self._waiting = {}
        if self._file is not None and rank() == 0:
            self._file.write(*({"path": path, "reason": reason} for path, reason in new.items()))

    def _require_few(self) -> None:
        bad = len(self.found)
        if bad <= self._limit * self._total:
            return
        first = "; ".join(f"{path} ({reason})" for path, reason in list(self.found.items())[:5])
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.counts().items())
        enough = min(1.0, -(-bad * 1000 // self._total) / 1000)
        raise DataError(
            f"{bad} of {self._total} images can't be used, more than data.max_bad_fraction = {self._limit:g} allows "
            f"({reasons}): {first}{'; …' if bad > 5 else ''}; mend them, or add --set data.max_bad_fraction={enough:g}"
        )


def note_evaluated(path: Path, lost: Mapping[str, str]) -> None:
    """Write down the images that a run is measured on and that can't be read; each once. They count towards no limit.

    Args:
        path: The file.
        lost: Path -> reason.
    """
    known = {str(line.get("path")) for line in read_lines(path) if line.get("set") == EVALUATED}
    if new := {image: reason for image, reason in lost.items() if image not in known}:
        Lines(path).write(*({"path": image, "reason": reason, "set": EVALUATED} for image, reason in new.items()))
