"""two sources -> the images they share: the same bytes, or the same picture re-encoded or resized."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Integer, UInt8, UInt64

from ssldet.data.files import find_images
from ssldet.data.images import ImageRules, thumbnails, thumbnails_inside
from ssldet.data.shard_files import find_shards
from ssldet.data.shards import split_window
from ssldet.errors import ConfigError, UnreadableError
from ssldet.escapes import shown
from ssldet.source import Source

DISTANCE = 8
"""Bits of 64 in which the hashes of one picture may differ. Of 858 photos saved again (JPEG quality 20, or half as
large, or squeezed to a square) 99.8 % or more stay within, and of 367 653 pairs of different photos three do."""
LIKENESS = 0.95
"""Least correlation of the thumbnails; copies have 0.98 and more. One of those three pairs stays below it."""
GRID, THRESHOLD = 16, 10.0
"""Cells along each side by which look-alikes are compared, and the largest difference of one cell, in percent of the
range of grey, in copies. Of 410 photos saved again (as above, or half as large at quality 50) none differs by more than
8.3 %; with a spot of a sixteenth of the short side in addition, none by less than 12.5 %: so a fixed camera's pictures
of other contents are told apart."""
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
        distance: Largest difference of a cell of both, in percent of the range of grey.
    """

    first: str
    second: str
    same: str
    distance: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Leaks:
    """Images that two sources share.

    Attributes:
        pairs: The images, in the order of the second source; of several similar images in the first, the most similar.
        first: Images in the first source.
        second: Images in the second.
        unread: Images that can't be decoded and were not compared.
        alike: Images of the second source that merely look like one of the first: the same scene with other contents.
        threshold: Largest distance of a pair.
    """

    pairs: tuple[Leak, ...]
    first: int
    second: int
    unread: int
    alike: int = 0
    threshold: float = THRESHOLD

    def __str__(self) -> str:
        """Return one line per pair, and a summary."""
        share = 100 * len(self.pairs) / max(self.second, 1)
        lines = [
            f"{leak.second}: the same {leak.same} as {leak.first}"
            + (f" (distance {leak.distance:.1f} %)" if leak.same == "picture" else "")
            for leak in self.pairs
        ]
        lines.append(f"{len(self.pairs)} of {self.second} images ({share:.1f} %) are also among the other {self.first}")
        if self.alike:
            lines.append(
                f"{self.alike} more look alike, but differ by more than {self.threshold:g} % somewhere, as pictures of "
                "one scene do; --threshold moves the limit"
            )
        if self.unread:
            lines.append(f"{self.unread} images can't be read and were not compared")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True)
class _Hashes:
    """Difference hashes and thumbnails of the images of one source."""

    images: "_Images"
    hashes: UInt64[np.ndarray, " N"]
    greys: Float[np.ndarray, "N K"]
    comparable: Int[np.ndarray, " M"]
    unread: int


def find_leaks(first: Source, second: Source, rules: ImageRules, threshold: float = THRESHOLD) -> Leaks:
    """Find the images of one source that another one also holds.

    Pictures are compared by difference hashes of 64 bits (whether each pixel of a 9 × 8 thumbnail is darker than its
    right neighbour), thumbnails of near hashes by their correlation, and those that look alike cell by cell. Crops and
    mirror images are not found, nor copies of other brightness.

    Args:
        first: Training images.
        second: Test images.
        rules: Which images are usable.
        threshold: Largest difference anywhere in two pictures that count as the same, in percent of the range of grey.

    Raises:
        ConfigError: A source does not give the bytes of its images, or the threshold is no percentage.
    """
    if not 0 <= threshold <= 100:
        raise ConfigError(f"threshold: {threshold:g} is not from 0 to 100 percent; leave it out for {THRESHOLD:g}")
    ours, theirs = (_hashes(_Images(source, rules)) for source in (first, second))
    pairs = {place: Leak(first=ours.images.names[other], second=theirs.images.names[place], same="file")
             for place, other in _same_files(ours.images, theirs.images)}  # fmt: skip
    alike = {place: others for place, others in _look_alikes(ours, theirs) if place not in pairs}
    for place, (other, distance) in _nearest(ours, theirs, alike).items():
        if distance <= threshold:
            names = {"first": ours.images.names[other], "second": theirs.images.names[place]}
            pairs[place] = Leak(**names, same="picture", distance=round(distance, 2))
    return Leaks(
        pairs=tuple(pairs[place] for place in sorted(pairs)),
        first=len(first),
        second=len(second),
        unread=ours.unread + theirs.unread,
        alike=len(alike.keys() - pairs.keys()),
        threshold=threshold,
    )


