"""tensors by name, what is expected -> what does not fit: the one strict comparison before anything is loaded."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ssldet.errors import suggest

COMPARED = 10
"""Largest number of unknown names that are compared with the missing ones."""
LARGEST = 1.8e19
"""Largest weight that can be computed with: the square of a larger one is not finite in 32 bits."""


def misfits(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Return one line for each tensor that is missing, not expected, or of another shape.

    A few tensors that are not expected are compared with the missing ones, which may be the same under similar names.

    Args:
        expected: What there must be; only names and shapes count.
        given: What there is.
    """
    absent = [name for name in expected if name not in given]
    foreign = [name for name in given if name not in expected]
    # Many names are those of another model, and comparing each with each takes long.
    similar = absent if len(foreign) <= COMPARED else []
    missing = [f"{name} is missing" for name in absent]
    unknown = [f"{name} is unknown here{suggest(name, similar)}" for name in foreign]
    reshaped = [
        f"{name} has shape {list(given[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in given and given[name].shape != tensor.shape
    ]
    return missing + unknown + reshaped


def infinite(given: Mapping[str, Tensor]) -> list[str]:
    """Return one line for each tensor that holds a number which is not finite, or becomes so as soon as it is used.

    Args:
        given: Tensors by name.
    """
    wrong = []
    for name, tensor in given.items():
        if not bool(torch.isfinite(tensor).all()):
            wrong.append(f"{name} is not finite")
        elif tensor.is_floating_point() and tensor.numel() and float(tensor.abs().max()) > LARGEST:
            wrong.append(f"{name} holds {float(tensor.abs().max()):.3g}, too large to compute with")
    return wrong


def few(lines: Sequence[str], shown: int = 5) -> str:
    """Return the first lines as one, and how many are left out.

    Args:
        lines: What is wrong.
        shown: How many are said.
    """
    more = f"; and {len(lines) - shown} more" if len(lines) > shown else ""
    return "; ".join(lines[:shown]) + more
