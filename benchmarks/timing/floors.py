"""operations, bytes -> the least time that some work can take on this machine, measured by what does nothing else."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing.clock import Ratio, of_processor, seconds_of

SCALED = 2**28
"""Bytes of the tensor that is scaled: more than the caches of a processor hold."""


def flops_of(work: Callable[[], object]) -> int:
    """Return the floating point operations of the products and convolutions of some work, backward included.

    Args:
        work: What is counted.
    """
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def beside_a_product(row: Ratio, flops: int) -> Ratio:
    """Return a row that says which share of its time a matrix product of as many operations would need.

    Args:
        row: What was measured.
        flops: Operations of its products and convolutions.
    """
    peak = _product()
    share = flops / row.seconds / peak
    reached = (
        f"{flops / 1e9:.0f} GFLOP at {share:.0%} of the {peak / 1e9:.0f} GFLOP/s of a matrix product, "
        f"which would need {flops / peak:.2f} of the {row.seconds:.2f} s"
    )
    return _noted(row, reached)


def beside_memory(row: Ratio, moved: int) -> Ratio:
    """Return a row that says which share of its time memory would need for as many bytes.

    Meant for work whose data don't fit into the caches, and which computes little.

    Args:
        row: What was measured.
        moved: Bytes that it must read and write, each once.
    """
    rate = _memory()
    reached = (
        f"{moved / 1e6:.0f} MB read and written, at {moved / row.seconds / rate:.0%} of the {rate / 1e9:.1f} GB/s of a "
        f"tensor scaled in place, which would need {1e3 * moved / rate:.0f} of the {1e3 * row.seconds:.0f} ms"
    )
    return replace(_noted(row, reached), bytes=moved)


def _noted(row: Ratio, words: str) -> Ratio:
    return replace(row, note=f"{row.note}; {words}" if row.note else words)


@cache
def _product(side: int = 1024) -> float:
    """Return the operations per second of the best of some matrix products."""
    one, other = torch.randn(side, side), torch.randn(side, side)
    return 2 * side**3 / min(seconds_of(lambda: one @ other, of_processor) for _ in range(20))


@cache
def _memory() -> float:
    """Return the bytes per second, read and written, of the best of some passes over a tensor.

    In place, because a copy also reads the lines that it writes, which nobody counts.
    """
    tensor = torch.zeros(SCALED // 4)
    return 2 * SCALED / min(seconds_of(lambda: tensor.mul_(1.5), of_processor) for _ in range(10))
