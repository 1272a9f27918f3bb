"""numbers of segments -> PNG: the form in which COCO keeps them, R + 256 G + 65536 B in each pixel, 0 for none."""

from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from ssldet.disk import naming


def write_segments(segments: Int[Tensor, "H W"], path: Path) -> None:
    """Write a PNG.

    Args:
        segments: Numbers from 0, below 256³.
        path: Where to write.
    """
    with naming(path):
        picture_of_segments(segments).save(path, format="PNG")


def picture_of_segments(segments: Int[Tensor, "H W"]) -> Image.Image:
    """Return what the PNG shows.

    Args:
        segments: Numbers from 0, below 256³.
    """
    numbers = segments.cpu().numpy().astype(np.int64)
    colours = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], axis=-1).astype(np.uint8)
    return Image.fromarray(colours)
