"""archives -> the usable images in them and where each lies: found once, remembered in a file, nothing unpacked.

Members are judged like files of folders: hidden ones and other endings are passed by, links and devices are no files,
headers are read by the same rules. Names that leave their folder, and names that an archive holds twice, count as bad.
A damaged archive stops everything: what else is in it can't be known.
"""

import hashlib
import json
import logging
import os
import tarfile
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import PIL
from filelock import FileLock, Timeout
from jaxtyping import Int32, Int64

from ssldet.data.files import ENCODED_ENDINGS
from ssldet.data.image_index import MANY, WAIT_SECONDS
from ssldet.data.judging import ImageRules, Stamp, judged_inside
from ssldet.data.mapped import read_mapped, write_mapped
from ssldet.data.names import Names
from ssldet.data.parallel import over_parts
from ssldet.data.shard_files import ShardReader
from ssldet.errors import DataError, SetupError, UnreadableError
from ssldet.escapes import counted, shown
from ssldet.home import cache_folder
from ssldet.regular import open_regular
from ssldet.types import Skipped

log = logging.getLogger(__name__)

VERSION = 1
"""Of what an index holds."""
BLOCK = 512
"""Bytes in which archives count."""


class Piece(NamedTuple):
    """What one archive holds.

    Attributes:
        names: Its usable images, in the order in which they lie.
        places: First byte and number of bytes of each.
        bad: Name and reason of each image that can't be used.
        fault: Why the archive can't be read; empty if it can.
    """

    names: list[bytes]
    places: Int64[np.ndarray, "N 2"]
    bad: list[tuple[str, str]]
    fault: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardIndex:
    """The usable images of some archives, archive by archive and in the order in which they lie.

    Attributes:
        paths: The archives.
        stamps: Size and time of each when it was looked at.
        first: Archive i holds the images from `first[i]` up to `first[i + 1]`.
        names: Name of each image in its archive.
        places: First byte and number of bytes of each image.
        bad: Number of the archive, name and reason of each image that can't be used.
    """

    paths: tuple[str, ...]
    stamps: Int64[np.ndarray, "S 2"]
    first: Int64[np.ndarray, " T"]
    names: Names
    places: Int64[np.ndarray, "N 2"]
    bad: tuple[tuple[int, str, str], ...]

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Images that can't be used."""
        return tuple(Skipped(path=shown(f"{self.paths[shard]}/{name}"), reason=why) for shard, name, why in self.bad)

    @cached_property
    def fingerprint(self) -> str:
        """Short hash of names and sizes, and of which archive holds what."""
        digest = hashlib.blake2b(self.first.tobytes(), digest_size=6)
        for name, size in zip(self.names.encoded(), self.places[:, 1].tolist(), strict=True):
            digest.update(name + f"\0{size}\0".encode())
        return digest.hexdigest()

    def shard_of(self, index: int) -> int:
        """Return which archive holds an image."""
        return int(np.searchsorted(self.first, index, side="right")) - 1

    def reader(self) -> ShardReader:
        """Return what reads the archives, as long as they are the same."""
        return ShardReader(self.paths, [Stamp(*row) for row in self.stamps.tolist()])

    def find(self, name: str) -> list[int]:
        """Return the images of a name: none, one, or several of different archives."""
        wanted, found = os.fsencode(name), []
        place = bisect_left(self._by_name, wanted, key=self._encoded)
        while place < len(self._by_name) and self._encoded(self._by_name[place]) == wanted:
            found.append(int(self._by_name[place]))
            place += 1
        return found

    def _encoded(self, index: int | np.integer) -> bytes:
        return os.fsencode(self.names[int(index)])

    @cached_property
    def _by_name(self) -> Int32[np.ndarray, " N"]:
        names = list(self.names.encoded())
        return np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.int32)


