"""words -> seed: every draw in the house is a pure function of what it is for, so nothing random needs saving."""

import hashlib

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
