"""list[Sample] -> Batch: pad images and masks to one canvas and remember the padding; and back to single sizes."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, UInt8
from torch import Tensor

from ssldet.types import Batch, Sample, Targets


def collate(samples: Sequence[Sample]) -> Batch:
    """Gather samples; the canvas is as high as the highest and as wide as the widest image.

    Args:
        samples: At least one. Patches, jitter and crops must have the same shapes in all samples, or be absent in all.

    Raises:
        ValueError: Some samples carry patches, jitter or crops of another shape than the others.
    """
    images, padding = _pad([sample.image for sample in samples])
    return Batch(
        images=images,
        padding=padding,
        sizes=torch.tensor([sample.image.shape[1:] for sample in samples]),
        targets=[_on_canvas(sample.targets, images) for sample in samples],
        keys=[sample.key for sample in samples],
        original_sizes=torch.tensor([sample.original_size for sample in samples]),
        patches=_stack("patches", samples, [sample.patches for sample in samples]),
        jitter=_stack("jitter", samples, [sample.jitter for sample in samples]),
        crops=_crops(samples),
        skipped=tuple(skipped for sample in samples for skipped in sample.skipped),
    )


def of_one_size(batch: Batch) -> Iterator[tuple[list[int], Batch]]:
    """Part a batch into smaller ones whose images have one size, so that no canvas is padded.

    Args:
        batch: Images of any sizes.

    Yields:
        Places in the batch, and what is there.
    """
    places = defaultdict(list)
    for place, (height, width) in enumerate(batch.sizes.tolist()):
        places[height, width].append(place)
    for (height, width), rows in places.items():
        targets = [batch.targets[row] for row in rows]
        yield (
            rows,
            replace(
                batch,
                images=batch.images[rows, :, :height, :width],
                padding=batch.padding[rows, :height, :width],
                sizes=batch.sizes[rows],
                targets=[_off_canvas(one, height, width) for one in targets],
                keys=[batch.keys[row] for row in rows],
                original_sizes=batch.original_sizes[rows],
                patches=None if batch.patches is None else batch.patches[rows],
                jitter=None if batch.jitter is None else batch.jitter[rows],
            ),
        )


def _off_canvas(targets: Targets, height: int, width: int) -> Targets:
    return targets if targets.masks is None else replace(targets, masks=targets.masks[:, :height, :width])


def _pad(images: Sequence[UInt8[Tensor, "3 _ _"]]) -> tuple[UInt8[Tensor, "B 3 H W"], Bool[Tensor, "B H W"]]:
    height = max(image.shape[1] for image in images)
    width = max(image.shape[2] for image in images)
    canvas = torch.zeros(len(images), 3, height, width, dtype=torch.uint8)
    padding = torch.ones(len(images), height, width, dtype=torch.bool)
    for row, image in enumerate(images):
        canvas[row, :, : image.shape[1], : image.shape[2]] = image
        padding[row, : image.shape[1], : image.shape[2]] = False
    return canvas, padding


def _on_canvas(targets: Targets, images: UInt8[Tensor, "B 3 H W"]) -> Targets:
    if targets.masks is None:
        return targets
    height, width = (canvas - side for canvas, side in zip(images.shape[2:], targets.masks.shape[1:], strict=True))
    return replace(targets, masks=F.pad(targets.masks, (0, width, 0, height))) if height or width else targets


def _crops(samples: Sequence[Sample]) -> list[Tensor]:
    sizes = max(len(sample.crops) for sample in samples)
    padded = [(*sample.crops, *[None] * (sizes - len(sample.crops))) for sample in samples]
    stacked = [_stack("crops", samples, parts) for parts in zip(*padded, strict=True)]
    return [crops for crops in stacked if crops is not None]


def _stack(name: str, samples: Sequence[Sample], parts: Sequence[Tensor | None]) -> Tensor | None:
    shapes = [None if part is None else tuple(part.shape) for part in parts]
    for sample, shape in zip(samples, shapes, strict=True):
        if shape != shapes[0]:
            raise ValueError(
                f"{name} of one batch must have one shape, but {samples[0].key!r} has {shapes[0]} and {sample.key!r} "
                f"has {shape}; the views of the task must give every image the same number and size"
            )
    present = [part for part in parts if part is not None]
    return torch.stack(present) if present else None
