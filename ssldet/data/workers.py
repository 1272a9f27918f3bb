"""places -> batches, by processes that may die: a DataLoader whose workers are shielded, watched and replaced.

A worker can be killed by the system (out of memory) or by a file that crashes a decoder. Neither costs the run: the
batch that was lost is known by its number, so a new crew starts exactly there and makes the same batch again. An image
over which two crews have died is left out like any other bad image.
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
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from ssldet.errors import DataError, SsldetError
from ssldet.types import Batch, Skipped

log = logging.getLogger(__name__)

RESTARTS = 6
"""New crews in a row, without one batch between them, after which the loader gives up."""
DEATHS = 2
"""Deaths over one image, without one batch between them, after which it is left out; one may have been chance."""

Outcome = Batch | tuple[Skipped, ...] | SsldetError
"""What a worker hands over: a batch, the images of a batch of which none could be read, or why it can't go on."""


class Plan(Sampler[list[tuple[int, int]]], ABC):
    """Places of each batch, in order.

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


class Desk:
    """What each worker is reading, in memory that outlives the worker.

    Attributes:
        left_out: Images that no worker may touch again.
    """

    def __init__(self, workers: int) -> None:
        """Lay out one row (process id, image) a worker.

        Args:
            workers: Number of workers.
        """
        self.left_out: set[int] = set()
        self._rows = torch.full((workers, 2), -1)
        self._rows.share_memory_()  # type: ignore[no-untyped-call]  # PyTorch's gap

    def enter(self, index: int) -> None:
        """Note that this worker is about to read an image."""
        worker = get_worker_info()
        if worker is not None:
            self._rows[worker.id] = torch.tensor([os.getpid(), index])

    def leave(self) -> None:
        """Note that this worker has come through."""
        self.enter(-1)

    def read_by(self, process_ids: list[int]) -> list[int]:
        """Return the images that these workers were reading when they died."""
        return [index for process_id, index in self._rows.tolist() if process_id in process_ids and index >= 0]


class SteadyLoader(DataLoader[Batch]):
    """A DataLoader that survives its workers.

    Attributes:
        waited: Seconds that the consumer has spent waiting for batches, since the loader was made.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        plan: Plan,
        gather: Callable[[list[Any]], Outcome],
        desk: Desk,
        workers: int,
        name: Callable[[int], str] = str,
    ) -> None:
        """Set up the loader; no process starts before iteration.

        Args:
            dataset: Place -> sample.
            plan: Places of each batch.
            gather: Samples of one batch -> what is handed over.
            desk: Where the workers note what they read.
            workers: Number of workers; zero reads in this process.
            name: Number of an image -> what to call it in messages.
        """
        super().__init__(
            dataset,
            batch_sampler=plan,
            collate_fn=gather,
            num_workers=workers,
            worker_init_fn=_settle_in,
            # Tasks written in a notebook must reach the workers, which only a fork grants. The workers never touch
            # an accelerator, and PyTorch holds them to one thread.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            # The seed of the workers is drawn from here and not from the global stream that the model uses.
            generator=torch.Generator().manual_seed(0),
        )
        self.waited = 0.0
        self.plan, self.desk, self.name = plan, desk, name

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # a generator does all that is asked of an iterator
        """Yield the batches of the plan, whatever happens to the workers."""
        pending: tuple[Skipped, ...] = ()
        delivered = 0
        for outcome in self._outcomes():
            if isinstance(outcome, SsldetError):
                raise outcome
            if isinstance(outcome, tuple):
                pending += outcome
                continue
            batch = replace(outcome, skipped=pending + outcome.skipped) if pending else outcome
            pending = ()
            delivered += 1
            # Here and not in a thread of PyTorch's: it could not be stopped while a dead worker holds its queue.
            yield batch.pin_memory() if torch.cuda.is_available() else batch
        if pending and not delivered:
            raise DataError(f"none of the {len(pending)} images can be read; the first is {pending[0].path}")
        for entry in pending:
            log.warning("left out %s: %s", entry.path, entry.reason)

    def _outcomes(self) -> Iterator[Outcome]:
        """Yield what the crews hand over, in order; a new crew goes on where the last one died."""
        received, restarts = 0, 0
        deaths: Counter[int] = Counter()
        while True:
            self.plan.start = received
            crew, outcomes = self._hire()
            try:
                for outcome in self._watched(crew, outcomes):
                    received, restarts = received + 1, 0
                    deaths.clear()
                    yield outcome
                return
            except _CrewLostError as loss:
                restarts += 1
                self._mourn(crew, deaths, final=restarts > RESTARTS, cause=loss.__cause__)
            finally:
                _dismiss(crew)

    def _hire(self) -> tuple[list[BaseProcess], Iterator[Outcome]]:
        """Start workers. PyTorch's own watch is taken off: it raises wherever the program is, even inside a step."""
        # Made here, so that workers inherit this folder; one that they made themselves would outlive their sudden end.
        get_temp_dir()
        others = set(multiprocessing.active_children())
        watch = signal.getsignal(signal.SIGCHLD) if _can_watch() else None
        outcomes: Iterator[Any] = super().__iter__()
        if watch is not None:
            signal.signal(signal.SIGCHLD, watch)
        return [child for child in multiprocessing.active_children() if child not in others], outcomes

    def _watched(self, crew: list[BaseProcess], outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
        while True:
            begin = time.perf_counter()
            try:
                with _watch(crew):
                    outcome = next(outcomes)
            except StopIteration:
                return
            except _CrewLostError:
                raise
            except Exception as error:
                # Whatever a dead worker leaves behind: a closed socket, half a message, PyTorch's RuntimeError.
                if _anyone_gone(crew):
                    raise _CrewLostError from error
                raise
            finally:
                self.waited += time.perf_counter() - begin
            yield outcome

    def _mourn(
        self, crew: list[BaseProcess], deaths: Counter[int], *, final: bool, cause: BaseException | None
    ) -> None:
        """Say who died over what; leave out an image that keeps killing; give up if nothing helps."""
        dead = [worker for worker in crew if worker.exitcode is not None]
        images = self.desk.read_by([worker.pid for worker in dead if worker.pid is not None])
        deaths.update(set(images))  # once a crew: two workers may read the same image
        self.desk.left_out.update(index for index in images if deaths[index] >= DEATHS)
        how = ", ".join(sorted({_epitaph(worker.exitcode) for worker in dead})) or "without a word"
        where = " while reading " + ", ".join(map(self.name, images)) if images else ""
        if final:
            raise DataError(
                f"loader workers keep dying ({how}){where}; lower data.workers or data.batch_size if memory is short, "
                "or set data.workers=0 to see the error itself"
            ) from cause
        log.warning("a loader worker died (%s)%s; starting again from the same batch", how, where)


class _CrewLostError(Exception):
    """A worker is gone, and with it what it was making."""


@contextmanager
def _watch(crew: list[BaseProcess]) -> Iterator[None]:
    """Raise as soon as a worker of this crew dies; only here, where nothing is half done."""
    armed = True

    def look(*_: object) -> None:
        # Raises once only: a signal may come while the handler is being taken off, and leave it on for good.
        # A worker that ends with 0 was asked to.
        nonlocal armed
        if armed and any(worker.exitcode for worker in crew):
            armed = False
            raise _CrewLostError

    look()
    if not crew or not _can_watch():
        yield
        return
    before = signal.signal(signal.SIGCHLD, look)
    try:
        yield
    finally:
        armed = False
        signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)


def _can_watch() -> bool:
    return hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()


def _dismiss(crew: list[BaseProcess]) -> None:
    for worker in crew:
        worker.terminate()
    for worker in crew:
        worker.join(timeout=5)
        if worker.exitcode is None:
            worker.kill()


def _anyone_gone(crew: list[BaseProcess]) -> bool:
    """Tell whether a worker has ended; one that is just ending gets the time to do so."""
    if crew and all(worker.exitcode is None for worker in crew):
        time.sleep(0.2)
    return any(worker.exitcode is not None for worker in crew)


def _epitaph(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    causes = {
        "SIGKILL": "as the system does when memory runs out",
        "SIGBUS": "shared memory is full; enlarge /dev/shm",
        "SIGSEGV": "a crash in foreign code",
    }
    return f"{name}: {causes[name]}" if name in causes else name


def _settle_in(_: int) -> None:
    """Shield a worker from signals that a scheduler sends to the whole job: the main process must save first."""
    for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_only, args=(os.getppid(),), daemon=True).start()


def _obey_only(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
