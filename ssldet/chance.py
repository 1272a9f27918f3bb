"""words -> seed: every random draw is a pure function of its purpose, so no random state needs saving.

What a task draws while it computes a step, such as which queries are masked, is drawn for the images of all ranks, and
each rank takes the rows of its own: two ranks draw what one would. Dropout alone is drawn by each rank for itself.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ssldet import ranks

_step: dict[str, int] = {}
"""Seed of what the ranks draw together in the present step; empty where one process draws alone."""
_together: dict[torch.device, torch.Generator] = {}
"""What they draw from, on each device."""


def seed_of(*words: int | str) -> int:
    """Return a 63-bit seed; the same words give the same seed on any machine and in any process.

    Args:
        words: What the draw is for, such as `(seed, "views", epoch, index)`.
    """
    digest = hashlib.blake2b("\x1f".join(map(str, words)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*words: int | str) -> torch.Generator:
    """Return a CPU generator seeded by `seed_of`."""
    return torch.Generator().manual_seed(seed_of(*words))


def reseed(*words: int | str) -> None:
    """Seed PyTorch's global generators, which dropout draws from, on the CPU and on the accelerator in use.

    Args:
        words: What the draws are for, as in `seed_of`.
    """
    seed = seed_of(*words)
    # Not torch.manual_seed: it visits every kind of device there is, which costs milliseconds.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # PyTorch's gap
        torch.cuda.manual_seed(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


def begin_step(seed: int, step: int, part: int) -> None:
    """Seed all that is drawn while one part of a step is computed.

    One process draws everything from the global generators. Several draw what concerns their images together, as that
    one would, and dropout each from numbers of its own.

    Args:
        seed: Of the run.
        step: Optimiser steps done.
        part: Part of the step.
    """
    _step.clear()
    _together.clear()
    if ranks.connected():
        _step["seed"] = seed_of(seed, "step", 0, step, part)
        reseed(seed, "dropout", ranks.rank(), step, part)
    else:
        reseed(seed, "step", 0, step, part)


def uniform(rows: int, *shape: int, device: torch.device) -> Float[Tensor, "B *N"]:
    """Return numbers in 0..1 for each image of this rank's batch; they don't depend on the number of ranks.

    Args:
        rows: Images of this rank's batch; every rank must ask for the same number.
        shape: Shape of what is drawn for one image.
        device: Where to draw.
    """
    everywhere = torch.rand(rows * ranks.world(), *shape, device=device, generator=_shared(device))
    first = ranks.rank() * rows if ranks.connected() else 0
    return everywhere[first : first + rows]


def permutation(count: int, device: torch.device) -> Int[Tensor, " N"]:
    """Return an order that is the same on all ranks.

    Args:
        count: How many numbers to order.
        device: Where to draw.
    """
    return torch.randperm(count, device=device, generator=_shared(device))


def _shared(device: torch.device) -> torch.Generator | None:
    """Return the generator that the ranks have in common in this step; `None` stands for PyTorch's global one."""
    if not _step or not ranks.connected():
        return None
    if device not in _together:
        _together[device] = torch.Generator(device).manual_seed(_step["seed"])
    return _together[device]


@contextmanager
def lent(source: torch.Generator) -> Iterator[None]:
    """Let code that draws from the global generators of Python, NumPy and PyTorch draw from this one.

    Meant for transforms of other libraries. What they draw is a function of the generator, and the state of the global
    generators is restored afterwards. Not for code that draws on an accelerator.

    Args:
        source: Advances by one draw, however much the code draws.
    """
    seed = int(torch.randint(2**32, (), generator=source))
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        # Not torch.manual_seed: it visits every kind of device there is, which costs milliseconds.
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(pytorch)
