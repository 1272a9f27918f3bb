"""rows of a dataset of Hugging Face -> images by row, judged like files, and a source of them without labels.

The library maps its files into memory, so that loader workers and ranks share one copy, and any row can be read at any
time. Which rows can be used is found once and remembered, as of folders and archives.
"""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from filelock import FileLock, Timeout
from jaxtyping import Int64

from ssldet.data.files import tally
from ssldet.data.image_index import MANY, WAIT_SECONDS
from ssldet.data.images import opened, read_image, read_image_inside, size_of, turned, unlabelled
from ssldet.data.judging import Answer, ImageRules, Stamp, Use, judged, judged_inside
from ssldet.data.mapped import read_mapped, write_mapped
from ssldet.data.parallel import over_images
from ssldet.data.places import Place
from ssldet.data.tables import Table
from ssldet.errors import DataError, UnreadableError
from ssldet.home import cache_folder
from ssldet.regular import read_bytes
from ssldet.source import Source
from ssldet.types import Pixels, Sample, Skipped

log = logging.getLogger(__name__)

VERSION = 1
"""Of what an index holds."""


class TablePlace(Place):
    """The images of a table; an image is called by the number of its row.

    Attributes:
        spec: What a data specification calls the table.
    """

    def __init__(self, table: Table) -> None:
        """Take a table.

        Args:
            table: Its other columns are not read.
        """
        self.spec = table.spec
        # In Arrow's own form a row is a view of the mapped file.
        self._rows: Any = table.rows.select_columns([table.column]).with_format("arrow")

    def sizes(self, names: Sequence[str], rules: ImageRules) -> list[tuple[int, int] | UnreadableError]:
        """Return height and width of images, from their headers, or what is wrong with them."""
        return over_images(len(names), lambda number: self.use(int(names[number]), size_of, rules))

    def is_turned(self, name: str, rules: ImageRules) -> bool:
        """Say whether an image states a rotation that exchanges height and width."""
        return self.use(int(name), turned, rules)

    def read(self, name: str, rules: ImageRules) -> Pixels:
        """Decode an image.

        Raises:
            UnreadableError: It can't be decoded.
        """
        content, path = self._cell(int(name))
        if content is None:
            return read_image(path, rules)
        return read_image_inside(partial(opened, content), Stamp(len(content), 0), self.name_of(name), rules)

    def encoded(self, name: str) -> bytes:
        """Return the bytes that a row holds, or those of the file that it names."""
        content, path = self._cell(int(name))
        return read_bytes(path) if content is None else bytes(content)

    def path_of(self, name: str) -> None:
        """Return `None`: an image is a part of a file."""

    def name_of(self, name: str) -> str:
        """Return the table of an image and its row."""
        return f"{self.spec}[{name}]"

    def nearest(self, name: str) -> None:
        """Return `None`: rows have no names."""

    def use(self, row: int, use: Use[Answer], rules: ImageRules) -> Answer:
        """Judge and use an image whose pixels are not wanted.

        Args:
            row: Number of its row.
            use: What to do with it.
            rules: Which images are usable.

        Raises:
            UnreadableError: It can't be used.
        """
        content, path = self._cell(row)
        if content is None:
            return judged(path, use, rules)
        name = self.name_of(str(row))
        return judged_inside(partial(opened, content), Stamp(len(content), 0), name, use, rules)

    def _cell(self, row: int) -> tuple[memoryview | None, str]:
        """Return the bytes of an image, or the path of its file.

        Raises:
            UnreadableError: It has neither; a path that depends on the working folder is none.
        """
        cell = self._rows[row].column(0)[0]
        if cell.is_valid and cell["bytes"].is_valid:
            return memoryview(cell["bytes"].as_buffer()), ""
        path = cell["path"].as_py() if cell.is_valid else None
        if not path or not os.path.isabs(path):  # noqa: PTH117  # a million times
            raise UnreadableError(self.name_of(str(row)), "missing")
        return None, path


@dataclass(frozen=True, kw_only=True, eq=False)
class UsableRows:
    """The rows whose images can be used.

    Attributes:
        rows: Their numbers.
        bad: Number and reason of each of the others.
        fingerprint: Short hash of numbers and sizes.
    """

    rows: Int64[np.ndarray, " N"]
    bad: tuple[tuple[int, str], ...]
    fingerprint: str


