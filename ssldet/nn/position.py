"""padding mask -> position encoding: the place of each cell in its own image as sines and cosines (DETR, A.4)."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class SinePosition(nn.Module):
    """Sine encoding of y, then x, each relative to the valid part of its image. Has no parameters.

    Attributes:
        width: Length of the encoding; half for each axis.
        temperature: Ratio of the longest wavelength to the shortest.
        inset: What is subtracted from the number of each cell, the first being 1: 0 in DETR, 0.5 in Deformable DETR,
            where it stands for the centre of the cell.
    """

    def __init__(self, width: int, temperature: float = 10_000.0, *, inset: float = 0.0) -> None:
        """Set the size and the wavelengths of the encoding.

        Args:
            width: Length of the encoding, a multiple of 4: sine and cosine for two axes.
            temperature: Ratio of the longest wavelength to the shortest; the default is DETR's.
            inset: What is subtracted from the number of each cell: 0 in DETR, 0.5 in Deformable DETR.
        """
        super().__init__()
        self.width, self.temperature, self.inset = width, temperature, inset

    def forward(self, padding: Bool[Tensor, "B h w"]) -> Float[Tensor, "B h w D"]:
        """Encode every cell.

        Args:
            padding: True where a cell holds no image.
        """
        # Counted in whole numbers: exact, and the same on any device.
        valid = (~padding).long()
        return torch.cat([self._encode(valid.cumsum(1), 1), self._encode(valid.cumsum(2), 2)], dim=-1)

    def _encode(self, count: Tensor, axis: int) -> Tensor:
        """Turn 1, 2, 3, … along an axis into angles of one full turn, and those into interleaved sines and cosines."""
        last = count.narrow(axis, -1, 1)
        angle = (count.float() - self.inset) / (last + 1e-6) * (2 * math.pi)
        pairs = self.width // 4
        exponent = torch.arange(pairs, dtype=torch.float32, device=count.device) / pairs
        waves = angle.unsqueeze(-1) / self.temperature**exponent
        return torch.stack([waves.sin(), waves.cos()], dim=-1).flatten(-2)
