"""cells of several levels, queries -> states and boxes: encoder and decoder of Deformable DETR (Zhu et al. 2021).

Parameters carry the names of the authors' files; the decoder's norms are numbered as there: 2 comes before 1.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ssldet.nn.deformable import DeformableAttention, Levels
from ssldet.nn.transformer import Attention, Grouping, Layer, draw_matrices

Locate = Callable[[int, Float[Tensor, "B Q D"], Float[Tensor, "B Q _"]], Float[Tensor, "B Q 4"]]
"""Decoder layer, its states, its reference points or boxes -> normalised cxcywh."""


class DeformableEncoderLayer(Layer):
    """Deformable attention among the cells of all levels of an image, then a feed-forward network."""

    def __init__(
        self, width: int, heads: int, feedforward: int, dropout: float, *, levels: int, points: int, pre_norm: bool
    ) -> None:
        """Create the weights.

        Args:
            width: Width of the cells.
            heads: Number of attention heads.
            feedforward: Width inside the feed-forward network.
            dropout: Share of branches and hidden units that are dropped in training.
            levels: Number of levels.
            points: Points that one head looks at on one level.
            pre_norm: Normalise the input of each branch rather than the sum after it.
        """
        super().__init__(width, feedforward, dropout, pre_norm=pre_norm)
        self.self_attn = DeformableAttention(width, heads, levels=levels, points=points)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(
        self,
        cells: Float[Tensor, "B K D"],
        position: Float[Tensor, "#B K D"],
        reference: Float[Tensor, "B K S 2"],
        levels: Levels,
    ) -> Float[Tensor, "B K D"]:
        """Mix the cells.

        Args:
            cells: Features.
            position: Where each cell lies, and on which level; added to queries, not to values.
            reference: Around what each cell looks on each level.
            levels: How the levels lie in the row of cells.
        """
        value = self._before(self.norm1, cells)
        cells = self._after(self.norm1, cells, self.self_attn(value + position, reference, value, levels))
        return self._after(self.norm2, cells, self._feed(self._before(self.norm2, cells)))


class DeformableDecoderLayer(Layer):
    """Self-attention among the queries, deformable attention to the cells, then a feed-forward network."""

    def __init__(
        self, width: int, heads: int, feedforward: int, dropout: float, *, levels: int, points: int, pre_norm: bool
    ) -> None:
        """Create the weights.

        Args:
            width: Width of the queries.
            heads: Number of attention heads.
            feedforward: Width inside the feed-forward network.
            dropout: Share of branches, hidden units and weights of the self-attention that are dropped in training.
            levels: Number of levels.
            points: Points that one head looks at on one level.
            pre_norm: Normalise the input of each branch rather than the sum after it.
        """
        super().__init__(width, feedforward, dropout, pre_norm=pre_norm)
        self.cross_attn = DeformableAttention(width, heads, levels=levels, points=points)
        self.self_attn = Attention(width, heads, dropout)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)

    def forward(
        self,
        content: Float[Tensor, "B Q D"],
        position: Float[Tensor, "B Q D"],
        reference: Float[Tensor, "B Q S _"],
        cells: Float[Tensor, "B K D"],
        levels: Levels,
        grouping: Grouping | None = None,
    ) -> Float[Tensor, "B Q D"]:
        """Refine the queries.

        Args:
            content: What the queries have gathered so far.
            position: Query embedding, added to queries and keys, not to values.
            reference: Around what each query looks on each level; see `DeformableAttention.forward`.
            cells: Encoded cells.
            levels: How the levels lie in the row of cells.
            grouping: Which queries see one another; `None` means all.
        """
        content = self._mix(self.self_attn, self.norm2, content, position, grouping or Grouping())
        asking = self._before(self.norm1, content) + position
        content = self._after(self.norm1, content, self.cross_attn(asking, reference, cells, levels))
        return self._after(self.norm3, content, self._feed(self._before(self.norm3, content)))


class DeformableEncoder(nn.Module):
    """A stack of encoder layers; ends in a norm only where layers do not end in one themselves."""

    def __init__(
        self,
        width: int,
        heads: int,
        feedforward: int,
        dropout: float,
        *,
        layers: int,
        levels: int,
        points: int,
        pre_norm: bool,
    ) -> None:
        """Stack the layers; see `DeformableEncoderLayer` for the other arguments.

        Args:
            width: Width of the cells.
            heads: Number of attention heads.
            feedforward: Width inside the feed-forward network.
            dropout: Dropout of every layer.
            layers: Number of layers.
            levels: Number of levels.
            points: Points that one head looks at on one level.
            pre_norm: Normalise before each branch.
        """
        super().__init__()
        self.layers = nn.ModuleList(
            DeformableEncoderLayer(width, heads, feedforward, dropout, levels=levels, points=points, pre_norm=pre_norm)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width) if pre_norm else nn.Identity()
        _draw(self)

    def forward(
        self, cells: Float[Tensor, "B K D"], position: Float[Tensor, "#B K D"], levels: Levels
    ) -> Float[Tensor, "B K D"]:
        """Encode the cells of each image; each looks around its own place on all levels.

        Args:
            cells: Projected backbone features.
            position: Where each cell lies, and on which level.
            levels: How the levels lie in the row of cells.
        """
        reference = levels.references(levels.centres())
        for layer in self.layers:
            cells = layer(cells, position, reference, levels)
        encoded: Tensor = self.norm(cells)
        return encoded


class DeformableDecoder(nn.Module):
    """A stack of decoder layers, all of which answer; ends in a norm only where layers do not end in one themselves.

    Attributes:
        refine: Whether each layer looks around the boxes of the layer before, or all around the first points.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        feedforward: int,
        dropout: float,
        *,
        layers: int,
        levels: int,
        points: int,
        pre_norm: bool,
        refine: bool,
    ) -> None:
        """Stack the layers; see `DeformableDecoderLayer` for the other arguments.

        Args:
            width: Width of the queries.
            heads: Number of attention heads.
            feedforward: Width inside the feed-forward network.
            dropout: Dropout of every layer.
            layers: Number of layers.
            levels: Number of levels.
            points: Points that one head looks at on one level.
            pre_norm: Normalise before each branch.
            refine: See the class.
        """
        super().__init__()
        self.layers = nn.ModuleList(
            DeformableDecoderLayer(width, heads, feedforward, dropout, levels=levels, points=points, pre_norm=pre_norm)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width) if pre_norm else nn.Identity()
        self.refine = refine
        _draw(self)

    def forward(
        self,
        content: Float[Tensor, "B Q D"],
        position: Float[Tensor, "B Q D"],
        reference: Float[Tensor, "B Q _"],
        cells: Float[Tensor, "B K D"],
        levels: Levels,
        locate: Locate,
        groups: Int[Tensor, " Q"] | None = None,
        equal_groups: int | None = None,
    ) -> tuple[Float[Tensor, "L B Q D"], Float[Tensor, "L B Q 4"]]:
        """Answer the queries; returns states and boxes after every layer.

        Args:
            content: Starting content of the queries.
            position: Query embedding.
            reference: Around what the first layer looks: x and y, or cxcywh, normalised.
            cells: Encoded cells.
            levels: How the levels lie in the row of cells.
            locate: Turns states into boxes. Boxes that a layer looks around pass no gradient back.
            groups: Group of each query; groups do not see one another; `None` means one group.
            equal_groups: Their number, where that is known, see `Queries`.
        """
        grouping = Grouping.of(groups, equal_groups).to(content.device)
        content, position, reference = (grouping.arrange(part) for part in (content, position, reference))
        states, boxes = [], []
        for number, layer in enumerate(self.layers):
            content = layer(content, position, levels.references(reference), cells, levels, grouping)
            states.append(self.norm(content))
            boxes.append(locate(number, states[-1], reference))
            if self.refine:
                reference = boxes[-1].detach()
        return grouping.restore(torch.stack(states)), grouping.restore(torch.stack(boxes))


def _draw(module: nn.Module) -> None:
    """Start every matrix as DETR does, except where deformable attention has its own start."""
    draw_matrices(module)
    for part in module.modules():
        if isinstance(part, DeformableAttention):
            part.reset_parameters()
