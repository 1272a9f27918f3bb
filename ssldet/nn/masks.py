"""decoder states, cells, finer levels -> masks: attention maps and the small convolutional head of DETR (section 4.4).

Parameters carry the names of DETR's files (`q_linear`, `lay1`, `gn1`, `adapter1`, `out_lay`, …). A mask depends on its
own image and query alone, so that masks of some queries equal those of all.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

FINER_LEVELS = 3
"""Largest number of finer levels that the head uses; with a ResNet it ends at stride 4."""
NORM_GROUPS = 8
"""Largest number of groups of channels in group normalisation."""


class AttentionMaps(nn.Module):
    """Attention weights of each query over the cells, one map per head."""

    def __init__(self, width: int, heads: int, softmax: Literal["per_head", "joint"]) -> None:
        """Create the weights.

        Args:
            width: Width of queries and cells.
            heads: Number of maps; divides the width.
            softmax: Whether each map sums to one, or all maps of a query together.
        """
        super().__init__()
        self.heads, self.softmax = heads, softmax
        self.q_linear = nn.Linear(width, width)
        self.k_linear = nn.Linear(width, width)
        for linear in (self.q_linear, self.k_linear):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        states: Float[Tensor, "B Q D"],
        cells: Float[Tensor, "B K D"],
        padding: Bool[Tensor, "B K"] | None = None,
    ) -> Float[Tensor, "B Q N K"]:
        """Return the maps, N being the heads.

        Args:
            states: Decoder states, from which the queries of the attention are computed.
            cells: Encoded cells, from which its keys are computed.
            padding: True for cells without image, whose weight is zero.
        """
        queries: Tensor = self.q_linear(states).unflatten(-1, (self.heads, -1))
        keys: Tensor = self.k_linear(cells).unflatten(-1, (self.heads, -1))
        scores = torch.einsum("bqnc,bknc->bqnk", queries * queries.shape[-1] ** -0.5, keys)
        if padding is not None:
            scores = scores.masked_fill(padding[:, None, None], -torch.inf)
        if self.softmax == "joint":
            return scores.flatten(2).softmax(-1).view_as(scores)
        return scores.softmax(-1)


class MaskHead(nn.Module):
    """Cells and attention maps become a mask, level by level up to the finest, with ever fewer channels.

    Attributes:
        finer_channels: Channels of the finer levels that it uses, coarsest first: the order of its adapters.
    """

    def __init__(self, width: int, heads: int, finer: Sequence[int]) -> None:
        """Stack the layers.

        Args:
            width: Width of the cells.
            heads: Number of attention maps.
            finer: Channels of the levels finer than the cells, finest first; the last `FINER_LEVELS` of them are used.
        """
        super().__init__()
        self.finer_channels = tuple(finer[-FINER_LEVELS:][::-1])
        steps = range(1, len(self.finer_channels) + 2)
        channels = [width + heads, width + heads, *(max(1, width >> step) for step in steps)]
        for number, (before, after) in enumerate(pairwise(channels), start=1):
            self.add_module(f"lay{number}", nn.Conv2d(before, after, 3, padding=1))
            self.add_module(f"gn{number}", nn.GroupNorm(_groups(after), after))
        self.out_lay = nn.Conv2d(channels[-1], 1, 3, padding=1)
        for number, before in enumerate(self.finer_channels, start=1):
            self.add_module(f"adapter{number}", nn.Conv2d(before, channels[number + 1], 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(
        self,
        cells: Float[Tensor, "B D _ _"],
        maps: Float[Tensor, "N heads _ _"],
        image: Int[Tensor, " N"],
        finer: Sequence[Float[Tensor, "B _ _ _"]],
    ) -> Float[Tensor, "N h w"]:
        """Return the logits of masks, on the cells of the finest level.

        Args:
            cells: Projected features of each image.
            maps: Attention maps of each mask.
            image: Image of each mask.
            finer: Levels finer than the cells, finest first.
        """
        states = torch.cat([cells[image], maps], dim=1)
        states = self._refine(1, states)
        states = self._refine(2, states)
        for number, level in enumerate(finer[-len(self.finer_channels) :][::-1], start=1):
            adapted: Tensor = self.get_submodule(f"adapter{number}")(level)
            states = adapted[image] + F.interpolate(states, size=adapted.shape[-2:], mode="nearest")
            states = self._refine(number + 2, states)
        result: Tensor = self.out_lay(states)
        return result.squeeze(1)

    def _refine(self, number: int, states: Tensor) -> Tensor:
        mixed = self.get_submodule(f"lay{number}")(states)
        normed: Tensor = self.get_submodule(f"gn{number}")(mixed)
        return normed.relu()


def _groups(channels: int) -> int:
    """Return the largest number of equal groups that is allowed: the papers' 8 wherever it divides."""
    return max(count for count in range(1, NORM_GROUPS + 1) if channels % count == 0)
