"""ways to do some work -> seconds of each round: each in a process of its own, one after the other.

What a process has allocated and freed before decides how fast it allocates, so that two ways inside one process change
each other's times. Here each has a process, the worker of a loader, and waits while the others work.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.synchronize import Semaphore

from torch.utils.data import DataLoader, Dataset

from benchmarks.timing.clock import of_processor, seconds_of
from ssldet.data.children import end_with_parent

WARMING = 4
"""Rounds that do not count: decoders are loaded in the first, and memory is asked for in all of them."""


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One way to do the work.

    Attributes:
        prepare: Returns, inside the worker, a function that does the work of one round.
        set_up: What the worker calls when it starts, with its number.
    """

    prepare: Callable[[], Callable[[], object]]
    set_up: Callable[[int], None] | None = None


class _Rounds(Dataset[float]):
    def __init__(self, prepare: Callable[[], Callable[[], object]], count: int, turns: tuple[Semaphore, Semaphore]):
        self.prepare, self.count, self.turns = prepare, count, turns

    @cached_property
    def way(self) -> Callable[[], object]:
        end_with_parent()
        return self.prepare()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> float:
        own, following = self.turns
        own.acquire()
        try:
            return seconds_of(self.way, of_processor)
        finally:
            following.release()


def in_workers(workers: Sequence[Worker], repeats: int, warming: int = WARMING) -> list[tuple[float, ...]]:
    """Return the seconds of the processor that each way took in each round, after some that warm up.

    Args:
        workers: The ways.
        repeats: Rounds that count.
        warming: Rounds before these.
    """
    turns = [multiprocessing.Semaphore(int(place == 0)) for place in range(len(workers))]
    loaders = []
    for place, worker in enumerate(workers):
        own, following = turns[place], turns[(place + 1) % len(turns)]
        rounds = _Rounds(worker.prepare, warming + repeats, (own, following))
        loaders.append(DataLoader(rounds, batch_size=None, num_workers=1, worker_init_fn=worker.set_up))
    return [*zip(*loaders, strict=True)][warming:]