def seen_before(specs: Sequence[str], source: Source) -> list[str]:
    """Return the images of a source that lie in other specifications; no image is opened, no folder searched.

    Copies elsewhere, and images of globs and labelled sets, are found by `find_leaks` only.

    Args:
        specs: Training specifications: folders, lists, files and archives are compared, others ignored.
        source: Test images.
    """
    places = _resolved_places(specs)
    lies_there = cache(lambda folder: folder in places or not places.isdisjoint(map(str, Path(folder).parents)))
    # One folder holds thousands of images: what its name leads to is asked once.
    resolved = cache(os.path.realpath)
    seen: dict[str, None] = {}
    for number, name in enumerate(source.all_names()):
        # A name that is no path says where an image lies in a table.
        if name is None or (not name.startswith(os.sep) and source.path_of(number) is None):
            continue
        folder, base = os.path.split(name)
        path = os.path.join(resolved(folder), base)  # noqa: PTH118  # a million times
        if os.path.islink(path):  # noqa: PTH114
            path = os.path.realpath(path)
        if path in places or lies_there(os.path.dirname(path)):  # noqa: PTH120
            seen[path] = None
    return list(map(shown, seen))


def _resolved_places(specs: Sequence[str]) -> set[str]:
    """Return the folders, files and archives that training specifications name, links followed."""
    places: set[str] = set()
    for spec in specs:
        path = Path(spec).expanduser()
        if path.is_dir():
            places.add(os.path.realpath(path))
        elif path.is_file():
            places.update(os.path.realpath(image) for image in find_images([spec]))
        elif spec.startswith("tar:"):
            pattern, _ = split_window(spec.removeprefix("tar:"))
            places.update(map(os.path.realpath, find_shards(pattern)))
    return places


def _paths(source: Source) -> list[str]:
    paths = [str(path) for path in map(source.path_of, range(len(source))) if path is not None]
    if not paths or len(paths) < len(source):
        raise ConfigError("one of the sets does not say where its images lie; name folders, coco:…, voc:… or yolo:…")
    return paths


class _Images:
    """The images of a source, files of their own or parts of archives and tables.

    Attributes:
        names: What each is called.
    """

    def __init__(self, source: Source, rules: ImageRules) -> None:
        """Take a source.

        Raises:
            ConfigError: It does not give the bytes of its images.
        """
        self._source, self._rules = source, rules
        try:
            self._paths: list[str] | None = _paths(source)
        except ConfigError:
            if not len(source) or source.encoded(0) is None:
                raise
            self._paths = None
        self.names = [shown(name or str(number)) for number, name in enumerate(source.all_names())]

    def __len__(self) -> int:
        return len(self.names)

    def size(self, place: int) -> int:
        """Return the number of bytes of an image."""
        return len(self.content(place)) if self._paths is None else os.stat(self._paths[place]).st_size  # noqa: PTH116

    def content(self, place: int) -> bytes:
        """Return the bytes of an image; none where it can't be read, which is told of its thumbnail."""
        try:
            return self._source.encoded(place) or b""
        except UnreadableError:
            return b""

    def thumbnails(
        self, places: Sequence[int], size: tuple[int, int]
    ) -> list[UInt8[np.ndarray, "h w"] | UnreadableError]:
        """Return images shrunk to a few grey pixels, or what is wrong with them."""
        if self._paths is not None:
            return thumbnails([self._paths[place] for place in places], size, self._rules)
        return thumbnails_inside([(self.names[place], place) for place in places], self.content, size, self._rules)


