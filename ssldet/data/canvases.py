"""Batch of one rank -> the same images on the canvas that the batch of all ranks would have.

A network sees padding, since its convolutions reach across the border of an image. With a canvas of its own, each rank
would compute something else than one process that has all images of the step.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch.nn.functional as F

from ssldet import ranks
from ssldet.data import problems
from ssldet.types import Batch, Targets


def of_all_ranks(batch: Batch) -> Batch:
    """Return the batch on a canvas as high and wide as the largest of any rank; the batch itself with one process.

    Every rank must call this for the same part of the same step.

    Args:
        batch: On the device.
    """
    if not ranks.connected():
        return batch
    sides = ranks.largest(list(_sides(batch)), batch.images.device)
    return _enlarged(batch, iter(sides))


def _sides(batch: Batch) -> Iterator[int]:
    """Yield height and width of a batch's canvas, then those of the batches in its problem."""
    yield from batch.images.shape[-2:]
    if batch.problem is not None:
        for part in problems.batches(batch.problem):
            yield from _sides(part)


def _enlarged(batch: Batch, sides: Iterator[int]) -> Batch:
    """Return a batch on the canvases of the given sides, in the order of `_sides`."""
    height, width = (next(sides) - side for side in batch.images.shape[-2:])
    problem = batch.problem
    if problem is not None:
        problem = problems.change_batches(problem, lambda part: _enlarged(part, sides))
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
