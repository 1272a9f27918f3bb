"""places -> batches, read by worker processes that are shielded from signals, watched, and replaced when they die.

A worker can be killed by the system (out of memory) or by a file that crashes a decoder, or wait for ever for a file.
None of it ends the run: the number of the lost batch is known, so new workers start at that batch and make it again. An
image over which workers have died twice is left out like any other unreadable image. Workers that can't hand over their
batches in shared memory send them through pipes; where none can be started, this process reads.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.process import BaseProcess
from multiprocessing.util import get_temp_dir
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ssldet.data.children import end_with_parent
from ssldet.data.files import nothing_readable
from ssldet.data.memory import keep_freed_memory
from ssldet.data.sharing import REMEDY, SHARED_FROM, Packed, Packing, ReadingRecord, WorkerContext, resources
from ssldet.errors import DataError, SetupError, SsldetError
from ssldet.types import Batch, Skipped

log = logging.getLogger(__name__)

RESTARTS = 6
"""Restarts of the workers in a row, without one batch between them, after which the loader gives up."""
DEATHS = 2
"""Deaths over one image, without one batch between them, after which it is left out; one may have been chance."""
DEADLINE = 240.0
"""Seconds for one image. Two deadlines, after which it is left out, are shorter than ranks wait for each other."""
POLL = 10.0
"""Seconds between two looks at whether workers that are waited for still read."""

WorkerResult = Batch | tuple[Skipped, ...] | SsldetError
"""What a worker returns for one batch: the batch, or its images if none can be read, or the error that ends the run."""


class ResumableSampler(Sampler[list[tuple[int, int]]], ABC):
    """A batch sampler that can begin at any batch.

    Attributes:
        start: Number of the batch with which the next iteration begins.
    """

    start: int = 0

    @abstractmethod
    def __len__(self) -> int:
        """Number of batches, wherever an iteration begins."""

    @abstractmethod
    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield the places (epoch, image) of one batch after the other, from `start` on."""


