"""B 3 H W -> maps of several strides: the multi-scale tokenizer of FP-DETR (Wang et al. 2022), in place of a CNN."""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

EPSILON = 1e-6
"""What the authors' norms add to a variance."""


class Tokenizer(nn.Module):
    """Cuts an image into patches, and those of each level into the patches of the next; nothing overlaps.

    A patch is projected and normalised. What a level gives away is normalised once more, apart from what the next level
    is made of.
    """

    def __init__(self, strides: Sequence[int], channels: int) -> None:
        """Create the weights.

        Args:
            strides: Pixels per cell of each level, from fine to coarse; each is a multiple of the one before.
            channels: Channels of every level (E).
        """
        super().__init__()
        self.stride = strides[-1]
        sides = [strides[0], *(coarse // fine for fine, coarse in pairwise(strides))]
        inputs = [3, *[channels] * (len(strides) - 1)]
        self.patches = nn.ModuleList(
            nn.Conv2d(before, channels, kernel_size=side, stride=side)
            for before, side in zip(inputs, sides, strict=True)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels, eps=EPSILON) for _ in strides)
        self.level_norms = nn.ModuleList(nn.LayerNorm(channels, eps=EPSILON) for _ in strides)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B E _ _"]]:
        """Return the maps, from fine to coarse.

        Args:
            images: Normalised images, whose sides are multiples of the coarsest stride.
        """
        maps, cells = [], images
        for patch, norm, level_norm in zip(self.patches, self.norms, self.level_norms, strict=True):
            cells = _over_channels(norm, patch(cells))
            maps.append(_over_channels(level_norm, cells))
        return maps


def pad_to(images: Float[Tensor, "B _ H W"], stride: int, value: float = 0.0) -> Float[Tensor, "B _ H2 W2"]:
    """Pad images at the bottom and the right until their sides are multiples of a stride.

    Args:
        images: Images, or anything else with one number per pixel.
        stride: What the sides become multiples of.
        value: What the padding holds.
    """
    height, width = (-side % stride for side in images.shape[2:])
    return F.pad(images, (0, width, 0, height), value=value)


def _over_channels(norm: nn.Module, cells: Tensor) -> Tensor:
    normalised: Tensor = norm(cells.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return normalised
