"""Source -> Source whose training items may show several images: mosaic (Bochkovskiy et al. 2020) and mixup.

A mosaic joins four images at a corner, so that a batch holds more objects, smaller and in unusual surroundings. Mixup
(Zhang et al. 2018) lays a second image over the first, half transparent, with the objects of both.
"""

from dataclasses import replace

import torch

from ssldet.boxes import to_absolute, to_normalised
from ssldet.data.geometry import crop, resize
from ssldet.source import Source, WrappedSource
from ssldet.types import Sample, Targets, concatenate

CORNER = (0.3, 0.7)
"""Where the four images of a mosaic meet: smallest and largest share of each side."""
SHARE = (0.4, 0.6)
"""Share of the first image in a mixed pixel, smallest and largest."""


class MixedImages(WrappedSource):
    """Draws some training items from several images; read by number, an image is as it is."""

    def __init__(self, source: Source, *, mosaic: float, mixup: float, longest: int, least_left: float) -> None:
        """Wrap.

        Args:
            source: The images.
            mosaic: Probability that an item is a mosaic.
            mixup: Probability that another image, or another mosaic, is laid over an item.
            longest: Longest side of a mosaic in pixels; it has the aspect of its first image.
            least_left: Share of an object that must be left for it to be a target.
        """
        super().__init__(source)
        self.mosaic, self.mixup, self.longest, self.least_left = mosaic, mixup, longest, least_left

    def draw(self, index: int, generator: torch.Generator) -> Sample:
        """Read one image, and perhaps others, as the generator decides.

        Raises:
            UnreadableError: One of the images can't be decoded.
        """
        sample = self._perhaps_mosaic(index, generator)
        if _number(generator) >= self.mixup:
            return sample
        other = self._perhaps_mosaic(self._another(generator), generator)
        low, high = SHARE
        return _laid_over(sample, other, low + (high - low) * _number(generator))

    def _perhaps_mosaic(self, index: int, generator: torch.Generator) -> Sample:
        sample = super().draw(index, generator)
        if _number(generator) >= self.mosaic:
            return sample
        others = [super(MixedImages, self).draw(self._another(generator), generator) for _ in range(3)]
        height, width = sample.image.shape[1:]
        scale = min(1.0, self.longest / max(height, width))
        size = (max(2, round(height * scale)), max(2, round(width * scale)))
        low, high = CORNER
        down, across = (min(side - 1, max(1, round(side * (low + (high - low) * _number(generator))))) for side in size)
        return self._joined([sample, *others], size, (down, across), generator)

    def _joined(
        self, samples: list[Sample], size: tuple[int, int], corner: tuple[int, int], generator: torch.Generator
    ) -> Sample:
        """Fill the four parts of a canvas, each with a window of one image, whose objects move with it."""
        (height, width), (down, across) = size, corner
        canvas = samples[0].image.new_empty(samples[0].image.shape[0], height, width)
        spans = [
            (top, bottom, left, right)
            for top, bottom in ((0, down), (down, height))
            for left, right in ((0, across), (across, width))
        ]
        placed = []
        for sample, (top, bottom, left, right) in zip(samples, spans, strict=True):
            part = _window(sample, (bottom - top, right - left), self.least_left, generator)
            canvas[:, top:bottom, left:right] = part.image
            placed.append(_placed(part.targets, (top, bottom, left, right), size))
        first = samples[0]
        masks = first.targets.masks is not None
        return replace(first, image=canvas, targets=concatenate(placed, masks=masks))

    def _another(self, generator: torch.Generator) -> int:
        return int(torch.randint(len(self), (), generator=generator))


def _window(sample: Sample, size: tuple[int, int], least_left: float, generator: torch.Generator) -> Sample:
    """Return the window of an image that has the aspect of a rectangle, drawn along the longer side, at its size."""
    height, width = sample.image.shape[1:]
    scale = min(height / size[0], width / size[1])
    rows, columns = max(1, min(height, round(size[0] * scale))), max(1, min(width, round(size[1] * scale)))
    top = int(_number(generator) * (height - rows + 1))
    left = int(_number(generator) * (width - columns + 1))
    return resize(crop(sample, top, left, rows, columns, least_left=least_left), size)


def _placed(targets: Targets, span: tuple[int, int, int, int], size: tuple[int, int]) -> Targets:
    """Return the targets of a part of a canvas as targets of the canvas."""
    top, bottom, left, right = span
    boxes = to_absolute(targets.boxes, (bottom - top, right - left)) + torch.tensor([left, top, left, top])
    masks = targets.masks
    if masks is not None:
        whole = torch.zeros(len(targets), *size, dtype=torch.bool)
        whole[:, top:bottom, left:right] = masks
        masks = whole
    return replace(targets, boxes=to_normalised(boxes, size), masks=masks)


def _laid_over(sample: Sample, other: Sample, share: float) -> Sample:
    """Mix the pixels of two images, the second at the size of the first; the objects of both are targets."""
    size = (int(sample.image.shape[1]), int(sample.image.shape[2]))
    other = resize(other, size)
    mixed = share * sample.image.float() + (1 - share) * other.image.float()
    pixels = mixed if sample.image.is_floating_point() else mixed.round().to(torch.uint8)
    return replace(sample, image=pixels, targets=concatenate([sample.targets, other.targets]))


def _number(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator, dtype=torch.float64))
