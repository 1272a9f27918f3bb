"""Sample -> Sample: change pixels strongly and geometry not at all, so that both views have the same boxes."""

import math
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from jaxtyping import UInt8
from torch import Tensor

from ssldet.data.photometric import Jitter, apply_jitter, draw_jitter
from ssldet.recipe import Within
from ssldet.types import Sample


@dataclass(frozen=True, kw_only=True)
class Erasing:
    """Rectangles that are painted over in one colour (Zhong et al. 2020, DeVries and Taylor 2017).

    Attributes:
        most: Largest number of rectangles; the number is drawn, zero included.
        smallest: Smallest area of a rectangle, as a share of the image.
        largest: Largest area, likewise.
        aspect: Largest ratio of its sides.
    """

    most: Annotated[int, Within(0, 100)] = 3
    smallest: Annotated[float, Within(0, 1)] = 0.01
    largest: Annotated[float, Within(0, 1)] = 0.1
    aspect: Annotated[float, Within(1, 10)] = 3.0

    def problems(self) -> list[str]:
        """Return contradictions between fields, one line each."""
        if self.smallest > self.largest:
            return [f"smallest: {self.smallest:g} is above largest {self.largest:g}; swap them"]
        return []

    def __call__(self, image: UInt8[Tensor, "3 H W"], generator: torch.Generator) -> UInt8[Tensor, "3 H W"]:
        """Draw rectangles and colours, and return a copy with them."""
        image = image.clone()
        height, width = image.shape[1:]
        for _ in range(int(torch.randint(self.most + 1, (), generator=generator))):
            drawn = torch.rand(7, generator=generator, dtype=torch.float64)
            area = self.smallest + float(drawn[0]) * (self.largest - self.smallest)
            stretch = self.aspect ** float(drawn[1] - 0.5)
            rows = min(height, max(1, round(height * math.sqrt(area) * stretch)))
            columns = min(width, max(1, round(width * math.sqrt(area) / stretch)))
            top, left = int(drawn[2] * (height - rows + 1)), int(drawn[3] * (width - columns + 1))
            colour = (255 * drawn[4:]).to(image.dtype)
            image[:, top : top + rows, left : left + columns] = colour[:, None, None]
        return image


@dataclass(frozen=True, kw_only=True)
class StrongView:
    """Jitter colours, drop them, blur, and erase rectangles: what a student sees where its teacher sees the image.

    Attributes:
        jitter: Photometric changes.
        erasing: Rectangles to paint over.
    """

    jitter: Jitter
    erasing: Erasing

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Draw the changes and apply them; the size and all targets stay."""
        table = draw_jitter(1, self.jitter, generator)
        changed = apply_jitter(sample.image[None] / 255, table)[0]
        pixels = (changed * 255).round().to(sample.image.dtype)
        return replace(sample, image=self.erasing(pixels, generator))
