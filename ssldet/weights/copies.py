"""names, what marks a model -> the copies of it in a file, and the copy to take: averaged weights before others.

Training programs save a model inside something else: data parallelism, a Lightning module, an exponential moving
average. Each adds a prefix to all names, and one file may hold the trained weights and their average.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ssldet.errors import CheckpointError
from ssldet.states import few

log = logging.getLogger(__name__)

AVERAGED = {"ema", "averaged", "average", "avg", "swa", "teacher"}
"""Words of a key or prefix under which programs save averaged weights, which are those that they evaluate."""
LAST = {"student", "momentum", "key", "target"}
"""Words of a copy that is taken only if there is no other."""
COUNTERS = {"n_averaged", "steps", "step", "updates", "num_updates", "decay", "initted"}
"""Last words of the names of numbers that an average keeps beside its weights."""
STATISTICS = "running_mean"
"""Tensor by which a batch norm is recognised. Programs that average parameters alone leave out fixed batch norms."""


def is_averaged(label: str) -> bool:
    """Return whether a key or prefix stands for averaged weights.

    Args:
        label: Such as `model_ema` or `ema.module.`.
    """
    return not AVERAGED.isdisjoint(_words(label))


def is_counter(name: str) -> bool:
    """Return whether a name is that of a number which an average keeps beside its weights.

    Args:
        name: Name of a tensor.
    """
    return name.rpartition(".")[2] in COUNTERS


def prefixes(names: Iterable[str], mark: re.Pattern[str], body: re.Pattern[str]) -> list[str]:
    """Return the prefixes of all copies of a model, the one to take first.

    Args:
        names: Names of all tensors of a file.
        mark: Matches the names that only this model has, with their prefix as the first group.
        body: Matches names that a copy under a prefix must also have, in the same way; other models contain parts with
            the names of `mark`.
    """
    names = list(names)
    marked = {found[1] for name in names if (found := mark.match(name))}
    whole = {found[1] for name in names if (found := body.match(name))}
    return sorted((prefix for prefix in marked if not prefix or prefix in whole), key=lambda one: (_rank(one), one))


def take(state: Mapping[str, Tensor], mark: re.Pattern[str], body: re.Pattern[str], path: Path) -> dict[str, Tensor]:
    """Return one copy of a model under its own names, and log which one it is and what is left out.

    Args:
        state: All tensors of a file.
        mark: As in `prefixes`.
        body: As in `prefixes`.
        path: The file, for messages.

    Returns:
        The tensors of the copy; all tensors if nothing is marked.

    Raises:
        CheckpointError: Several copies could be meant, and they differ.
    """
    found = prefixes(state, mark, body)
    if not found:
        return dict(state)
    copies = {prefix: _under(state, prefix, found) for prefix in found}
    ours, *others = found
    equals = [other for other in others if _rank(other) == _rank(ours)]
    if different := [other for other in equals if not _same(copies[ours], copies[other])]:
        raise CheckpointError(
            f"{path}: holds this model more than once, under {ours or 'no prefix'!r} and {different[0]!r}, with other "
            "weights; save the one that you mean by itself"
        )
    chosen = copies[ours]
    if others:
        others_named = ", ".join(repr(other) if other else "no prefix" for other in others)
        kind = "averaged weights" if is_averaged(ours) else "weights"
        log.warning("%s: took the %s under %r, not those under %s", path, kind, ours, others_named)
        chosen = completed(chosen, copies[others[0]], path)
    outside = [name for name in state if not name.startswith(tuple(found)) and not is_counter(name)]
    if outside:
        log.warning("%s: left out %d tensors outside %r: %s", path, len(outside), ours, few(outside, 3))
    return chosen


def completed(chosen: Mapping[str, Tensor], other: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return a copy with the batch norms that it lacks from another copy, and log their number.

    Nothing is added if anything else than batch norms is missing, since the copies are of different models then.

    Args:
        chosen: Tensors of the copy.
        other: Tensors of the other copy by the same names.
        path: The file, for the message.
    """
    lacking = {
        name: value
        for name, value in other.items()
        if name not in chosen and f"{name.rpartition('.')[0]}.{STATISTICS}" in other
    }
    if not lacking or not other.keys() <= chosen.keys() | lacking.keys():
        return dict(chosen)
    log.warning("%s: took %d tensors of batch norms, which the average lacks, from the model", path, len(lacking))
    return dict(chosen) | lacking


def _under(state: Mapping[str, Tensor], prefix: str, every: Iterable[str]) -> dict[str, Tensor]:
    """Return the tensors under a prefix, without those of copies under longer ones."""
    inner = tuple(other for other in every if other != prefix and other.startswith(prefix))
    return {
        name.removeprefix(prefix): value
        for name, value in state.items()
        if name.startswith(prefix) and not (inner and name.startswith(inner)) and not is_counter(name)
    }


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def _rank(prefix: str) -> int:
    if is_averaged(prefix):
        return 0
    return 1 if LAST.isdisjoint(_words(prefix)) else 2


def _words(label: str) -> set[str]:
    return {word.lower() for word in re.split(r"[._-]|(?<=[a-z])(?=[A-Z])", label)}