def usable_rows(table: Table, place: TablePlace, rules: ImageRules) -> UsableRows:
    """Return the rows whose images can be used, from an index of an earlier opening if there is one.

    Args:
        table: The table.
        place: Its images.
        rules: Which images are usable.
    """
    if len(table) < MANY or not table.files():
        return _judged(len(table), place, rules)
    file = _place(table, rules)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock"), timeout=WAIT_SECONDS):
            if (kept := _load(file)) is not None:
                return kept
            log.info("reading the headers of %d images", len(table))
            found = _judged(len(table), place, rules)
            write_mapped(file, {"bad": found.bad, "fingerprint": found.fingerprint}, {"rows": found.rows})
    except (OSError, Timeout) as error:
        log.warning("the index of %d images can't be kept in %s (%s)", len(table), file.parent, error)
        return _judged(len(table), place, rules)
    return _load(file) or found


def _judged(count: int, place: TablePlace, rules: ImageRules) -> UsableRows:
    found = over_images(count, lambda row: place.use(row, _bytes, rules))
    sizes = np.array([-1 if isinstance(size, UnreadableError) else size for size in found], dtype=np.int64)
    return UsableRows(
        rows=np.flatnonzero(sizes >= 0),
        bad=tuple((row, size.reason) for row, size in enumerate(found) if isinstance(size, UnreadableError)),
        fingerprint=hashlib.blake2b(sizes.tobytes(), digest_size=6).hexdigest(),
    )


def _bytes(_: object, stamp: Stamp) -> int:
    return stamp.size


def _place(table: Table, rules: ImageRules) -> Path:
    """Return where the index of a table is kept: other files, other rules, or another Pillow, judge otherwise."""
    stamps = [(name, info.st_size, info.st_mtime_ns) for name in table.files() if (info := os.stat(name))]  # noqa: PTH116
    what = [VERSION, PIL.__version__, asdict(rules), table.spec, table.column, stamps]
    digest = hashlib.blake2b(json.dumps(what).encode(), digest_size=12).hexdigest()
    return cache_folder() / "tables" / f"{digest}.safetensors"


def _load(file: Path) -> UsableRows | None:
    """Return what is kept in a file; `None` where nothing is, or nothing whole."""
    try:
        document, arrays = read_mapped(file)
        bad = tuple((row, reason) for row, reason in document["bad"])
        return UsableRows(rows=arrays["rows"], bad=bad, fingerprint=document["fingerprint"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.info("the index %s can't be used (%s) and is made again", file, error)
        return None


class TableSource(Source):
    """Images of a table, without labels."""

    classes = ()

    def __init__(self, table: Table, rules: ImageRules) -> None:
        """Judge the images of a table.

        Args:
            table: The table.
            rules: Which images are usable.

        Raises:
            DataError: None is usable.
        """
        self._place, self._rules = TablePlace(table), rules
        self._usable = usable_rows(table, self._place, rules)
        self._skipped = tuple(
            Skipped(path=self._place.name_of(str(row)), reason=reason) for row, reason in self._usable.bad
        )
        if not len(self):
            why = f" ({tally(self._skipped)})" if self._skipped else ""
            raise DataError(f"{table.spec}: no usable image in {len(table)} rows{why}")

    @property
    def fingerprint(self) -> str:
        """Short hash of the sizes of the images, in their order."""
        return self._usable.fingerprint

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Images that can't be used, known from their headers."""
        return self._skipped

    def __len__(self) -> int:
        """Number of usable images."""
        return len(self._usable.rows)

    def __getitem__(self, index: int) -> Sample:
        """Read one image; its key is the number of its row.

        Raises:
            UnreadableError: It can't be decoded.
        """
        row = self._row(index)
        return unlabelled(self._place.read(row, self._rules), row)

    def encoded(self, index: int) -> bytes:
        """Return the bytes that the row of an image holds, or those of the file that it names."""
        return self._place.encoded(self._row(index))

    def name_of(self, index: int) -> str:
        """Return the table of an image and its row."""
        return self._place.name_of(self._row(index))

    def _row(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return str(self._usable.rows[index])
