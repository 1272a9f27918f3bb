"""cells, queries -> decoder states: DETR's encoder and decoder; query groups do not attend to one another.

Parameters carry the names of DETR's files (`self_attn.in_proj_weight`, `multihead_attn`, `linear1`, `norm1`, …), which
are those of `torch.nn.MultiheadAttention`; the attention itself is computed by PyTorch's fused kernel.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Grouping:
    """Layout of queries in which groups of one size need no attention mask.

    Attributes:
        count: Number of groups that are computed separately; 1 where they differ in size.
        order: Permutation that makes groups contiguous; `None` where they are contiguous already.
        hidden: True where one query must not attend to another; `None` unless groups differ in size.
    """

    count: int = 1
    order: Int[Tensor, " Q"] | None = None
    hidden: Bool[Tensor, "Q Q"] | None = None

    @staticmethod
    def of(groups: Int[Tensor, " Q"] | None, equal: int | None = None) -> "Grouping":
        """Return the layout of queries in groups.

        Args:
            groups: Group of each query, any numbers; `None` means one group. Best kept on the CPU, where reading it
                does not wait for the device.
            equal: Their number, where they are known to be of one size and to lie one after the other. They are not
                read then, which would also interrupt a compiled graph.
        """
        if groups is None:
            return Grouping()
        if equal is not None:
            return Grouping(count=equal)
        _, sizes = torch.unique(groups, return_counts=True)
        if len(sizes) == 1:
            return Grouping()
        if (sizes != sizes[0]).any():
            return Grouping(hidden=groups[:, None] != groups[None, :])
        order = groups.argsort(stable=True)
        contiguous = bool((order[1:] > order[:-1]).all())
        return Grouping(count=len(sizes), order=None if contiguous else order)

    def to(self, device: torch.device) -> "Grouping":
        """Return the same layout on another device."""
        order, hidden = (None if part is None else part.to(device) for part in (self.order, self.hidden))
        return Grouping(count=self.count, order=order, hidden=hidden)

    def arrange(self, queries: Float[Tensor, "B Q D"]) -> Float[Tensor, "B Q D"]:
        """Bring queries into the order in which groups are contiguous.

        Args:
            queries: Contents, positions or other vectors of the queries.
        """
        return queries if self.order is None else queries[:, self.order]

    def restore(self, answers: Float[Tensor, "*N Q D"]) -> Float[Tensor, "*N Q D"]:
        """Bring results back into the order of the queries.

        Args:
            answers: Vectors that were computed from arranged queries.
        """
        return answers if self.order is None else answers[..., self.order.argsort(), :]


class Attention(nn.Module):
    """Multi-head attention with the parameters of `torch.nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        """Create the weights.

        Args:
            width: Width of queries, keys and values.
            heads: Number of heads; divides the width.
            dropout: Share of attention weights that are dropped in training.
        """
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Float[Tensor, "B N D"],
        key: Float[Tensor, "B M D"],
        value: Float[Tensor, "B M D"],
        *,
        hidden: Bool[Tensor, "#B #N M"] | None = None,
        groups: int = 1,
    ) -> Float[Tensor, "B N D"]:
        """Attend from every query to the values.

        Args:
            query: Inputs of the queries.
            key: Inputs of the keys.
            value: Inputs of the values.
            hidden: True where a query must not attend to a value.
            groups: Number of contiguous groups, of one size, that attend within themselves only.
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            self._split(F.linear(states, weight, bias), groups)
            for states, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        visible = None if hidden is None else ~hidden.unsqueeze(1)
        dropout = self.dropout if self.training else 0.0
        gathered = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=dropout)
        return _call(self.out_proj, gathered.transpose(1, 2).reshape(query.shape))

    def _split(self, projected: Tensor, groups: int) -> Tensor:
        """B N D -> (B groups) heads (N / groups) (D / heads)."""
        batch, count, width = projected.shape
        return projected.view(batch * groups, count // groups, self.heads, width // self.heads).transpose(1, 2)


class Layer(nn.Module):
    """The base of encoder and decoder layers: residual branches and the feed-forward network."""

    def __init__(self, width: int, feedforward: int, dropout: float, *, pre_norm: bool) -> None:
        """Create the weights of the feed-forward network.

        Args:
            width: Width of the states.
            feedforward: Width inside the feed-forward network.
            dropout: Share of branches and hidden units that are dropped in training.
            pre_norm: Normalise the input of each branch rather than the sum after it.
        """
        super().__init__()
        self.pre_norm = pre_norm
        self.linear1 = nn.Linear(width, feedforward)
        self.linear2 = nn.Linear(feedforward, width)
        self.dropout = nn.Dropout(dropout)

    def _before(self, norm: nn.Module, states: Tensor) -> Tensor:
        return _call(norm, states) if self.pre_norm else states

    def _after(self, norm: nn.Module, states: Tensor, branch: Tensor) -> Tensor:
        joined = states + self.dropout(branch)
        return joined if self.pre_norm else _call(norm, joined)

    def _mix(
        self, attention: Attention, norm: nn.Module, content: Tensor, position: Tensor, grouping: Grouping
    ) -> Tensor:
        """Return the contents of queries after attention among the queries of each group."""
        apart = None if grouping.hidden is None else grouping.hidden.unsqueeze(0)
        value = self._before(norm, content)
        placed = value + position
        mixed = attention(placed, placed, value, hidden=apart, groups=grouping.count)
        return self._after(norm, content, mixed)

    def _feed(self, states: Tensor) -> Tensor:
        return _call(self.linear2, self.dropout(self.linear1(states).relu_()))


class EncoderLayer(Layer):
    """Self-attention among the cells of an image, then a feed-forward network."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float, *, pre_norm: bool) -> None:
        """Create the weights.

        Args:
            width: Width of the cells.
            heads: Number of attention heads.
            feedforward: Width inside the feed-forward network.
            dropout: Share of attention weights, branches and hidden units that are dropped in training.
            pre_norm: Normalise the input of each branch rather than the sum after it.
        """
        super().__init__(width, feedforward, dropout, pre_norm=pre_norm)
        self.self_attn = Attention(width, heads, dropout)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(
        self,
        cells: Float[Tensor, "B K D"],
        position: Float[Tensor, "#B K D"],
        hidden: Bool[Tensor, "B 1 K"] | None = None,
    ) -> Float[Tensor, "B K D"]:
        """Return the cells after attention and feed-forward network.

        Args:
            cells: Features.
            position: Added to queries and keys, not to values.
            hidden: True for cells without image.
        """
        value = self._before(self.norm1, cells)
        placed = value + position
        cells = self._after(self.norm1, cells, self.self_attn(placed, placed, value, hidden=hidden))
        return self._after(self.norm2, cells, self._feed(self._before(self.norm2, cells)))


class DecoderLayer(Layer):
    """Self-attention among the queries, cross-attention to the cells, then a feed-forward network."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float, *, pre_norm: bool) -> None:
        """Create the weights.

        Args:
            width: Width of the queries.
            heads: Number of attention heads.
            feedforward: Width inside the feed-forward network.
            dropout: Share of attention weights, branches and hidden units that are dropped in training.
            pre_norm: Normalise the input of each branch rather than the sum after it.
        """
        super().__init__(width, feedforward, dropout, pre_norm=pre_norm)
        self.self_attn = Attention(width, heads, dropout)
        self.multihead_attn = Attention(width, heads, dropout)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)

    def forward(
        self,
        content: Float[Tensor, "B Q D"],
        position: Float[Tensor, "B Q D"],
        keys: Float[Tensor, "B K D"],
        values: Float[Tensor, "B K D"],
        hidden: Bool[Tensor, "B 1 K"] | None = None,
        grouping: Grouping | None = None,
    ) -> Float[Tensor, "B Q D"]:
        """Return the contents of the queries after attention and feed-forward network.

        Args:
            content: Contents of the queries after the layer before.
            position: Query embedding, added to queries and keys, not to values.
            keys: Encoded cells with their position.
            values: Encoded cells.
            hidden: True for cells without image.
            grouping: Layout of the queries in groups; `None` means one group.
        """
        content = self._mix(self.self_attn, self.norm1, content, position, grouping or Grouping())
        placed = self._before(self.norm2, content) + position
        content = self._after(self.norm2, content, self.multihead_attn(placed, keys, values, hidden=hidden))
        return self._after(self.norm3, content, self._feed(self._before(self.norm3, content)))


class Encoder(nn.Module):
    """A stack of encoder layers; ends in a norm only where layers do not end in one themselves."""

    def __init__(
        self, width: int, heads: int, feedforward: int, dropout: float, *, layers: int, pre_norm: bool
    ) -> None:
        """Stack the layers.

        Args:
            width: Width of the cells.
            heads: Number of attention heads.
            feedforward: Width inside the feed-forward network.
            dropout: Dropout of every layer.
            layers: Number of layers.
            pre_norm: Normalise before each branch.
        """
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(width, heads, feedforward, dropout, pre_norm=pre_norm) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width) if pre_norm else nn.Identity()
        draw_matrices(self)

    def forward(
        self,
        cells: Float[Tensor, "B K D"],
        position: Float[Tensor, "#B K D"],
        padding: Bool[Tensor, "B K"] | None = None,
    ) -> Float[Tensor, "B K D"]:
        """Encode the cells of each image.

        Args:
            cells: Projected backbone features.
            position: Position encoding of the cells.
            padding: True for cells without image.
        """
        hidden = None if padding is None else padding.unsqueeze(1)
        for layer in self.layers:
            cells = layer(cells, position, hidden)
        return _call(self.norm, cells)


class Decoder(nn.Module):
    """A stack of decoder layers; the states after each of them pass one shared norm."""

    def __init__(
        self, width: int, heads: int, feedforward: int, dropout: float, *, layers: int, pre_norm: bool
    ) -> None:
        """Stack the layers.

        Args:
            width: Width of the queries.
            heads: Number of attention heads.
            feedforward: Width inside the feed-forward network.
            dropout: Dropout of every layer.
            layers: Number of layers.
            pre_norm: Normalise before each branch.
        """
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(width, heads, feedforward, dropout, pre_norm=pre_norm) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        draw_matrices(self)

    def forward(
        self,
        content: Float[Tensor, "B Q D"],
        position: Float[Tensor, "B Q D"],
        cells: Float[Tensor, "B K D"],
        cell_position: Float[Tensor, "#B K D"],
        padding: Bool[Tensor, "B K"] | None = None,
        groups: Int[Tensor, " Q"] | None = None,
        equal_groups: int | None = None,
    ) -> Float[Tensor, "L B Q D"]:
        """Return the states after every layer, normalised.

        Args:
            content: Starting content of the queries.
            position: Query embedding.
            cells: Encoded cells.
            cell_position: Position encoding of the cells.
            padding: True for cells without image.
            groups: Group of each query; queries of different groups do not attend to one another; `None`
                means one group.
            equal_groups: Their number, where that is known, see `Queries`.
        """
        hidden = None if padding is None else padding.unsqueeze(1)
        # Nothing else in the decoder depends on the order of queries, so they are sorted once and restored once.
        grouping = Grouping.of(groups, equal_groups).to(content.device)
        content, position = grouping.arrange(content), grouping.arrange(position)
        keys = cells + cell_position
        states = []
        for layer in self.layers:
            content = layer(content, position, keys, cells, hidden, grouping)
            states.append(content)
        return grouping.restore(_call(self.norm, torch.stack(states)))


def _call(module: nn.Module, states: Tensor) -> Tensor:
    result: Tensor = module(states)
    return result


def draw_matrices(module: nn.Module) -> None:
    """Initialise every matrix as DETR does; vectors keep their initial values.

    Args:
        module: Module whose matrices are drawn.
    """
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