def _same_files(first: _Images, second: _Images) -> Iterator[tuple[int, int]]:
    """Yield place in the second and place in the first of equal bytes; files of other sizes are not read."""
    by_size: defaultdict[int, list[int]] = defaultdict(list)
    for other in range(len(first)):
        by_size[first.size(other)].append(other)
    digests: dict[tuple[int, int], bytes] = {}
    for place in range(len(second)):
        for other in by_size.get(second.size(place), ()):
            for images, number, place_there in ((first, 0, other), (second, 1, place)):
                if (number, place_there) not in digests:
                    digests[number, place_there] = hashlib.blake2b(images.content(place_there)).digest()
            if digests[1, place] == digests[0, other]:
                yield place, other
                break


def _hashes(images: _Images) -> _Hashes:
    small: UInt8[np.ndarray, "N 8 9"] = np.zeros((len(images), 8, 9), dtype=np.uint8)
    unread = 0
    for row, thumbnail in zip(small, images.thumbnails(range(len(images)), (8, 9)), strict=True):
        if isinstance(thumbnail, np.ndarray):
            row[:] = thumbnail
        else:
            unread += 1
    bits = np.packbits((small[:, :, 1:] > small[:, :, :-1]).reshape(-1, 64), axis=1)
    greys = small.reshape(-1, 72).astype(np.float32)
    spread = greys.std(axis=1, keepdims=True)
    greys = (greys - greys.mean(axis=1, keepdims=True)) / np.maximum(spread, 1e-6)
    comparable = np.flatnonzero(spread[:, 0] >= CONTRAST)
    return _Hashes(images, np.ascontiguousarray(bits).view(np.uint64)[:, 0], greys, comparable, unread)


def _look_alikes(ours: _Hashes, theirs: _Hashes) -> Iterator[tuple[int, list[int]]]:
    """Yield place in the second and places in the first of pictures that look alike."""
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
                yield int(places[row]), candidates[likeness >= LIKENESS].tolist()


def _nearest(ours: _Hashes, theirs: _Hashes, alike: Mapping[int, Sequence[int]]) -> dict[int, tuple[int, float]]:
    """Return place in the second -> place in the first of the nearest look-alike, and its distance in percent.

    Only look-alikes are read again, so that this costs little where there are few.
    """
    mine = _cells(ours.images, sorted({other for others in alike.values() for other in others}))
    yours = _cells(theirs.images, list(alike))
    nearest: dict[int, tuple[int, float]] = {}
    for place, others in alike.items():
        distances = {
            other: float(np.abs(mine[other] - yours[place]).max()) * 100 / 255
            for other in others
            if other in mine and place in yours
        }
        if distances:
            best = min(distances, key=lambda other: distances[other])
            nearest[place] = (best, distances[best])
    return nearest


def _cells(images: _Images, places: Sequence[int]) -> dict[int, Float[np.ndarray, "N N"]]:
    """Return place -> grey values of a picture's cells, 0..255; what can't be read any more is left out."""
    small = images.thumbnails(places, (GRID, GRID))
    return {
        place: cells.astype(np.float32)
        for place, cells in zip(places, small, strict=True)
        if isinstance(cells, np.ndarray)
    }


def _bits_set(words: UInt64[np.ndarray, "N M"]) -> Integer[np.ndarray, "N M"]:
    """Count the ones in each word; NumPy has `bitwise_count`, a hundred times as fast, from version 2 on only."""
    if hasattr(np, "bitwise_count"):
        fast: Integer[np.ndarray, "N M"] = np.bitwise_count(words)
        return fast
    counts: Integer[np.ndarray, "N M"] = _ONES[words.view(np.uint16)].reshape(*words.shape, 4).sum(axis=-1)
    return counts


_ONES = np.unpackbits(np.arange(1 << 16, dtype=np.uint16).view(np.uint8)).reshape(-1, 16).sum(axis=1).astype(np.int64)
