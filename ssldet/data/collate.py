"""list[Sample] -> Batch: pad images and masks to one canvas and note the padding; and split batches."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from ssldet.data import problems
from ssldet.types import Batch, ManyPixels, Sample, Targets


def collate(samples: Sequence[Sample], multiple: int = 1) -> Batch:
    """Gather samples; the canvas is as high as the highest and as wide as the widest image.

    Args:
        samples: At least one; their problems must be of one kind and shape.
        multiple: Height and width of the canvas are multiples of this many pixels.

    Raises:
        ValueError: Some samples carry a problem of another kind or shape than the others.
    """
    images, padding = _pad([sample.image for sample in samples], multiple)
    return Batch(
        images=images,
        padding=padding,
        sizes=torch.tensor([sample.image.shape[1:] for sample in samples]),
        targets=[_on_canvas(sample.targets, images) for sample in samples],
        keys=[sample.key for sample in samples],
        original_sizes=torch.tensor([sample.original_size for sample in samples]),
        problem=problems.gather(samples, partial(collate, multiple=multiple)),
        skipped=tuple(skipped for sample in samples for skipped in sample.skipped),
    )


def take(batch: Batch, rows: Sequence[int]) -> Batch:
    """Return some images of a batch, on a canvas no larger than they need.

    Args:
        batch: Images of any sizes.
        rows: Numbers of the images within the batch.
    """
    chosen = list(rows)
    sizes = batch.sizes[chosen]
    height, width = (int(side) for side in sizes.amax(0))
    return replace(
        batch,
        images=batch.images[chosen, :, :height, :width],
        padding=batch.padding[chosen, :height, :width],
        sizes=sizes,
        targets=[_off_canvas(batch.targets[row], height, width) for row in chosen],
        keys=[batch.keys[row] for row in chosen],
        original_sizes=batch.original_sizes[chosen],
        problem=None if batch.problem is None else problems.take(batch.problem, chosen, take),
    )


def of_one_size(batch: Batch) -> Iterator[tuple[list[int], Batch]]:
    """Split a batch into smaller ones whose images have one size, so that no canvas is padded.

    Args:
        batch: Images of any sizes.

    Yields:
        Numbers of the images within the batch, and a batch of these images.
    """
    places = defaultdict(list)
    for place, (height, width) in enumerate(batch.sizes.tolist()):
        places[height, width].append(place)
    for rows in places.values():
        yield rows, take(batch, rows)


def _off_canvas(targets: Targets, height: int, width: int) -> Targets:
    return targets if targets.masks is None else replace(targets, masks=targets.masks[:, :height, :width])


def _pad(images: Sequence[Tensor], multiple: int) -> tuple[ManyPixels, Bool[Tensor, "B H W"]]:
    height, width = (-(-max(image.shape[axis] for image in images) // multiple) * multiple for axis in (1, 2))
    canvas = torch.zeros(len(images), images[0].shape[0], height, width, dtype=images[0].dtype)
    padding = torch.ones(len(images), height, width, dtype=torch.bool)
    for row, image in enumerate(images):
        canvas[row, :, : image.shape[1], : image.shape[2]] = image
        padding[row, : image.shape[1], : image.shape[2]] = False
    return canvas, padding


def _on_canvas(targets: Targets, images: ManyPixels) -> Targets:
    if targets.masks is None:
        return targets
    height, width = (canvas - side for canvas, side in zip(images.shape[2:], targets.masks.shape[1:], strict=True))
    return replace(targets, masks=F.pad(targets.masks, (0, width, 0, height))) if height or width else targets