def index_shards(paths: Sequence[str], rules: ImageRules) -> ShardIndex:
    """Return the usable images of some archives; only archives that are new or changed since are read.

    Args:
        paths: The archives.
        rules: Which images are usable.

    Raises:
        DataError: Archives can't be read; all of them, in one line.
    """
    stamps = np.array([_stamp(path) for path in paths], dtype=np.int64).reshape(-1, 2)
    place = _place(paths, rules)
    if (kept := _load(place, paths)) is not None and np.array_equal(kept.stamps, stamps):
        return kept
    index = _scan(paths, stamps, rules, kept)
    if len(index.names) < MANY:
        return index
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_suffix(".lock"), timeout=WAIT_SECONDS):
            _save(index, place)
    except (OSError, Timeout) as error:
        log.warning("the index of %d archives can't be kept in %s (%s)", len(paths), place.parent, error)
        return index
    return _load(place, paths) or index


def _scan(
    paths: Sequence[str], stamps: Int64[np.ndarray, "S 2"], rules: ImageRules, kept: ShardIndex | None
) -> ShardIndex:
    pieces: list[Piece | None] = [None] * len(paths)
    if kept is not None:
        for shard in np.flatnonzero((kept.stamps == stamps).all(axis=1)).tolist():
            pieces[shard] = _piece_of(kept, shard)
    fresh = [shard for shard, piece in enumerate(pieces) if piece is None]
    indexed = len(paths) - len(fresh)
    known = f"; {indexed} more {'are' if indexed > 1 else 'is'} indexed" if indexed else ""
    log.info("looking for images in %s%s", counted(len(fresh), "archive"), known)

    def look(part: range) -> list[Piece]:
        return [scan(paths[fresh[place]], rules) for place in part]

    found = (piece for part in over_parts(len(fresh), look, together=1) for piece in part)
    for shard, piece in zip(fresh, found, strict=True):
        pieces[shard] = piece
    whole = [piece for piece in pieces if piece is not None]
    if faults := [f"{shown(path)} ({piece.fault})" for path, piece in zip(paths, whole, strict=True) if piece.fault]:
        some = f"{'; '.join(faults[:5])}{'; …' if len(faults) > 5 else ''}"
        raise DataError(
            f"{len(faults)} of {len(paths)} archives can't be read: {some}; copy them again or leave them out"
        )
    _warn_of_cut_archives([paths[shard] for shard in fresh])
    return ShardIndex(
        paths=tuple(paths),
        stamps=stamps,
        first=np.cumsum([0, *(len(piece.names) for piece in whole)], dtype=np.int64),
        names=Names.of([name for piece in whole for name in piece.names]),
        places=np.concatenate([piece.places for piece in whole]),
        bad=tuple((shard, name, reason) for shard, piece in enumerate(whole) for name, reason in piece.bad),
    )


def _warn_of_cut_archives(paths: Sequence[str]) -> None:
    """Say which archives end between two members: without the blocks of zeros, nobody can tell what came behind."""
    cut = [path for path in paths if not _has_end(path)]
    if cut:
        log.warning(
            "%s%s without the blocks that end an archive; where it was cut off, the images behind are missing",
            shown(cut[0]),
            f" and {len(cut) - 1} more archives end" if len(cut) > 1 else " ends",
        )


def _has_end(path: str) -> bool:
    with open_regular(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - BLOCK))
        return not file.read(BLOCK).strip(b"\0")


def scan(path: str, rules: ImageRules) -> Piece:
    """Return the images of one archive; what is wrong with it is not raised.

    Args:
        path: The archive.
        rules: Which images are usable.
    """
    nothing = Piece([], np.zeros((0, 2), dtype=np.int64), [])
    try:
        with open_regular(path) as file:
            info = os.fstat(file.fileno())
            reader = ShardReader([path], [Stamp(info.st_size, info.st_mtime_ns)])
            names, places, bad = _members(file, partial(_judge, reader, path, info.st_mtime_ns, rules))
            return Piece(names, np.array(places, dtype=np.int64).reshape(-1, 2), bad)
    except tarfile.TarError as error:
        return nothing._replace(fault=_compressed(path) or f"no whole tar archive: {error}")
    except SetupError:
        raise
    except OSError as error:
        return nothing._replace(fault=error.strerror or str(error))
    except Exception as error:  # damaged headers raise anything
        return nothing._replace(fault=f"damaged: {error}")


