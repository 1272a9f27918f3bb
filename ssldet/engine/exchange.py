"""Batches of one rank -> the same on the canvas of all ranks, and what ranks decide together, in no further exchange.

A step needs two exchanges in any case: gradients, and the number of boxes, which the criterion adds up before it
matches. With the latter travels what the ranks must know of each other: how large the images of the next part are,
whether somebody asked to stop, and whether a checkpoint is written. So a batch is read one part before it is computed.
Tasks without a criterion, and the first part of a run, exchange these numbers by themselves.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ssldet import ranks
from ssldet.data import canvases
from ssldet.types import Batch


class Exchange:
    """The batches of a rank, and what all ranks say of a step."""

    def __init__(self, stream: Iterator[Batch], device: torch.device, flags: Callable[[], Sequence[bool]]) -> None:
        """Begin before the first batch.

        Args:
            stream: Batches of this rank, on the CPU.
            device: Where they are computed.
            flags: What this rank has to say, asked for whenever it can be sent; as many on every rank.
        """
        self._stream, self._device, self._flags = stream, device, flags
        self._next: Batch | None = None
        self._sides: list[int] = []
        self._told: list[bool] = []

    def parts(self, count: int) -> Iterator[Batch]:
        """Yield the parts of a step on the device; each is to be computed before the next one is asked for.

        Args:
            count: How many.
        """
        self._told = []
        for _ in range(count):
            batch = self._next or next(self._stream, None)
            if batch is None:
                return
            here = batch.to(self._device, non_blocking=True)
            if not ranks.connected():
                yield here
                continue
            self._next = next(self._stream, None)
            ahead = [] if self._next is None else canvases.sides(self._next)
            here = canvases.enlarged(here, self._sides or ranks.largest(canvases.sides(here), self._device))
            ranks.enclose([*map(int, self._flags()), *ahead])
            yield here
            self._take(ranks.enclosed(), len(ahead))

    def agreed(self, bad: Float[Tensor, ""]) -> list[bool]:
        """Return whether the step is to be left out, and each flag that is up on any rank; waits for the device.

        Args:
            bad: 1 if the step is to be left out, which every rank finds of the gradient that they share.
        """
        if self._told:
            return [bool(bad), *self._told]
        return ranks.any_rank(torch.stack([bad, *(torch.full_like(bad, flag) for flag in self._flags())]))

    def _take(self, rows: list[list[int]], ahead: int) -> None:
        """Take in what the ranks have told; nothing where no sum carried it."""
        most = [max(column) for column in zip(*rows, strict=True)]
        flags, self._sides = most[: len(most) - ahead], most[len(most) - ahead :]
        if flags:
            before = self._told or [False] * len(flags)
            self._told = [bool(flag) or raised for flag, raised in zip(flags, before, strict=True)]
