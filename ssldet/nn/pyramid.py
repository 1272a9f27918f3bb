"""backbone levels -> maps of one width, and embeddings of levels: the input of Deformable DETR's transformer."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

NORM_GROUPS = 32
"""Groups of channels that are normalised together; they divide the width."""


class Pyramid(nn.Module):
    """Projects each level of a backbone, and makes coarser ones, each of half the size of the one before.

    Parameters are `levels.0.0` (convolution) and `levels.0.1` (norm), …: the names after `input_proj` in the authors'
    files.
    """

    def __init__(self, channels: Sequence[int], width: int, *, extra: int) -> None:
        """Create the weights.

        Args:
            channels: Channels of each level of the backbone, from fine to coarse.
            width: Width of the maps.
            extra: Number of coarser levels. The first is computed from the last level, not from its projection.
        """
        super().__init__()
        self.given = len(channels)
        convolutions = [nn.Conv2d(before, width, kernel_size=1) for before in channels]
        coarser = [channels[-1], *[width] * extra]
        convolutions += [
            nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1) for before, after in pairwise(coarser)
        ]
        for convolution in convolutions:
            nn.init.xavier_uniform_(convolution.weight)
            assert convolution.bias is not None
            nn.init.zeros_(convolution.bias)
        self.levels = nn.ModuleList(
            nn.Sequential(convolution, nn.GroupNorm(NORM_GROUPS, width)) for convolution in convolutions
        )

    def forward(self, features: Sequence[Float[Tensor, "B _ _ _"]]) -> list[Float[Tensor, "B D _ _"]]:
        """Return the maps, from fine to coarse.

        Args:
            features: Levels of the backbone, as many as there were channels.
        """
        maps: list[Tensor] = [level(feature) for level, feature in zip(self.levels, features, strict=False)]
        before = features[-1]
        for level in self.levels[self.given :]:
            before = level(before)
            maps.append(before)
        return maps


class LevelEmbedding(nn.Module):
    """One vector per level, added to the position encoding of its cells, which does not depend on the level."""

    def __init__(self, levels: int, width: int) -> None:
        """Draw the vectors.

        Args:
            levels: Number of levels.
            width: Width of the transformer.
        """
        super().__init__()
        self.weight = nn.Parameter(torch.randn(levels, width))

    def forward(self, positions: Sequence[Float[Tensor, "_ _ _ D"]]) -> list[Float[Tensor, "_ h w D"]]:
        """Return the position encodings plus the vector of each level.

        Args:
            positions: Position encoding of each level's cells.
        """
        return [position + vector for position, vector in zip(positions, self.weight, strict=True)]
