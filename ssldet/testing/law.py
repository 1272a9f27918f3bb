"""What all laws are written with."""

import torch


def require(kept: bool, broken: str) -> None:
    """Stop unless a law is kept.

    Args:
        kept: Whether it is.
        broken: What to say if not.

    Raises:
        AssertionError: The law is broken.
    """
    if not kept:
        raise AssertionError(broken)


def seeded(seed: int) -> torch.Generator:
    """Return a new generator."""
    return torch.Generator().manual_seed(seed)
