"""Worker -> batch -> main process: through shared memory, or through a pipe where that can't be had.

PyTorch hands tensors over in shared memory and passes their file descriptors through a socket. Where `/dev/shm` is
small, as in containers, or few files may be open, its queue prints an error and drops the batch, for which the main
process then waits for ever. Here a worker that can't hand over a batch notes it and ends, which the main process sees.
"""

import io
import multiprocessing
import os
import pickle
import resource
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.context import ForkContext
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # looked at only
"""Where Linux keeps it."""

_WIDTH = 5
"""Numbers of one row of the record: process id, image or -1, and changes so far; process id of a worker that could not
hand over a batch, and why. Two threads of a worker write them, each its own."""

SHARED_FROM = 2**16
"""Bytes of a tensor that are handed over faster in shared memory than through a pipe."""
_IN_NUMPY = {torch.bool, torch.uint8, torch.int32, torch.int64, torch.float32, torch.float64}
"""Kinds of numbers that NumPy has too."""

REASONS = ("", "the system refused shared memory or a file", "they can't be pickled")
"""Why a batch could not be handed over, by the number in the record; the first where none was refused."""


class ReadingRecord:
    """The image that each worker is reading, in memory that outlives the worker.

    Attributes:
        left_out: Images that no worker may read again.
    """

    def __init__(self, workers: int) -> None:
        """Allocate one row per worker.

        Args:
            workers: Number of workers.
        """
        self.left_out: set[int] = set()
        self._rows: Any = multiprocessing.RawArray("q", [-1, -1, 0, -1, 0] * workers) if workers else []
        self._seen, self._since = list(self._rows), time.monotonic()

    def begin(self, index: int) -> None:
        """Note that this worker begins to read an image."""
        worker = get_worker_info()
        if worker is not None:
            row = worker.id * _WIDTH
            self._rows[row : row + 2] = [os.getpid(), index]
            self._rows[row + 2] += 1

    def end(self) -> None:
        """Note that this worker has read its image."""
        self.begin(-1)

    def refuse(self, error: Exception) -> None:
        """Note that this worker could not hand over a batch.

        Args:
            error: What handing over raised.
        """
        worker = get_worker_info()
        if worker is not None:
            row = worker.id * _WIDTH + 3
            self._rows[row : row + 2] = [os.getpid(), 1 if isinstance(error, OSError | RuntimeError) else 2]

    def read_by(self, process_ids: list[int]) -> list[int]:
        """Return the images that these workers were reading when they died."""
        return [index for process_id, index, *_ in self._each() if process_id in process_ids and index >= 0]

    def refused_by(self, process_ids: list[int]) -> str:
        """Say why one of these workers could not hand over a batch; empty where all could."""
        return REASONS[max((why for *_, process_id, why in self._each() if process_id in process_ids), default=0)]

    def still_for(self) -> float:
        """Return for how many seconds no worker has begun or ended reading, as far as earlier calls can tell."""
        rows = list(self._rows)
        if rows != self._seen:
            self._seen, self._since = rows, time.monotonic()
        return time.monotonic() - self._since

    def wake(self) -> None:
        """Count the time without a change from now on."""
        self._since = time.monotonic()

    def _each(self) -> list[list[int]]:
        rows = list(self._rows)
        return [rows[start : start + _WIDTH] for start in range(0, len(rows), _WIDTH)]


class WorkerContext(ForkContext):
    """Makes forked workers whose queues end them when they can't hand over a batch."""

    def __init__(self, reading: ReadingRecord) -> None:
        """Take where a worker notes that.

        Args:
            reading: The record of the workers.
        """
        self._reading = reading

    def Queue(self, maxsize: int = 0) -> Any:  # noqa: N802  # the name that DataLoader calls
        """Return a queue of this kind."""
        return _Queue(maxsize, self, self._reading)


class _Queue(Queue):  # type: ignore[type-arg]
    def __init__(self, maxsize: int, context: ForkContext, reading: ReadingRecord) -> None:
        super().__init__(maxsize, ctx=context)
        self._reading = reading

    def _on_queue_feeder_error(self, error: Exception, item: object) -> None:
        """End a worker that can't send; called in its sending thread by `multiprocessing`, which made this to override.

        The main process sends numbers only.
        """
        self._reading.refuse(error)
        os._exit(1)


@dataclass(frozen=True)
class Packed:
    """What a worker returns, as bytes, which need neither shared memory nor file descriptors, and tensors that do.

    Attributes:
        content: Pickled.
        tensors: What stands apart from it.
    """

    content: bytes
    tensors: tuple[Tensor, ...] = ()

    def unpacked(self) -> Any:
        """Return what was packed."""
        unpickler = pickle.Unpickler(io.BytesIO(self.content))  # noqa: S301  # of our own worker processes
        unpickler.persistent_load = self.tensors.__getitem__  # type: ignore[method-assign]
        return unpickler.load()


@dataclass(frozen=True)
class Packing:
    """Samples of one batch -> what a worker returns, packed.

    A tensor in shared memory costs a file descriptor that is sent through a socket, and so a fifth of a millisecond of
    the training process, however small it is; a batch holds several for each image.

    Attributes:
        gather: Samples of one batch -> what a worker returns.
        shared_from: Bytes from which on tensors are handed over in shared memory; `None` shares none.
    """

    gather: Callable[[list[Any]], Any]
    shared_from: int | None

    def __call__(self, samples: list[Any]) -> Packed:
        """Gather and pack."""
        file = io.BytesIO()
        pickler = _Pickler(file, self.shared_from)
        pickler.dump(self.gather(samples))
        return Packed(file.getvalue(), tuple(pickler.tensors))


class _Pickler(pickle.Pickler):
    """Leaves out large tensors, and writes others as NumPy's arrays, for which pickle needs a fraction of the time."""

    def __init__(self, file: io.BytesIO, shared_from: int | None) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._shared_from = shared_from
        self.tensors: list[Tensor] = []

    def persistent_id(self, obj: Any) -> int | None:
        """Return the place of a tensor that is left out."""
        if type(obj) is not Tensor or self._shared_from is None or obj.nbytes < self._shared_from:
            return None
        self.tensors.append(obj)
        return len(self.tensors) - 1

    def reducer_override(self, obj: Any) -> Any:
        """Return how to make a tensor again."""
        if type(obj) is not Tensor or obj.requires_grad or obj.dtype not in _IN_NUMPY:
            return NotImplemented
        return torch.from_numpy, (obj.numpy(),)


def resources() -> str:
    """Say how much there is of what workers need: shared memory and open files."""
    said = []
    with suppress(OSError):
        memory = shutil.disk_usage(SHARED_MEMORY)
        said.append(f"{SHARED_MEMORY} has {memory.free / 2**20:.0f} of {memory.total / 2**20:.0f} MiB free")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    with suppress(OSError):
        said.append(f"{len(list(Path('/proc/self/fd').iterdir()))} of {limit} files are open")
    return "; ".join(said)


REMEDY = "enlarge /dev/shm (docker run --shm-size=8g), raise ulimit -n, or lower data.workers"
"""What to do where workers can't hand over batches."""
