"""a pattern such as `data/{000000..000999}.tar` -> the archives that it names, and bytes of them by place."""

import errno
import io
import os
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from glob import glob, has_magic
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO

from ssldet.data.files import absolute
from ssldet.data.judging import Stamp
from ssldet.errors import DataError, suggest
from ssldet.escapes import shown
from ssldet.regular import open_regular

BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
MOST = 10_000_000
"""Names that a pattern may stand for."""
OPEN = 64
"""Archives that one process keeps open."""


def expand(pattern: str) -> Iterator[str]:
    """Yield the names that braces stand for: `{000..012}` counts, `{a,b}` lists, as in a shell and in WebDataset.

    Args:
        pattern: A path with any number of braces.

    Raises:
        DataError: Braces stand for nothing, or for too much.
    """
    parts = BRACES.split(pattern)
    choices: list[Sequence[str]] = []
    count = 1
    for place, part in enumerate(parts):
        counted = RANGE.fullmatch(part) if place % 2 else None
        if counted:
            first, last = counted.groups()
            numbers = range(int(first), int(last) + 1)
            count *= len(numbers)
            if not 0 < count <= MOST:
                raise DataError(f"{shown(pattern)}: {{{part}}} stands for {len(numbers)} names; count upwards")
            width = len(first) if first.startswith("0") or len(first) == len(last) else 0
            choices.append([f"{number:0{width}d}" for number in numbers])
        else:
            choices.append(part.split(",") if place % 2 else [part])
    return map("".join, product(*choices))


def is_there(pattern: str) -> bool:
    """Tell whether a path exists, or the folder in which the first braces or wildcards of a pattern are.

    Args:
        pattern: A path, with braces or wildcards or without.
    """
    path = Path(pattern).expanduser()
    if path.exists():
        return True
    place = next((place for place, part in enumerate(path.parts) if BRACES.search(part) or has_magic(part)), None)
    return place is not None and Path(*path.parts[:place]).is_dir()


def find_shards(pattern: str) -> list[str]:
    """Return the archives that a pattern names, in order.

    Args:
        pattern: A path with braces, a glob, a folder that holds `.tar` files, or one file.

    Raises:
        DataError: It names nothing, or something that is not there.
    """
    path = absolute(Path(pattern))
    if path.is_dir():
        found = sorted(map(str, path.glob("*.tar")), key=os.fsencode)
    elif path.exists() or not (BRACES.search(str(path)) or has_magic(str(path))):
        found = [str(path)]
    else:
        found = []
        for name in expand(str(path)):
            found += sorted(glob(name, recursive=True), key=os.fsencode) if has_magic(name) else [name]  # noqa: PTH207
    found = list(dict.fromkeys(found))
    if not found:
        raise DataError(f"no archive in {shown(pattern)}; names end with .tar")
    if missing := [name for name in found if not os.path.lexists(name)]:
        more = f" and {len(missing) - 1} more of {len(found)} archives are" if len(missing) > 1 else " is"
        beside = os.listdir(Path(missing[0]).parent) if Path(missing[0]).parent.is_dir() else []  # noqa: PTH208
        hint = suggest(Path(missing[0]).name, [shown(name) for name in beside])
        raise DataError(f"tar:{shown(pattern)}: {shown(missing[0])}{more} missing{hint}")
    return found


def escaped(stem: str) -> str:
    """Return a name without its ending as packing writes it: WebDataset takes the first dot for the end of a key."""
    return stem.replace("%", "%25").replace(".", "%2E")


def member_name(name: str) -> str:
    """Return the name of an image as packing writes it.

    Args:
        name: Its path, relative to the folder that was packed.
    """
    folder, slash, base = name.rpartition("/")
    stem, dot, ending = base.rpartition(".")
    return f"{folder}{slash}{escaped(stem)}{dot}{ending}"


class ShardReader:
    """Archives that are opened when they are first read, some of which stay open; each process has its own."""

    def __init__(self, paths: Sequence[str], stamps: Sequence[Stamp]) -> None:
        """Point at archives.

        Args:
            paths: The archives.
            stamps: What they were when places in them were found.
        """
        self._paths, self._stamps = tuple(paths), tuple(stamps)
        self._open: OrderedDict[int, BinaryIO] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files behind."""
        return {"_paths": self._paths, "_stamps": self._stamps, "_open": OrderedDict()}

    def __del__(self) -> None:
        """Close what is open."""
        while self._open:
            self._open.popitem()[1].close()

    def section(self, shard: int, offset: int, size: int, buffer: int = 4096) -> BinaryIO:
        """Return a part of an archive as a file.

        Args:
            shard: Number of the archive.
            offset: Its first byte there.
            size: Number of its bytes.
            buffer: Bytes that are read at once.

        Raises:
            OSError: The archive can't be opened.
            DataError: It is another one than before.
        """
        return io.BufferedReader(_Section(self._file(shard), offset, size), buffer)

    def _file(self, shard: int) -> BinaryIO:
        if (file := self._open.get(shard)) is not None:
            self._open.move_to_end(shard)
            return file
        path = self._paths[shard]
        file = open_regular(path)
        info = os.fstat(file.fileno())
        if Stamp(info.st_size, info.st_mtime_ns) != self._stamps[shard]:
            file.close()
            raise DataError(f"{shown(path)}: was changed after it was opened; start again")
        self._open[shard] = file
        if len(self._open) > OPEN:
            self._open.popitem(last=False)[1].close()
        return file


class _Section(io.RawIOBase):
    """A part of a file, from its first byte to its last."""

    mode = "rb"

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self._file, self._offset, self._size, self._place = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        if place < 0:
            raise OSError(errno.EINVAL, "before the beginning")
        self._place = place
        return place

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._size - self._place))
        part = os.pread(self._file.fileno(), wanted, self._offset + self._place)
        buffer[: len(part)] = part
        self._place += len(part)
        return len(part)