def _members(
    file: BinaryIO, judge: "partial[None]"
) -> tuple[list[bytes], list[tuple[int, int]], list[tuple[str, str]]]:
    """Return names and places of usable images, and the others with reasons.

    Raises:
        tarfile.TarError: The archive is damaged or ends too early.
    """
    names: dict[bytes, tuple[int, int]] = {}
    bad: list[tuple[str, str]] = []
    with tarfile.open(fileobj=file, mode="r:", errorlevel=2) as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # else it remembers all
            name = member.name.removeprefix("./")
            encoded, parts = os.fsencode(name), name.split("/")
            if member.isdir() or not encoded.lower().endswith(ENCODED_ENDINGS):
                continue
            if any(part.startswith(".") and part != ".." for part in parts):
                continue
            if ".." in parts or name.startswith("/"):
                bad.append((name, "odd-name"))
            elif not member.isreg() or member.issparse():
                bad.append((name, "not-a-file"))
            elif encoded in names:
                bad.append((name, "duplicate-name"))
            else:
                try:
                    judge(name, member.offset_data, member.size)
                    names[encoded] = (member.offset_data, member.size)
                except UnreadableError as error:
                    bad.append((name, error.reason))
        _require_end(file, archive.offset)
    return list(names), list(names.values()), bad


def _judge(reader: ShardReader, path: str, changed: int, rules: ImageRules, name: str, offset: int, size: int) -> None:
    """Let an image pass that can be used.

    Raises:
        UnreadableError: It can't.
    """
    judged_inside(
        lambda: reader.section(0, offset, size), Stamp(size, changed), f"{path}/{name}", lambda *_: None, rules
    )


def _require_end(file: BinaryIO, offset: int) -> None:
    """Let an archive pass that ends where its members end; `tarfile` takes damage between members for the end.

    Raises:
        tarfile.ReadError: It doesn't.
    """
    file.seek(offset)
    if file.read(BLOCK).strip(b"\0"):
        raise tarfile.ReadError(f"damaged at byte {offset}")


def _compressed(path: str) -> str:
    """Say that an archive is compressed, if it is."""
    with open_regular(path) as file:
        start = file.read(6)
    kinds = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
    kind = next((name for magic, name in kinds.items() if start.startswith(magic)), "")
    return f"compressed with {kind}; unpack it to a plain .tar, images are compressed already" if kind else ""


def _piece_of(index: ShardIndex, shard: int) -> Piece:
    begin, end = index.first[shard : shard + 2].tolist()
    names = [os.fsencode(name) for name in index.names[begin:end]]
    bad = [(name, reason) for number, name, reason in index.bad if number == shard]
    return Piece(names, np.array(index.places[begin:end]), bad)


def _stamp(path: str) -> Stamp:
    try:
        info = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return Stamp(-1, -1)  # scanning it says what is wrong
    return Stamp(info.st_size, info.st_mtime_ns)


def _place(paths: Sequence[str], rules: ImageRules) -> Path:
    what = [VERSION, PIL.__version__, asdict(rules), list(paths)]
    digest = hashlib.blake2b(json.dumps(what).encode(), digest_size=12).hexdigest()
    return cache_folder() / "shards" / f"{digest}.safetensors"


def _save(index: ShardIndex, place: Path) -> None:
    arrays = {
        "block": index.names.block,
        "ends": index.names.ends,
        "stamps": index.stamps,
        "first": index.first,
        "places": index.places,
    }
    write_mapped(place, {"bad": index.bad}, arrays)
    log.info("indexed %d images of %d archives in %s", len(index.names), len(index.paths), place)


def _load(place: Path, paths: Sequence[str]) -> ShardIndex | None:
    """Return what is kept in a file; `None` where nothing is, or nothing whole."""
    try:
        document, arrays = read_mapped(place)
        names = Names(arrays["block"], arrays["ends"])
        names.require_whole()
        first = arrays["first"]
        whole = first.shape == (len(paths) + 1,) and arrays["places"].shape == (len(names), 2)
        if not whole or first[0] != 0 or first[-1] != len(names) or (np.diff(first) < 0).any():
            raise ValueError("lists of different lengths")
        return ShardIndex(
            paths=tuple(paths),
            stamps=arrays["stamps"],
            first=first,
            names=names,
            places=arrays["places"],
            bad=tuple((shard, name, reason) for shard, name, reason in document["bad"]),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.info("the index %s can't be used (%s) and is made again", place, error)
        return None
