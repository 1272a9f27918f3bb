"""Batch of one rank -> the same images on the canvas that the batch of all ranks would have.

A network sees padding, since its convolutions reach across the border of an image. With a canvas of its own, each rank
would compute something else than one process that has all images of the step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch.nn.functional as F

from ssldet.data import problems
from ssldet.types import Batch, Targets


def sides(batch: Batch) -> list[int]:
    """Return height and width of a batch's canvas, then those of the batches in its problem.

    Args:
        batch: On any device.
    """
    own = list(batch.images.shape[-2:])
    parts = [] if batch.problem is None else problems.batches(batch.problem)
    return own + [side for part in parts for side in sides(part)]


def enlarged(batch: Batch, most: Sequence[int]) -> Batch:
    """Return a batch on larger canvases.

    Args:
        batch: On the device.
        most: The largest of any rank of each of `sides`.
    """
    return _enlarged(batch, iter(most))


def _enlarged(batch: Batch, most: Iterator[int]) -> Batch:
    """Return a batch on the canvases of the given sides."""
    height, width = (next(most) - side for side in batch.images.shape[-2:])
    problem = batch.problem
    if problem is not None:
        problem = problems.change_batches(problem, lambda part: _enlarged(part, most))
    if not (height or width):
        return batch if problem is batch.problem else replace(batch, problem=problem)
    beyond = (0, width, 0, height)
    return replace(
        batch,
        images=F.pad(batch.images, beyond),
        padding=F.pad(batch.padding, beyond, value=True),
        targets=[_on_canvas(targets, beyond) for targets in batch.targets],
        problem=problem,
    )


def _on_canvas(targets: Targets, beyond: tuple[int, ...]) -> Targets:
    return targets if targets.masks is None else replace(targets, masks=F.pad(targets.masks, beyond))
