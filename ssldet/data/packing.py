"""images -> archives in WebDataset's layout, written so that a kill costs one archive and nothing is ever overwritten.

Which image goes into which archive follows from names and sizes alone, so that packing the same images again goes on
where it was stopped. Bytes are copied as they are. WebDataset takes what stands before the first dot of a name for the
key of a sample: other dots are written as `%2E`.
"""

import io
import json
import logging
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int64

from ssldet.data.files import ENDINGS
from ssldet.data.image_index import Usable, usable_images
from ssldet.data.judging import ImageRules
from ssldet.data.names import Names
from ssldet.data.parallel import over_parts
from ssldet.data.shard_files import escaped
from ssldet.data.shard_index import BLOCK, scan
from ssldet.disk import Disk, write_whole
from ssldet.documents import OddDocumentError, parse_json_object
from ssldet.errors import ConfigError, DataError, SetupError
from ssldet.escapes import counted, shown
from ssldet.regular import read_bytes

log = logging.getLogger(__name__)

PLAN = "packing.json"
"""The file beside the archives that says what they hold."""
MEGABYTES = 256
"""Size of an archive, unless it is chosen."""


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What packing did.

    Attributes:
        out: The folder of archives.
        spec: What to call them in a data specification.
        images: Images in the archives.
        shards: Archives.
        written: Archives that were written now; the others were there.
        bytes: Size of all archives.
        left_out: Images that can't be used, by reason, which no archive holds.
    """

    out: str
    spec: str
    images: int
    shards: int
    written: int
    bytes: int
    left_out: dict[str, int]

    def __str__(self) -> str:
        """Say it in lines."""
        before = self.shards - self.written
        there = f"; {before} {'were' if before > 1 else 'was'} there already" if before else ""
        lines = [
            f"{counted(self.images, 'image')} in {counted(self.shards, 'archive')}, {self.bytes / 1e6:.1f} MB{there}"
        ]
        lines += [f"left out: {count} {reason}" for reason, count in self.left_out.items()]
        return "\n".join([*lines, f"train on them by: {self.spec}"])

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def pack(specs: Sequence[str | Path], out: Path, rules: ImageRules, megabytes: int = MEGABYTES) -> Packed:
    """Write the usable images of some specifications into archives.

    Args:
        specs: See `files.list_files`.
        out: A folder that does not exist, is empty, or holds a part of what this writes.
        rules: Which images are usable.
        megabytes: Size of an archive; an image that is larger has one of its own.

    Raises:
        DataError: A specification names nothing usable, or an image changes meanwhile.
        ConfigError: The folder holds something else.
        SetupError: The disk has not enough space.
    """
    if megabytes < 1:
        raise ConfigError(f"--megabytes {megabytes}: expects a whole number from 1 on")
    usable = usable_images(specs, rules)
    if usable.unread:
        log.warning("%s", usable.unread)
    reasons = dict(_tallied(usable))
    if not len(usable.names):
        raise DataError(f"0 of {usable.listed} images usable in {', '.join(map(shown, specs))}; nothing is packed")
    inside = Names.of([os.fsencode(name) for name in members(iter(usable.names))])
    sizes = _sizes(usable)
    first = _shards(usable, sizes, megabytes * 10**6)
    shards = [out / f"{number:06d}.tar" for number in range(len(first) - 1)]
    _begin(out, usable, megabytes, shards)
    missing = [number for number, path in enumerate(shards) if not path.exists()]
    _require_space(out, sum(int(sizes[first[number] : first[number + 1]].sum()) for number in missing))
    for number in missing:
        _write(shards[number], usable, inside, sizes, range(first[number], first[number + 1]), rules)
        log.info("wrote %s (%d of %d)", shards[number], number + 1, len(shards))
    return Packed(
        out=str(out),
        spec=f"tar:{out}",
        images=len(usable.names),
        shards=len(shards),
        written=len(missing),
        bytes=sum(path.stat().st_size for path in shards),
        left_out=reasons,
    )


def members(names: Iterator[str]) -> Iterator[str]:
    """Yield the name of each image in its archive: only the ending stands behind a dot, and no two have one key.

    Args:
        names: Relative paths, sorted by their bytes, so that names which are the same up to a dot come together.

    Raises:
        DataError: A name is none that readers of archives look for.
    """
    start, keys = "", set[str]()
    for name in names:
        folder, slash, base = name.rpartition("/")
        stem, dot, ending = base.rpartition(".")
        if not stem or not name.lower().endswith(ENDINGS) or "/." in f"/{name}":
            raise DataError(f"{shown(name)}: readers of archives would pass it by; give it a name such as photo.jpg")
        begin = f"{folder}{slash}{base.partition('.')[0]}"
        if begin != start:
            start, keys = begin, set()
        stem = escaped(stem)
        if stem in keys:
            stem = f"{stem}%2E{ending}"
        keys.add(stem)
        yield f"{folder}{slash}{stem}{dot}{ending}"


def _tallied(usable: Usable) -> Iterator[tuple[str, int]]:
    reasons = [entry.reason for entry in usable.skipped]
    return ((reason, reasons.count(reason)) for reason in sorted(set(reasons)))


def _sizes(usable: Usable) -> Int64[np.ndarray, " N"]:
    """Return the number of bytes of each image."""
    if usable.stamps is not None:
        return usable.stamps[:, 0]

    def look(part: range) -> list[int]:
        return [os.stat(os.path.join(usable.root, usable.names[index])).st_size for index in part]  # noqa: PTH116,PTH118

    return np.array([size for part in over_parts(len(usable.names), look) for size in part], dtype=np.int64)


def _shards(usable: Usable, sizes: Int64[np.ndarray, " N"], largest: int) -> list[int]:
    """Return the first image of each archive, and the number of images."""
    first, filled = [0], 2 * BLOCK
    for index, size in enumerate(sizes.tolist()):
        room = BLOCK + -(-size // BLOCK) * BLOCK
        if filled + room > largest and index > first[-1]:
            first.append(index)
            filled = 2 * BLOCK
        filled += room
    return [*first, len(usable.names)]


def _begin(out: Path, usable: Usable, megabytes: int, shards: Sequence[Path]) -> None:
    """Make the folder, or let it pass if it holds a part of the same.

    Raises:
        ConfigError: It holds something else.
        SetupError: It can't be made.
    """
    plan = {
        "fingerprint": usable.fingerprint,
        "images": len(usable.names),
        "megabytes": megabytes,
        "shards": len(shards),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        there = {path.name for path in out.iterdir()}
    except OSError as error:
        raise SetupError(f"{shown(out)}: can't be written ({error.strerror}); choose another folder") from error
    for name in [name for name in there if ".tmp-" in name and name.partition(".tmp-")[0] in {PLAN, *_names(shards)}]:
        (out / name).unlink()  # of a packing that was killed
        there.remove(name)
    if not there:
        write_whole(out / PLAN, json.dumps(plan, indent=1).encode(), Disk())
        return
    try:
        found = parse_json_object(read_bytes(out / PLAN)) if PLAN in there else {}
    except (OSError, OddDocumentError):
        found = {}
    if found != plan or there - {PLAN, *_names(shards)}:
        what = "archives of other images or of another size" if found else "something else"
        raise ConfigError(f"{shown(out)}: holds {what}, and nothing is overwritten; choose a new folder")


def _names(shards: Sequence[Path]) -> set[str]:
    return {path.name for path in shards}


def _require_space(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out).free
    if needed > free:
        raise SetupError(f"{shown(out)}: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB free; choose a disk")


def _write(
    path: Path, usable: Usable, inside: Names, sizes: Int64[np.ndarray, " N"], part: range, rules: ImageRules
) -> None:
    """Write one archive, look at it as a reader does, and give it its name.

    Raises:
        DataError: An image is no longer the one that was judged.
        OSError: As the system says.
    """
    disk, stage = Disk(), path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with disk.create(stage) as file:
            _fill(file, usable, inside, sizes, part)
            disk.sync(file)
        found = scan(str(stage), rules)
        if found.fault or len(found.names) != len(part):
            why = found.fault or f"{len(found.names)} of {len(part)} images are in it"
            raise DataError(f"{shown(path)}: was not written as it should be ({why}); look at the disk")
        disk.replace(stage, path)
    finally:
        stage.unlink(missing_ok=True)
    disk.sync_folder(path.parent)


def _fill(file: BinaryIO, usable: Usable, inside: Names, sizes: Int64[np.ndarray, " N"], part: range) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for index, member in zip(part, inside[part.start : part.stop], strict=True):
            path = os.path.join(usable.root, usable.names[index])  # noqa: PTH118
            try:
                content = read_bytes(path)
            except OSError as error:
                raise DataError(f"{shown(path)}: can't be read ({error.strerror}); mend it and pack again") from error
            if len(content) != sizes[index]:
                raise DataError(f"{shown(path)}: was changed while it was packed; pack again into a new folder")
            entry = tarfile.TarInfo(member)
            entry.size, entry.mode = len(content), 0o444
            archive.addfile(entry, io.BytesIO(content))
