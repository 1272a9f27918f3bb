"""`tar:SHARDS` -> Source: images in archives as WebDataset packs them, read where they lie, archive after archive.

In training the archives come in a new order in each epoch, some at a time (a window), and the images of a window in
random order. So few archives are read at once, each image is still a function of its place, and any of them can be read
at any time. With a window of all archives the order is that of a folder with the same images.
"""

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from copy import copy
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ssldet import chance
from ssldet.data.files import tally
from ssldet.data.images import key_of, read_sample_inside
from ssldet.data.judging import ImageRules, Stamp
from ssldet.data.shard_files import find_shards
from ssldet.data.shard_index import ShardIndex, index_shards
from ssldet.errors import DataError
from ssldet.escapes import shown
from ssldet.source import Source, shuffled
from ssldet.types import Sample, Skipped

log = logging.getLogger(__name__)

DECODED = 1 << 17
"""Bytes read at once of an image whose pixels are wanted."""
WINDOW = 16
"""Archives whose images come in random order together, unless a specification says otherwise."""


class ShardSource(Source):
    """Images of archives, without labels.

    Attributes:
        index: Where they lie.
        window: Archives whose images are shown in random order together.
    """

    classes = ()

    def __init__(self, index: ShardIndex, rules: ImageRules, window: int = WINDOW) -> None:
        """Take indexed archives.

        Args:
            index: Where the images lie.
            rules: Which images are usable.
            window: Archives whose images are shown in random order together.
        """
        self.index, self.window, self._rules, self._draft = index, window, rules, 0
        self._reader, self._skipped = index.reader(), index.skipped
        root = os.path.commonpath([os.path.dirname(path) for path in index.paths])  # noqa: PTH120
        self._labels = tuple(os.path.relpath(path, root) for path in index.paths)
        words = f"{index.fingerprint}\n{window}"
        self._fingerprint = hashlib.blake2b(words.encode(), digest_size=6).hexdigest()

    @property
    def fingerprint(self) -> str:
        """Short hash of names and sizes, of which archive holds what, and of the window, which decides the order."""
        return self._fingerprint

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Images that can't be used, known from their headers."""
        return self._skipped

    def __len__(self) -> int:
        """Number of usable images."""
        return len(self.index.names)

    def __getitem__(self, index: int) -> Sample:
        """Read one image; its key is its archive and its name there.

        Raises:
            UnreadableError: It can't be decoded.
        """
        name = self.name_of(index)
        shard, (offset, size) = self.index.shard_of(index), self.index.places[index].tolist()
        stamp = Stamp(size, int(self.index.stamps[shard, 1]))
        key = key_of(f"{self._labels[shard]}/{self.index.names[index]}")
        return read_sample_inside(
            lambda: self._reader.section(shard, offset, size, DECODED), stamp, name, self._rules, key=key,
            draft=self._draft,
        )  # fmt: skip

    def drafted(self, short: int) -> "ShardSource":
        """Return the same images, JPEGs decoded smaller."""
        other = copy(self)
        other._draft = short
        return other

    def encoded(self, index: int) -> bytes:
        """Return the part of an archive that is an image."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        offset, size = self.index.places[index].tolist()
        with self._reader.section(self.index.shard_of(index), offset, size, DECODED) as file:
            return file.read()

    def name_of(self, index: int) -> str:
        """Return the archive of an image and its name there, as if the archive were a folder."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return f"{self.index.paths[self.index.shard_of(index)]}/{self.index.names[index]}"

    def all_names(self) -> Iterator[str]:
        """Yield the archive of each image and its name there."""
        counts = np.diff(self.index.first).tolist()
        archives = chain.from_iterable(map(repeat, self.index.paths, counts))
        return (f"{archive}/{name}" for archive, name in zip(archives, self.index.names, strict=True))

    @property
    def has_own_order(self) -> bool:
        """Whether there are more archives than are read at once."""
        return self.window < len(self.index.paths)

    def order(self, seed: int, epoch: int) -> Int[Tensor, " N"]:
        """Return window after window of archives, the images of each window in random order."""
        return windowed(self.index.first, None, self.window, seed, epoch)

    def part_order(self, indices: Int[np.ndarray, " N"], seed: int, epoch: int) -> Int[Tensor, " N"]:
        """Return some of the images window after window, the images of each window in random order."""
        return windowed(self.index.first, indices, self.window, seed, epoch)


