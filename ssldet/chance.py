"""words -> seed: every random draw is a pure function of its purpose, so no random state needs saving."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


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
