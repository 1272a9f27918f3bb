"""a million names -> one block of bytes, whose memory workers share, because it holds no reference counts."""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, overload

import numpy as np
from jaxtyping import Integer, UInt8

AT_ONCE = 65_536
"""Names that are taken out of the block together where all are wanted."""


class Names(Sequence[str]):
    """Names of files, in a fixed order; those that are not UTF-8 too.

    Takes the bytes of the names and four more for each, eight where they are 4 GiB and more together.

    Attributes:
        block: The bytes of all names, one after the other.
        ends: Name i lies from `ends[i]` up to `ends[i + 1]`.
    """

    def __init__(self, block: UInt8[np.ndarray, " B"], ends: Integer[np.ndarray, " M"]) -> None:
        """Take arrays, which may be parts of a file.

        Args:
            block: The bytes of all names.
            ends: Where names begin and end; one more than there are names.
        """
        self.block, self.ends = block, ends

    @classmethod
    def of(cls, encoded: Sequence[bytes]) -> "Names":
        """Pack names.

        Args:
            encoded: Each as `os.fsencode` gives it.
        """
        block = b"".join(encoded)
        width = np.uint32 if len(block) < 2**32 else np.int64
        ends = np.zeros(len(encoded) + 1, dtype=width)
        ends[1:] = np.cumsum(np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded)))
        return cls(np.frombuffer(block, dtype=np.uint8), ends)

    def encoded(self) -> Iterator[bytes]:
        """Yield the bytes of each name."""
        for first in range(0, len(self), AT_ONCE):
            yield from self._part(first, min(first + AT_ONCE, len(self)))

    def _part(self, first: int, last: int) -> Iterator[bytes]:
        ends = self.ends[first : last + 1].tolist()
        start = ends[0]
        part = self.block[start : ends[-1]].tobytes()
        for begin, end in pairwise(ends):
            yield part[begin - start : end - start]

    def require_whole(self) -> None:
        """Let arrays of a file pass that are names.

        Raises:
            ValueError: They can't be.
        """
        flat = self.ends.ndim == self.block.ndim == 1
        rises = flat and len(self.ends) > 0 and self.ends[0] == 0 and bool((self.ends[1:] >= self.ends[:-1]).all())
        if not rises or self.ends[-1] != len(self.block):
            raise ValueError("names that begin and end nowhere")

    def kept(self, keep: Iterable[bool]) -> "Names":
        """Return some of the names, in the same order.

        Args:
            keep: For each name, whether it stays.
        """
        return Names.of([name for name, stays in zip(self.encoded(), keep, strict=True) if stays])

    def __len__(self) -> int:
        """Number of names."""
        return len(self.ends) - 1

    def __iter__(self) -> Iterator[str]:
        """Yield each name."""
        return map(os.fsdecode, self.encoded())

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """Return a name, or several.

        Raises:
            IndexError: There is no such name.
        """
        if isinstance(index, slice):
            first, last, step = index.indices(len(self))
            if step == 1 and first < last:
                return [os.fsdecode(name) for name in self._part(first, last)]
            return [self[number] for number in range(first, last, step)]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(index)
        begin, end = self.ends[place : place + 2].tolist()
        return os.fsdecode(self.block[begin:end].tobytes())

    def __eq__(self, other: Any) -> bool:
        """Tell whether another list holds the same names in the same order."""
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other))  # noqa: B905

    __hash__ = None  # type: ignore[assignment]  # as of a list
