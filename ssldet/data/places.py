"""where labelled images lie, a folder or archives -> sizes, pixels and names, by the names that annotations use."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int64
from torch import Tensor

from ssldet.data.files import nearest_file
from ssldet.data.images import ImageRules, image_sizes, is_turned, read_image, read_image_inside, size_of, turned
from ssldet.data.judging import Answer, Stamp, Use, judged_inside
from ssldet.data.parallel import over_images
from ssldet.data.shard_files import find_shards, member_name
from ssldet.data.shard_index import ShardIndex, index_shards
from ssldet.data.shards import DECODED, split_window, windowed
from ssldet.errors import UnreadableError
from ssldet.escapes import shown
from ssldet.regular import read_bytes
from ssldet.source import shuffled
from ssldet.types import Pixels


class Place(ABC):
    """Where images lie.

    Attributes:
        spec: What a data specification calls it.
    """

    spec: str

    def fault(self) -> str:
        """Say why nothing can be found here; empty if it can."""
        return ""

    @abstractmethod
    def sizes(self, names: Sequence[str], rules: ImageRules) -> list[tuple[int, int] | UnreadableError]:
        """Return height and width of images, from their headers, or what is wrong with them."""

    @abstractmethod
    def is_turned(self, name: str, rules: ImageRules) -> bool:
        """Say whether an image states a rotation that exchanges height and width."""

    @abstractmethod
    def read(self, name: str, rules: ImageRules) -> Pixels:
        """Decode an image.

        Raises:
            UnreadableError: It can't be read.
        """

    @abstractmethod
    def encoded(self, name: str) -> bytes:
        """Return the bytes of an image as they are stored.

        Raises:
            OSError: They can't be read.
            UnreadableError: There are none.
        """

    @abstractmethod
    def path_of(self, name: str) -> Path | None:
        """Return the file of an image; `None` if it has none of its own."""

    @abstractmethod
    def name_of(self, name: str) -> str:
        """Return what to call an image in messages."""

    @abstractmethod
    def nearest(self, name: str) -> str | None:
        """Return what the name of an image that is missing probably means."""

    @property
    def has_own_order(self) -> bool:
        """Whether images read best in the order that `order` gives."""
        return False

    def order(self, names: Sequence[str]) -> Callable[[Int[np.ndarray, " N"], int, int], Int[Tensor, " N"]]:
        """Return what gives some of these images, by number, their order in an epoch; see `Source.part_order`."""
        return _shuffled


class FolderPlace(Place):
    """A folder.

    Attributes:
        spec: Its path.
    """

    def __init__(self, folder: Path) -> None:
        """Point at a folder.

        Args:
            folder: It may be missing.
        """
        self.spec, self._folder = str(folder), folder

    def fault(self) -> str:
        """Say if there is no such folder."""
        return "" if self._folder.is_dir() else "no such folder of images"

    def sizes(self, names: Sequence[str], rules: ImageRules) -> list[tuple[int, int] | UnreadableError]:
        """Return height and width of images, from their headers, or what is wrong with them."""
        return image_sizes(self._folder, names, rules)

    def is_turned(self, name: str, rules: ImageRules) -> bool:
        """Say whether an image states a rotation that exchanges height and width."""
        return is_turned(self._folder / name, rules)

    def read(self, name: str, rules: ImageRules) -> Pixels:
        """Decode an image.

        Raises:
            UnreadableError: It can't be read.
        """
        return read_image(self._folder / name, rules)

    def encoded(self, name: str) -> bytes:
        """Return the content of the file of an image."""
        return read_bytes(self._folder / name)

    def path_of(self, name: str) -> Path:
        """Return the file of an image."""
        return self._folder / name

    def name_of(self, name: str) -> str:
        """Return the path of an image."""
        return str(self._folder / name)

    def nearest(self, name: str) -> str | None:
        """Return what the name of an image that is missing probably means."""
        return nearest_file(self._folder, name)


class ShardPlace(Place):
    """Archives. An image is found by its name in any of them, dots written as they are or as packing writes them.

    Attributes:
        spec: `tar:SHARDS`.
    """

    def __init__(self, index: ShardIndex, window: int, spec: str) -> None:
        """Take indexed archives.

        Args:
            index: Where the images lie.
            window: Archives whose images are shown in random order together.
            spec: What a data specification calls them.
        """
        self.spec, self._index, self._window = spec, index, window
        self._reader = index.reader()
        self._bad = {os.fsdecode(name): reason for _, name, reason in index.bad}

    def sizes(self, names: Sequence[str], rules: ImageRules) -> list[tuple[int, int] | UnreadableError]:
        """Return height and width of images, from their headers, or what is wrong with them."""
        self._index.find("")  # what it prepares is made once, before processes are
        return over_images(len(names), lambda number: self._use(names[number], size_of, rules))

    def is_turned(self, name: str, rules: ImageRules) -> bool:
        """Say whether an image states a rotation that exchanges height and width."""
        return self._use(name, turned, rules)

    def read(self, name: str, rules: ImageRules) -> Pixels:
        """Decode an image.

        Raises:
            UnreadableError: It can't be read.
        """
        shard, offset, size = self._found(name)
        read = partial(self._reader.section, shard, offset, size, DECODED)
        return read_image_inside(read, self._stamp(shard, size), self.name_of(name), rules)

    def encoded(self, name: str) -> bytes:
        """Return the part of an archive that is an image."""
        with self._reader.section(*self._found(name), DECODED) as file:
            return file.read()

    def path_of(self, name: str) -> None:
        """Return `None`: an image is a part of a file."""

    def name_of(self, name: str) -> str:
        """Return the archive of an image and its name there; its name alone if it is in none."""
        found = self._numbers(name)
        if not found:
            return f"{self.spec}/{name}"
        return f"{self._index.paths[self._index.shard_of(found[0])]}/{self._index.names[found[0]]}"

    def nearest(self, name: str) -> str | None:
        """Return an image of the same name in another folder, if there is one."""
        ends = {f"/{name.rpartition('/')[2]}", f"/{member_name(name).rpartition('/')[2]}"}
        return next((found for found in self._index.names if f"/{found}".endswith(tuple(ends))), None)

    @property
    def has_own_order(self) -> bool:
        """Whether there are more archives than are read at once."""
        return self._window < len(self._index.paths)

    def order(self, names: Sequence[str]) -> Callable[[Int[np.ndarray, " N"], int, int], Int[Tensor, " N"]]:
        """Return what shows the images window after window of archives."""
        numbers = np.array([self._numbers(name)[0] for name in names], dtype=np.int64)
        return partial(_windowed, self._index.first, numbers, self._window)

    def _use(self, name: str, use: Use[Answer], rules: ImageRules) -> Answer:
        shard, offset, size = self._found(name)
        read = partial(self._reader.section, shard, offset, size)
        return judged_inside(read, self._stamp(shard, size), self.name_of(name), use, rules)

    def _stamp(self, shard: int, size: int) -> Stamp:
        return Stamp(size, int(self._index.stamps[shard, 1]))

    def _numbers(self, name: str) -> list[int]:
        return self._index.find(name) or self._index.find(member_name(name))

    def _found(self, name: str) -> tuple[int, int, int]:
        """Return the archive, the first byte and the number of bytes of an image.

        Raises:
            UnreadableError: No archive holds it, or several do, or it can't be used.
        """
        found = self._numbers(name)
        if len(found) != 1:
            reason = "duplicate-name" if found else self._bad.get(name) or self._bad.get(member_name(name)) or "missing"
            raise UnreadableError(shown(f"{self.spec}/{name}"), reason)
        offset, size = self._index.places[found[0]].tolist()
        return self._index.shard_of(found[0]), offset, size


def place_of(images: str, rules: ImageRules) -> Place:
    """Return where images lie.

    Args:
        images: A folder, or `tar:SHARDS` as `ssldet.data.shards.open_tar` takes it.
        rules: Which images are usable.

    Raises:
        DataError: The archives can't be found or read.
    """
    form, colon, rest = images.partition(":")
    if not colon or form != "tar" or Path(images).exists():
        return FolderPlace(Path(images))
    pattern, window = split_window(rest)
    return ShardPlace(index_shards(find_shards(pattern), rules), window, images)


def _shuffled(indices: Int[np.ndarray, " N"], seed: int, epoch: int) -> Int[Tensor, " N"]:
    return shuffled(len(indices), seed, epoch)


def _windowed(
    first: Int64[np.ndarray, " T"],
    numbers: Int64[np.ndarray, " I"],
    window: int,
    indices: Int[np.ndarray, " N"],
    seed: int,
    epoch: int,
) -> Int[Tensor, " N"]:
    return windowed(first, numbers[indices], window, seed, epoch)