def windowed(
    first: Int[np.ndarray, " T"], indices: Int[np.ndarray, " N"] | None, window: int, seed: int, epoch: int
) -> Int[Tensor, " N"]:
    """Return an order that reads few archives at once.

    Args:
        first: Archive i holds the images from `first[i]` up to `first[i + 1]`.
        indices: Images to show; `None` for all.
        window: Archives whose images are shuffled together.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.

    Returns:
        A permutation of the places in `indices`.
    """
    shards, count = len(first) - 1, int(first[-1]) if indices is None else len(indices)
    if window >= shards:
        return shuffled(count, seed, epoch)
    permuted = torch.randperm(shards, generator=chance.generator(seed, "shards", epoch)).numpy()
    windows = [np.sort(permuted[begin : begin + window]) for begin in range(0, shards, window)]
    order = np.empty(count, dtype=np.int32 if count < 2**31 else np.int64)
    begin = 0
    for number, here in enumerate(_places(first, indices, windows)):
        generator = chance.generator(seed, "window", epoch, number)
        order[begin : begin + len(here)] = here[torch.randperm(len(here), generator=generator).numpy()]
        begin += len(here)
    return torch.from_numpy(order)


def _places(
    first: Int[np.ndarray, " T"], indices: Int[np.ndarray, " N"] | None, windows: Sequence[Int[np.ndarray, " _"]]
) -> Iterator[Int[np.ndarray, " _"]]:
    """Yield the places in `indices` of the images of each window, in ascending order."""
    if indices is None:
        for shards in windows:
            yield np.concatenate([np.arange(first[shard], first[shard + 1]) for shard in shards])
        return
    turns = np.empty(len(first) - 1, dtype=np.int32)
    for number, shards in enumerate(windows):
        turns[shards] = number
    turn_of = turns[np.searchsorted(first, indices, side="right") - 1]
    ends = np.cumsum(np.bincount(turn_of, minlength=len(windows)))
    yield from np.split(np.argsort(turn_of, kind="stable"), ends[:-1])


def open_tar(rest: str, rules: ImageRules, *, masks: bool = False) -> ShardSource:
    """Open archives of images; nothing is unpacked.

    Args:
        rest: `SHARDS` or `SHARDS:window=K`; `SHARDS` is a path with braces (`data/{000000..000999}.tar`), a glob, a
            folder of `.tar` files or one file.
        rules: Which images are usable.
        masks: Refused: there are none.

    Raises:
        DataError: The archives can't be found or read, or hold no usable image.
    """
    pattern, window = split_window(rest)
    spec = f"tar:{shown(rest)}"
    if masks:
        raise DataError(f"{spec}: holds images and no masks; use coco:ANN.json:tar:SHARDS or panoptic:…")
    index = index_shards(find_shards(pattern), rules)
    if not len(index.names):
        why = f" ({tally(index.skipped)})" if index.skipped else ""
        raise DataError(f"{spec}: no usable image in {len(index.paths)} archives{why}")
    source = ShardSource(index, rules, window)
    shards = len(index.paths)
    if shards > 1:
        log.info(
            "%d images in %d archives; in training %d archives are read at once, and their images shuffled together "
            "(tar:SHARDS:window=K sets how many)",
            len(source),
            shards,
            min(window, shards),
        )
    return source


open_tar.path_places = (0,)  # type: ignore[attr-defined]


def split_window(rest: str) -> tuple[str, int]:
    """Return the pattern of a specification and its window.

    Args:
        rest: What stands behind `tar:`.

    Raises:
        DataError: The window is no number of archives.
    """
    pattern, colon, option = rest.rpartition(":")
    if not colon or Path(rest).exists():
        return rest, WINDOW
    number = re.fullmatch(r"window=(\d{1,9})", option)
    if number is None or int(number[1]) < 1:
        raise DataError(f"tar:{shown(rest)}: {shown(option)} is no option; say window=K, K archives from 1 on")
    return pattern, int(number[1])
