"""cells, queries -> states: the last encoder layers of FP-DETR (Wang et al. 2022), in which queries join the cells.

There is no decoder. Queries go through the same layers, with the same weights, as the cells of the image: both look at
cells by deformable attention, and nobody looks at a query. Queries see one another in the task adaptor alone, which is
left out in pretraining, where a class token stands in their place.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ssldet.nn.deformable import DeformableAttention, Levels
from ssldet.nn.transformer import Attention, Grouping, Layer, draw_matrices


class TaskAdaptor(nn.Module):
    """Self-attention among queries before a layer: one for all layers, with norms of each layer's own.

    Attributes:
        self_attn: The attention that all layers share.
        norms: One norm per layer, which cells go through as well.
    """

    def __init__(self, width: int, heads: int, dropout: float, *, layers: int) -> None:
        """Create the weights.

        Args:
            width: Width of the queries.
            heads: Number of attention heads.
            dropout: Share of the branch and of attention weights that is dropped in training.
            layers: Number of layers that the adaptor stands before.
        """
        super().__init__()
        self.self_attn = Attention(width, heads, dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)
        draw_matrices(self)

    def forward(
        self,
        layer: int,
        cells: Float[Tensor, "B K D"],
        content: Float[Tensor, "B Q D"],
        position: Float[Tensor, "B Q D"],
        grouping: Grouping,
    ) -> tuple[Float[Tensor, "B K D"], Float[Tensor, "B Q D"]]:
        """Let the queries see one another; returns cells and contents for the layer.

        Args:
            layer: Number of the layer that follows.
            cells: Cells of the images, which are only normalised.
            content: What the queries have gathered so far.
            position: Query embedding, added to queries and keys, not to values.
            grouping: Which queries see one another.
        """
        apart = None if grouping.hidden is None else grouping.hidden.unsqueeze(0)
        placed = content + position
        mixed = self.self_attn(placed, placed, content, hidden=apart, groups=grouping.count)
        norm = self.norms[layer]
        return norm(cells), norm(content + self.dropout(mixed))


class JoinedLayer(Layer):
    """Deformable attention of cells and queries to the cells, then a feed-forward network.

    Parameters are those of `DeformableEncoderLayer`.
    """

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float, *, levels: int, points: int) -> None:
        """Create the weights; see `DeformableEncoderLayer`."""
        super().__init__(width, feedforward, dropout, pre_norm=False)
        self.self_attn = DeformableAttention(width, heads, levels=levels, points=points)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(
        self,
        tokens: Float[Tensor, "B N D"],
        position: Float[Tensor, "B N D"],
        reference: Float[Tensor, "B N S 2"],
        cells: Float[Tensor, "B K D"],
        levels: Levels,
    ) -> Float[Tensor, "B N D"]:
        """Let tokens gather from cells.

        Args:
            tokens: Cells and queries, or queries alone.
            position: Position of each token; added to queries, not to values.
            reference: Around what each token looks on each level.
            cells: What is gathered.
            levels: How the levels lie in the row of cells.
        """
        tokens = self._after(self.norm1, tokens, self.self_attn(tokens + position, reference, cells, levels))
        return self._after(self.norm2, tokens, self._feed(tokens))


class JoinedEncoder(nn.Module):
    """A stack of joined layers, all of which answer."""

    def __init__(
        self, width: int, heads: int, feedforward: int, dropout: float, *, layers: int, levels: int, points: int
    ) -> None:
        """Stack the layers.

        Args:
            width: Width of cells and queries.
            heads: Number of attention heads.
            feedforward: Width inside the feed-forward network.
            dropout: Share of branches and hidden units that are dropped in training.
            layers: Number of layers.
            levels: Number of levels.
            points: Points that one head looks at on one level.
        """
        super().__init__()
        stack = [JoinedLayer(width, heads, feedforward, dropout, levels=levels, points=points) for _ in range(layers)]
        self.layers = nn.ModuleList(stack)
        draw_matrices(self)
        for layer in stack:
            layer.self_attn.reset_parameters()

    def forward(
        self,
        content: Float[Tensor, "B Q D"],
        position: Float[Tensor, "B Q D"],
        reference: Float[Tensor, "B Q 2"],
        cells: Float[Tensor, "B K D"],
        cell_position: Float[Tensor, "#B K D"],
        levels: Levels,
        adaptor: TaskAdaptor | None = None,
        groups: Int[Tensor, " Q"] | None = None,
        equal_groups: int | None = None,
    ) -> Float[Tensor, "L B Q D"]:
        """Return the states of the queries after every layer.

        Args:
            content: Starting content of the queries.
            position: Position of the queries: FP-DETR's visual prompts.
            reference: Around what the queries look in every layer: normalised x and y.
            cells: Cells after the first layers.
            cell_position: Where each cell lies, and on which level.
            levels: How the levels lie in the row of cells.
            adaptor: What shows queries one another; `None` leaves it out, with its norms.
            groups: Group of each query; groups do not see one another; `None` means one group.
            equal_groups: Their number, where that is known, see `Queries`.
        """
        grouping = Grouping.of(groups, equal_groups).to(content.device)
        content, position, reference = (grouping.arrange(part) for part in (content, position, reference))
        around = levels.references(torch.cat([levels.centres(), reference], dim=1))
        placed = torch.cat([cell_position.expand(content.shape[0], -1, -1), position], dim=1)
        count, states = cells.shape[1], []
        for number, layer in enumerate(self.layers):
            if adaptor is not None:
                cells, content = adaptor(number, cells, content, position, grouping)
            if number == len(self.layers) - 1:
                # Nobody asks the cells any more.
                content = layer(content, position, around[:, count:], cells, levels)
            else:
                tokens = layer(torch.cat([cells, content], dim=1), placed, around, cells, levels)
                cells, content = tokens[:, :count], tokens[:, count:]
            states.append(content)
        return grouping.restore(torch.stack(states))