class SteadyLoader(DataLoader[Batch]):
    """A DataLoader that restarts its workers when one of them dies.

    Attributes:
        waited: Seconds that the consumer has spent waiting for batches, since the loader was made.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        places: ResumableSampler,
        gather: Callable[[list[Any]], WorkerResult],
        reading: ReadingRecord,
        workers: int,
        name: Callable[[int], str] = str,
    ) -> None:
        """Set up the loader; no process starts before iteration.

        Args:
            dataset: Place -> sample.
            places: Places of each batch.
            gather: Samples of one batch -> what a worker returns.
            reading: Where the workers note what they read.
            workers: Number of workers; zero reads in this process.
            name: Number of an image -> what to call it in messages.
        """
        super().__init__(
            dataset,
            batch_sampler=places,
            collate_fn=Packing(gather, SHARED_FROM) if workers else gather,
            num_workers=workers,
            worker_init_fn=_prepare_worker,
            # Tasks written in a notebook must reach the workers, which only a fork grants. The workers never touch
            # an accelerator, and PyTorch holds them to one thread.
            multiprocessing_context=WorkerContext(reading) if workers and sys.platform == "linux" else None,
            timeout=POLL if workers else 0,
            # The seed of the workers is drawn from here and not from the global stream that the model uses.
            generator=torch.Generator().manual_seed(0),
        )
        self.waited = 0.0
        self.lost: tuple[Skipped, ...] = ()
        self.places, self.reading, self.name = places, reading, name
        self._gather = gather

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # a generator does all that is asked of an iterator
        """Yield the batches in order, and restart workers that die."""
        pending: tuple[Skipped, ...] = ()
        delivered = 0
        for result in self._results():
            if isinstance(result, SsldetError):
                raise result
            if isinstance(result, tuple):
                pending += result
                continue
            batch = replace(result, skipped=pending + result.skipped) if pending else result
            pending = ()
            delivered += 1
            # Here and not in a thread of PyTorch's: it could not be stopped while a dead worker holds its queue.
            yield batch.pin_memory() if torch.cuda.is_available() else batch
        if pending and not delivered:
            raise DataError(nothing_readable({entry.path: entry.reason for entry in pending}))
        self.lost = pending
        for entry in pending:
            log.warning("left out %s: %s", entry.path, entry.reason)

    def _results(self) -> Iterator[WorkerResult]:
        """Yield what workers return, in order; restarted workers go on at the batch that was lost."""
        received, restarts = 0, 0
        deaths: Counter[int] = Counter()
        while True:
            self.places.start = received
            workers, results = self._start_workers()
            try:
                for result in self._watched(workers, results):
                    received, restarts = received + 1, 0
                    deaths.clear()
                    yield result.unpacked() if isinstance(result, Packed) else result
                return
            except _CannotShareError as refusal:
                self._use_pipes(refusal)
            except _WorkerDiedError as death:
                restarts += 1
                self._report_dead_workers(workers, deaths, death, final=restarts > RESTARTS)
            finally:
                _stop_workers(workers)

    def _start_workers(self) -> tuple[list[BaseProcess], Iterator[WorkerResult | Packed]]:
        """Start workers; where the system refuses, this process reads from here on.

        PyTorch's own SIGCHLD handler is removed: it raises at any point, even inside a step.
        """
        # Made here, so that workers inherit this folder; one that they made themselves would outlive their sudden end.
        get_temp_dir()
        others = set(multiprocessing.active_children())
        handler = signal.getsignal(signal.SIGCHLD) if _can_watch() else None
        try:
            if isinstance(context := self.multiprocessing_context, WorkerContext):
                # Tried here first: an iterator of PyTorch's that could not make its queues fails again when deleted.
                [context.Queue() for _ in range(self.num_workers + 1)]
            results: Iterator[Any] = super().__iter__()
        except OSError as error:
            _stop_workers([child for child in multiprocessing.active_children() if child not in others])
            if not self.num_workers:
                raise
            log.warning(
                "loader workers can't be started (%s; %s): the main process reads from here on, which is slower; %s",
                error.strerror or error, resources(), REMEDY,
            )  # fmt: skip
            self.num_workers, self.timeout, self.collate_fn = 0, 0, self._gather
            return [], super().__iter__()
        finally:
            if handler is not None:
                signal.signal(signal.SIGCHLD, handler)
        return [child for child in multiprocessing.active_children() if child not in others], results

    def _watched(
        self, workers: list[BaseProcess], results: Iterator[WorkerResult | Packed]
    ) -> Iterator[WorkerResult | Packed]:
        """Yield the results.

        Raises:
            _WorkerDiedError: A worker died while one was awaited, or read one image for too long.
            _CannotShareError: A batch could not be handed over.
        """
        while True:
            begin = time.perf_counter()
            self.reading.wake()
            try:
                result = self._next(workers, results)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - begin
            yield result

    def _next(self, workers: list[BaseProcess], results: Iterator[WorkerResult | Packed]) -> WorkerResult | Packed:
        while True:
            try:
                with _raising_on_death(workers):
                    return next(results)
            except (StopIteration, _WorkerDiedError):
                raise
            except Exception as error:
                # Whatever a dead worker leaves behind: a closed socket, half a message, PyTorch's RuntimeError.
                if _any_ended(workers):
                    raise _WorkerDiedError from error
                if not workers or "in DataLoader worker process" in str(error):
                    raise
                if "timed out" not in str(error):
                    raise _CannotShareError(str(error)) from error
                if self.reading.still_for() > DEADLINE:
                    raise self._stuck(workers) from error

    def _stuck(self, workers: list[BaseProcess]) -> Exception:
        """Return what it means that no worker has begun or ended an image for too long."""
        if self.reading.read_by([worker.pid for worker in workers if worker.pid is not None]):
            return _WorkerDiedError(f"nothing read for {DEADLINE:.0f} seconds")
        return _CannotShareError(f"no batch for {DEADLINE:.0f} seconds, although no worker reads")

    def _use_pipes(self, refusal: Exception) -> None:
        """Let new workers send bytes through pipes.

        Raises:
            SetupError: They do so already.
        """
        why = f"loader workers can't hand over batches ({refusal}; {resources()})"
        if self.collate_fn == (through_pipes := Packing(self._gather, None)):
            raise SetupError(f"{why}; {REMEDY}, or set data.workers=0") from refusal.__cause__
        log.warning("%s: batches go through pipes from here on, which is slower; %s", why, REMEDY)
        self.collate_fn = through_pipes

    def _report_dead_workers(
        self, workers: list[BaseProcess], deaths: Counter[int], death: Exception, *, final: bool
    ) -> None:
        """Log which workers died while reading which images, and leave out images that killed workers repeatedly.

        Raises:
            DataError: This was the last restart (`final`).
            SetupError: They died because they can't hand over batches, not even through pipes.
        """
        ended = [worker for worker in workers if worker.exitcode is not None]
        dead = workers if str(death) else ended  # those that are stuck live
        process_ids = [worker.pid for worker in dead if worker.pid is not None]
        full = any(worker.exitcode == -signal.SIGBUS for worker in ended)
        if why := "shared memory is full" if full else self.reading.refused_by(process_ids):
            self._use_pipes(_CannotShareError(why))
            return
        images = self.reading.read_by(process_ids)
        deaths.update(set(images))  # once per restart: two workers may read the same image
        self.reading.left_out.update(index for index in images if deaths[index] >= DEATHS)
        how = str(death) or ", ".join(sorted({_describe_exit(worker.exitcode) for worker in dead})) or "no exit code"
        where = " while reading " + ", ".join(map(self.name, images)) if images else ""
        if final:
            raise DataError(
                f"loader workers keep dying ({how}){where}; lower data.workers or data.batch_size if memory is short, "
                "or set data.workers=0 to see the error itself"
            ) from death.__cause__
        log.warning("a loader worker died (%s)%s; starting again from the same batch", how, where)


class _WorkerDiedError(Exception):
    """A worker has died, or is stuck, which the message says; the batch that it was making is lost."""


class _CannotShareError(Exception):
    """A batch could not be handed over by the worker that made it; says why."""


@contextmanager
def _raising_on_death(workers: list[BaseProcess]) -> Iterator[None]:
    """Raise as soon as one of these workers dies; inside this block only, where no step is half done."""
    armed = True

    def check(*_: object) -> None:
        # Raises once only: a signal may come while the handler is being taken off, and leave it on for good.
        # A worker that ends with 0 was asked to.
        nonlocal armed
        if armed and any(worker.exitcode for worker in workers):
            armed = False
            raise _WorkerDiedError

    check()
    if not workers or not _can_watch():
        yield
        return
    before = signal.signal(signal.SIGCHLD, check)
    try:
        yield
    finally:
        armed = False
        signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)


def _can_watch() -> bool:
    """Tell whether this thread may handle SIGCHLD."""
    return hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()


def _stop_workers(workers: list[BaseProcess]) -> None:
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join(timeout=5)
        if worker.exitcode is None:
            worker.kill()


def _any_ended(workers: list[BaseProcess]) -> bool:
    """Tell whether a worker has ended; one that is just ending gets the time to do so."""
    if workers and all(worker.exitcode is None for worker in workers):
        time.sleep(0.2)
    return any(worker.exitcode is not None for worker in workers)


def _describe_exit(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    causes = {
        "SIGKILL": "as the system does when memory runs out",
        "SIGBUS": "shared memory is full; enlarge /dev/shm",
        "SIGSEGV": "a crash in foreign code",
    }
    return f"{name}: {causes[name]}" if name in causes else name


def _prepare_worker(_: int) -> None:
    keep_freed_memory()
    _shield_from_signals()
    end_with_parent()  # last: its thread inherits which signals are blocked


def _shield_from_signals() -> None:
    """Shield a worker from signals that a scheduler sends to the whole job: the main process must save first."""
    for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_on_sigterm_from, args=(os.getppid(),), daemon=True).start()


def _exit_on_sigterm_from(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
