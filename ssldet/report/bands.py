"""pixels of any channels -> pixels to look at: three bands as red, green and blue, stretched to what they hold."""

from collections.abc import Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor

from ssldet.errors import ConfigError
from ssldet.types import Pixels

DARK, BRIGHT = 0.02, 0.98
"""Shares of the values of a band below which they are black and above which they are full."""
MOST = 1_000_000
"""Values of a band from which these shares are found."""


def seen(image: Pixels, bands: Sequence[int] = ()) -> UInt8[Tensor, "3 H W"]:
    """Return an image as RGB; one that is RGB already stays as it is.

    Args:
        image: Pixels.
        bands: Numbers, from 1, of the bands that become red, green and blue, or of one that becomes grey; empty takes
            the first three, or the first alone where there are fewer.

    Raises:
        ConfigError: There is no such band.
    """
    if not image.is_floating_point():
        return image
    chosen = tuple(bands) or ((1, 2, 3) if image.shape[0] >= 3 else (1,))
    require_bands(chosen, image.shape[0])
    picked = image[[band - 1 for band in (chosen * 3 if len(chosen) == 1 else chosen)]].float()
    if not picked.numel():
        return picked.byte()
    stretched = torch.stack([_stretched(band) for band in picked])
    return (255 * stretched).round().byte()


def require_bands(bands: Sequence[int], channels: int) -> None:
    """Let bands pass if images have them.

    Args:
        bands: Numbers from 1.
        channels: Channels of the images.

    Raises:
        ConfigError: They have not, or it is neither one band nor three.
    """
    if len(bands) not in {0, 1, 3} or not all(1 <= band <= channels for band in bands):
        raise ConfigError(f"bands: {tuple(bands)} must be one number or three, from 1 to {channels}")


def _stretched(band: Tensor) -> Tensor:
    values = band.flatten()[:: max(1, band.numel() // MOST)]
    low, high = torch.quantile(values, torch.tensor([DARK, BRIGHT], dtype=values.dtype)).tolist()
    return ((band - low) / (high - low)).clamp(0, 1) if high > low else band.clamp(0, 1)
