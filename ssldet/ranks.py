"""ranks -> one decision: the few things that processes of one run tell each other; with one process all are no-ops."""

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TypeVar, cast

import torch
from torch import distributed

from ssldet.errors import DistributedError, SsldetError

T = TypeVar("T")

TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for a silent one; longer than any save or evaluation of rank 0."""


def connected() -> bool:
    """Whether this process talks to others."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def rank() -> int:
    """Return this process's number; right from the start, because launchers put it into the environment."""
    if connected():
        return distributed.get_rank()
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if (value := os.environ.get(name, "")).isdigit():
            return int(value)
    return 0


def world() -> int:
    """Return the number of processes that are connected."""
    return distributed.get_world_size() if connected() else 1


def launched() -> tuple[int, int] | None:
    """Return (processes on this machine, machines) where a launcher such as torchrun started us, else None."""
    everywhere, here = os.environ.get("WORLD_SIZE", ""), os.environ.get("LOCAL_WORLD_SIZE", "")
    if not (everywhere.isdigit() and here.isdigit()):
        return None
    return int(here), max(1, int(everywhere) // int(here))


def reduce_mean(values: torch.Tensor) -> torch.Tensor:
    """Return the mean over all ranks."""
    if connected():
        values = values.clone()
        distributed.all_reduce(values)
        values /= distributed.get_world_size()
    return values


def totals(numbers: Sequence[float], device: torch.device) -> list[float]:
    """Return the sum of each number over all ranks; waits for the device only where there are several.

    Args:
        numbers: This rank's; every rank has as many.
        device: Where the ranks talk to one another.
    """
    if not connected():
        return list(numbers)
    own, attached = len(numbers), _attached.pop("sent", [])
    # Each rank fills its own places of a row that holds zeros elsewhere, so that the sum holds the numbers of all.
    slots = [0.0] * (len(attached) * distributed.get_world_size())
    first = len(attached) * distributed.get_rank()
    slots[first : first + len(attached)] = map(float, attached)
    everywhere = torch.tensor([*numbers, *slots], dtype=torch.float64, device=device)
    distributed.all_reduce(everywhere)
    summed = cast(list[float], everywhere.tolist())
    if attached:
        _attached["received"] = list(map(int, summed[own:]))
    return summed[:own]


_attached: dict[str, list[int]] = {}
"""`sent`: what is attached to the next sum; `received`: what came with the last one, rank after rank."""


def enclose(numbers: Sequence[int]) -> None:
    """Let numbers travel with the next call of `totals`, at no exchange of their own.

    Args:
        numbers: This rank's; every rank encloses as many at the same time.
    """
    _attached.clear()
    _attached["sent"] = list(numbers)


def enclosed() -> list[list[int]]:
    """Return the numbers that each rank enclosed, in the order of the ranks; nothing where no sum was made since."""
    came, count = _attached.get("received", []), world()
    _attached.clear()
    each = len(came) // count
    return [came[number * each : (number + 1) * each] for number in range(count)] if came else []


def largest(numbers: Sequence[int], device: torch.device) -> list[int]:
    """Return the largest of each number over all ranks; waits for the device only where there are several.

    Args:
        numbers: This rank's; every rank has as many.
        device: Where the ranks talk to one another.
    """
    if not connected():
        return list(numbers)
    return cast(list[int], _with_maxima(torch.tensor(numbers, device=device)).tolist())


def share(values: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of what all ranks hold: every world-th row; all rows where it talks to no other.

    Args:
        values: The same on every rank.
    """
    return values[distributed.get_rank() :: distributed.get_world_size()] if connected() else values


def any_rank(flags: torch.Tensor) -> list[bool]:
    """Return which flags are set on at least one rank; one exchange and one wait for the device, however many flags.

    Args:
        flags: A few numbers on the device, zero for "no".
    """
    raised = _with_maxima(flags.clone()) if connected() else flags
    return [bool(flag) for flag in raised.tolist()]


def _with_maxima(numbers: torch.Tensor) -> torch.Tensor:
    """Write the largest of each number over all ranks into the tensor, and return it."""
    distributed.all_reduce(numbers, op=distributed.ReduceOp.MAX)
    return numbers


def gather_objects(value: T) -> list[T]:
    """Return what every rank has, in the order of the ranks, on every rank."""
    if not connected():
        return [value]
    everywhere: list[T] = [value] * distributed.get_world_size()
    distributed.all_gather_object(everywhere, value)
    return everywhere


def together(work: Callable[[], T]) -> list[T]:
    """Return what the work gave on every rank; an error on any rank is raised on all, so that none waits for it.

    Args:
        work: Done once on every rank.
    """
    if not connected():
        return [work()]
    result: T | None = None
    problem: SsldetError | None = None
    try:
        result = work()
    except SsldetError as error:
        problem = error
    except Exception as error:  # another rank may not know this error's class
        problem = SsldetError(f"{type(error).__name__}: {error}")
    everywhere = gather_objects((result, problem))
    if problems := [theirs for _, theirs in everywhere if theirs is not None]:
        raise problems[0]
    return cast(list[T], [value for value, _ in everywhere])


def require_agreement(facts: Mapping[str, str]) -> None:
    """Let a run start only if all ranks are about to do the same.

    Args:
        facts: What must be equal: fingerprints, versions, seed.

    Raises:
        DistributedError: Names the fact, the ranks and the remedy.
    """
    everywhere = gather_objects(dict(facts))
    for name in facts:
        values = [theirs.get(name) for theirs in everywhere]
        for number, value in enumerate(values):
            if value != values[0]:
                raise DistributedError(
                    f"rank {number} has another {name} than rank 0 ({value} instead of {values[0]}); start all ranks "
                    "with the same command on the same files"
                )
