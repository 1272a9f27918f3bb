"""two sources -> the images they share: the same bytes, or the same picture re-encoded or resized."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8, UInt64

from ssldet.data.files import find_images
from ssldet.data.images import ImageRules, thumbnails
from ssldet.errors import ConfigError
from ssldet.escapes import shown
from ssldet.regular import read_bytes
from ssldet.source import Source

DISTANCE = 8
"""Bits of 64 in which the hashes of one picture may differ. Of 858 photos saved again (JPEG quality 20, or half as
large, or squeezed to a square) 99.8 % or more stay within, and of 367 653 pairs of different photos three do."""
LIKENESS = 0.95
"""Least correlation of the thumbnails; copies have 0.98 and more. One of those three pairs stays below it."""
CONTRAST = 3.0
"""Standard deviation of a thumbnail's grey values below which a picture is blank, and like every blank picture."""
PAIRS = 4_000_000
"""Pairs compared at once."""


@dataclass(frozen=True, kw_only=True)
class Leak:
    """One image that both sources hold.

    Attributes:
        first: Its path in the first source.
        second: Its path in the second source.
        same: `file` for equal bytes, `picture` for equal content.
    """

    first: str
    second: str
    same: str


@dataclass(frozen=True, kw_only=True)
class Leaks:
    """Images that two sources share.

    Attributes:
        pairs: The images, in the order of the second source; of several similar images in the first, the most similar.
        first: Images in the first source.
        second: Images in the second.
        unread: Images that can't be decoded and were not compared.
    """

    pairs: tuple[Leak, ...]
    first: int
    second: int
    unread: int

    def __str__(self) -> str:
        """Return one line per pair, and a summary."""
        share = 100 * len(self.pairs) / max(self.second, 1)
        lines = [f"{leak.second}: the same {leak.same} as {leak.first}" for leak in self.pairs]
        lines.append(f"{len(self.pairs)} of {self.second} images ({share:.1f} %) are also among the other {self.first}")
        if self.unread:
            lines.append(f"{self.unread} images can't be read and were not compared")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True)
class _Hashes:
    """Difference hashes and thumbnails of the images of one source."""

    paths: list[str]
    hashes: UInt64[np.ndarray, " N"]
    greys: Float[np.ndarray, "N K"]
    comparable: Int[np.ndarray, " M"]
    unread: int


def find_leaks(first: Source, second: Source, rules: ImageRules) -> Leaks:
    """Find the images of one source that another one also holds.

    Pictures are compared by difference hashes of 64 bits (whether each pixel of a 9 × 8 thumbnail is darker than its
    right neighbour), and thumbnails of near hashes by their correlation. Crops and mirror images are not found.

    Args:
        first: Training images.
        second: Test images.
        rules: Which images are usable.

    Raises:
        ConfigError: A source does not know the paths of its images.
    """
    ours, theirs = (_hashes(_paths(source), rules) for source in (first, second))
    pairs = {place: Leak(first=shown(path), second=shown(theirs.paths[place]), same="file")
             for place, path in _same_files(ours.paths, theirs.paths)}  # fmt: skip
    for place, other in _same_pictures(ours, theirs):
        if place not in pairs:
            pairs[place] = Leak(first=shown(ours.paths[other]), second=shown(theirs.paths[place]), same="picture")
    ordered = tuple(pairs[place] for place in sorted(pairs))
    return Leaks(pairs=ordered, first=len(first), second=len(second), unread=ours.unread + theirs.unread)


def seen_before(specs: Sequence[str], source: Source) -> list[str]:
    """Return the images of a source that lie in other specifications; no file is opened, no folder listed.

    Copies elsewhere, and images of globs and labelled sets, are found by `find_leaks` only.

    Args:
        specs: Training specifications: folders, lists and files are compared, others ignored.
        source: Test images.
    """
    try:
        paths = [Path(path).resolve() for path in dict.fromkeys(_paths(source))]
    except ConfigError:
        return []
    places = {Path(spec).expanduser().resolve() for spec in specs if Path(spec).expanduser().is_dir()}
    lists = [spec for spec in specs if Path(spec).expanduser().is_file()]
    places |= {path.resolve() for path in find_images(lists)} if lists else set()
    return [shown(path) for path in paths if path in places or not places.isdisjoint(path.parents)]


def _paths(source: Source) -> list[str]:
    paths = [path for number in range(len(source)) if (path := source.path_of(number)) is not None]
    if not paths or len(paths) < len(source):
        raise ConfigError("one of the sets does not say where its images lie; name folders, coco:…, voc:… or yolo:…")
    return list(map(str, paths))


def _same_files(first: Sequence[str], second: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield place in the second and path in the first of files with equal bytes; only equal sizes are read."""
    by_size: defaultdict[int, list[str]] = defaultdict(list)
    for path in first:
        by_size[Path(path).stat().st_size].append(path)
    digests: dict[str, bytes] = {}
    for place, path in enumerate(second):
        for candidate in by_size.get(Path(path).stat().st_size, ()):
            for name in (path, candidate):
                if name not in digests:
                    digests[name] = hashlib.blake2b(read_bytes(name)).digest()
            if digests[path] == digests[candidate]:
                yield place, candidate
                break


def _hashes(paths: list[str], rules: ImageRules) -> _Hashes:
    small: UInt8[np.ndarray, "N 8 9"] = np.zeros((len(paths), 8, 9), dtype=np.uint8)
    unread = 0
    for row, thumbnail in zip(small, thumbnails(paths, (8, 9), rules), strict=True):
        if isinstance(thumbnail, np.ndarray):
            row[:] = thumbnail
        else:
            unread += 1
    bits = np.packbits((small[:, :, 1:] > small[:, :, :-1]).reshape(-1, 64), axis=1)
    greys = small.reshape(-1, 72).astype(np.float32)
    spread = greys.std(axis=1, keepdims=True)
    greys = (greys - greys.mean(axis=1, keepdims=True)) / np.maximum(spread, 1e-6)
    comparable = np.flatnonzero(spread[:, 0] >= CONTRAST)
    return _Hashes(paths, np.ascontiguousarray(bits).view(np.uint64)[:, 0], greys, comparable, unread)


def _same_pictures(ours: _Hashes, theirs: _Hashes) -> Iterator[tuple[int, int]]:
    """Yield place in the second and place in the first of pictures that look alike."""
    if not len(ours.comparable):
        return
    step = max(1, PAIRS // len(ours.comparable))
    mine = ours.hashes[ours.comparable]
    for start in range(0, len(theirs.comparable), step):
        places = theirs.comparable[start : start + step]
        near = _bits_set(theirs.hashes[places, None] ^ mine) <= DISTANCE
        for row in np.flatnonzero(near.any(axis=1)):
            candidates = ours.comparable[near[row]]
            likeness = ours.greys[candidates] @ theirs.greys[places[row]] / ours.greys.shape[1]
            if likeness.max() >= LIKENESS:
                yield int(places[row]), int(candidates[likeness.argmax()])


def _bits_set(words: UInt64[np.ndarray, "N M"]) -> Int[np.ndarray, "N M"]:
    """Count the ones in each word; NumPy has `bitwise_count` from version 2 on only."""
    counts: Int[np.ndarray, "N M"] = _ONES[words.view(np.uint16)].reshape(*words.shape, 4).sum(axis=-1)
    return counts


_ONES = np.unpackbits(np.arange(1 << 16, dtype=np.uint16).view(np.uint8)).reshape(-1, 16).sum(axis=1).astype(np.int64)
