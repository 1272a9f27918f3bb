"""Sample -> Sample: scale an image at random, and cut a window of limited size out (Ghiasi et al. 2021).

Objects are seen at many sizes and every batch costs about the same, since no image is larger than the window. The
published form pads small images to the window; here the batch pads them.
"""

import math
from dataclasses import dataclass, replace

import torch

from ssldet.data.geometry import crop, flip, resize
from ssldet.data.photometric import Jitter, apply_jitter, draw_jitter
from ssldet.types import Sample


@dataclass(frozen=True, kw_only=True)
class ScaleJitter:
    """Mirror, scale and stretch an image, cut a window out, and change its brightness, contrast and saturation.

    Attributes:
        side: Longest side of the result in pixels; an image whose long side has this length is scaled by one.
        scale: Smallest and largest factor; its logarithm is drawn uniformly.
        stretch: Largest factor by which one side is stretched against the other.
        flip: Probability of a flip.
        least_left: Share of an object that must lie inside the window; those with less are no longer targets.
        colour: Strength of the change of colours, as in `Jitter`; zero leaves them alone.
    """

    side: int
    scale: tuple[float, float]
    stretch: float = 1.0
    flip: float = 0.5
    least_left: float = 0.0
    colour: float = 0.0

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Draw the changes and apply them."""
        drawn = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
        if drawn[0] < self.flip:
            sample = flip(sample)
        height, width = sample.image.shape[1:]
        low, high = map(math.log, self.scale)
        factor = self.side / max(height, width) * math.exp(low + drawn[1] * (high - low))
        narrower = math.exp((drawn[2] - 0.5) * math.log(self.stretch))
        whole = (height * factor / narrower, width * factor * narrower)
        size = [max(1, min(self.side, round(length))) for length in whole]
        # The window is cut before resizing, which then touches no pixel in vain.
        rows, columns = (
            min(before, max(1, round(before * length / all_of_it)))
            for before, length, all_of_it in zip((height, width), size, whole, strict=True)
        )
        top, left = int(drawn[3] * (height - rows + 1)), int(drawn[4] * (width - columns + 1))
        sample = crop(sample, top, left, rows, columns, least_left=self.least_left)
        return self._coloured(resize(sample, (size[0], size[1])), generator)

    def _coloured(self, sample: Sample, generator: torch.Generator) -> Sample:
        if not self.colour:
            return sample
        strength = Jitter(
            brightness=self.colour, contrast=self.colour, saturation=self.colour, hue=0.0, grey=0.0, blur=0.0
        )
        drawn = draw_jitter(1, strength, generator)
        changed = apply_jitter(sample.image[None], drawn)[0]
        if sample.image.is_floating_point():
            return replace(sample, image=changed)
        return replace(sample, image=(changed * 255).round().to(sample.image.dtype))
