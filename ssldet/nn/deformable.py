"""queries, points, levels -> gathered values: multi-scale deformable attention (Zhu et al. 2021, section 4.1).

Every query looks at a few points around its reference point on each level instead of at all cells. The sampling itself,
`sample`, has three forms with one result, none of which needs a compiled extension: `sample_by_bags` for CPUs,
`sample_by_grid` for accelerators and `sample_by_gather` for exported graphs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """How the cells of several levels lie in one row, finest level first, and which part of each level is image.

    Attributes:
        shapes: Height and width of each level in cells.
        sizes: Width and height of each level in cells.
        starts: Where each level begins in the row.
        ratios: Share of each level that is image, along width and height.
        padding: True for cells without image; `None` where nothing is padded.
    """

    shapes: tuple[tuple[int, int], ...]
    sizes: Float[Tensor, "S 2"]
    starts: Int[Tensor, " S"]
    ratios: Float[Tensor, "B S 2"]
    padding: Bool[Tensor, "B K"] | None

    @staticmethod
    def of(maps: Sequence[Float[Tensor, "B _ _ _"]], paddings: Sequence[Bool[Tensor, "B _ _"]] | None) -> "Levels":
        """Describe feature maps.

        Args:
            maps: One map per level.
            paddings: True for cells without image, one entry per level; `None` means that nothing is padded.
        """
        shapes = tuple((level.shape[2], level.shape[3]) for level in maps)
        device = maps[0].device
        # Filled rather than listed: the shapes are symbols while a graph is exported.
        sides = [torch.full((), side, device=device) for height, width in shapes for side in (width, height)]
        sizes = torch.stack(sides).view(-1, 2)
        counts = sizes.prod(1)
        whole = torch.ones_like(maps[0][:, 0, 0, :1]).float().unsqueeze(-1).expand(-1, len(maps), 2)
        return Levels(
            shapes=shapes,
            sizes=sizes.float(),
            starts=(counts.cumsum(0) - counts).int(),
            ratios=whole if paddings is None else torch.stack([_ratios(padding) for padding in paddings], dim=1),
            padding=None if paddings is None else torch.cat([padding.flatten(1) for padding in paddings], dim=1),
        )

    def join(self, maps: Sequence[Float[Tensor, "B D _ _"]]) -> Float[Tensor, "B K D"]:
        """Put the cells of all levels into one row.

        Args:
            maps: One map per level.
        """
        return torch.cat([level.flatten(2) for level in maps], dim=2).transpose(1, 2)

    def centres(self) -> Float[Tensor, "B K 2"]:
        """Return where the centre of each cell lies in its own image, 0..1 (above 1 in the padding)."""
        rows = []
        for level, (height, width) in enumerate(self.shapes):
            y = torch.arange(height, device=self.sizes.device).to(self.sizes) + 0.5
            x = torch.arange(width, device=self.sizes.device).to(self.sizes) + 0.5
            cells = torch.stack([x.expand(height, -1), y.unsqueeze(1).expand(-1, width)], dim=-1).flatten(0, 1)
            rows.append(cells / (self.sizes[level] * self.ratios[:, level, None]))
        return torch.cat(rows, dim=1)

    def references(self, points: Float[Tensor, "B N _"]) -> Float[Tensor, "B N S _"]:
        """Carry points or boxes of an image over to the levels, whose padding counts there.

        Args:
            points: Normalised x and y, or cxcywh, relative to the image.
        """
        ratios = self.ratios if points.shape[-1] == 2 else torch.cat([self.ratios, self.ratios], dim=-1)
        return points.unsqueeze(2) * ratios.unsqueeze(1)


def _ratios(padding: Bool[Tensor, "B h w"]) -> Float[Tensor, "B 2"]:
    valid = (~padding).float()
    return torch.stack([valid[:, 0].mean(1), valid[:, :, 0].mean(1)], dim=-1)


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention; parameters carry the names of the authors' files."""

    def __init__(self, width: int, heads: int, *, levels: int, points: int) -> None:
        """Create the weights: at first, head *i* looks in one of `heads` directions, its points ever further out.

        Args:
            width: Width of queries and values.
            heads: Number of heads; divides the width.
            levels: Number of levels.
            points: Points that one head looks at on one level.
        """
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(width, heads * levels * points * 2)
        self.attention_weights = nn.Linear(width, heads * levels * points)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew, as the authors do."""
        for linear in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(linear.weight)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
        for linear in (self.attention_weights, self.value_proj, self.output_proj):
            nn.init.zeros_(linear.bias)
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1).unsqueeze(-1)
        offsets = (direction[:, None, None] * steps).expand(-1, self.levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())

    def forward(
        self,
        query: Float[Tensor, "B N D"],
        reference: Float[Tensor, "B N S _"],
        values: Float[Tensor, "B K D"],
        levels: Levels,
    ) -> Float[Tensor, "B N D"]:
        """Let every query gather from a few cells.

        Args:
            query: Who asks, position included.
            reference: Around what it looks: x and y, when offsets count cells, or cxcywh, when they count parts of the
                box; as fractions of each whole level. Its precision is that of the sampling points, whatever the rest
                runs in.
            values: What is gathered, all levels in one row.
            levels: How the levels lie in that row.
        """
        batch, count, _ = query.shape
        projected: Tensor = self.value_proj(values)
        if levels.padding is not None:
            projected = projected.masked_fill(levels.padding.unsqueeze(-1), 0)
        offsets = self.sampling_offsets(query).view(batch, count, self.heads, self.levels, self.points, 2)
        weights = self.attention_weights(query).view(batch, count, self.heads, self.levels * self.points)
        shares = weights.softmax(-1).view(offsets.shape[:-1])
        gathered = sample(projected, self._places(reference, offsets, levels), shares, levels)
        result: Tensor = self.output_proj(gathered)
        return result

    def _places(self, reference: Tensor, offsets: Tensor, levels: Levels) -> Tensor:
        """Return where to sample, in cells of each level."""
        around, offsets = reference[:, :, None, :, None], offsets.to(reference.dtype)
        sizes = levels.sizes.to(reference.dtype).view(-1, 1, 2)
        if reference.shape[-1] == 2:
            return around * sizes + (offsets - 0.5)
        centre, extent = around[..., :2], around[..., 2:]
        places: Tensor = (centre + offsets * extent * (0.5 / self.points)) * sizes - 0.5
        return places


def sample(
    values: Float[Tensor, "B K D"],
    places: Float[Tensor, "B N H S P 2"],
    shares: Float[Tensor, "B N H S P"],
    levels: Levels,
) -> Float[Tensor, "B N D"]:
    """Return the weighted sum of bilinear samples, each head from its own part of the values; outside lie zeros.

    The form depends on the device, by measurement (`python -m benchmarks.deformable`).

    Args:
        values: All levels in one row.
        places: Points in cells (x, y): 0 is the centre of the first cell.
        shares: Weight of each point.
        levels: How the levels lie in the row.
    """
    if torch.compiler.is_exporting():
        return sample_by_gather(values, places, shares, levels)
    if values.device.type == "cpu":
        return sample_by_bags(values, places, shares, levels)
    return sample_by_grid(values, places, shares, levels)


def sample_by_bags(
    values: Float[Tensor, "B K D"],
    places: Float[Tensor, "B N H S P 2"],
    shares: Float[Tensor, "B N H S P"],
    levels: Levels,
) -> Float[Tensor, "B N D"]:
    """Sample all levels in one call, the weighted sum of an embedding bag, which stores no samples; see `sample`."""
    rows, weights = _corners(places, shares, levels, values.shape[1])
    table = values.reshape(-1, values.shape[-1] // places.shape[2])
    sums: Tensor = _Bags.apply(table, rows.flatten(0, 2).flatten(1), weights.flatten(0, 2).flatten(1).to(table.dtype))
    return sums.view(*places.shape[:2], values.shape[-1])


class _Bags(torch.autograd.Function):
    """A weighted embedding bag whose gradient for the table is a bag as well, more than twice as fast as PyTorch's."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(table, rows, weights)
        return F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        table, rows, weights = ctx.saved_tensors
        gradient = gradient.contiguous()
        for_table = for_weights = None
        if ctx.needs_input_grad[0]:
            # Row by row of the table: which bags took it, in their order, so that sums do not depend on threads.
            row, order = rows.flatten().sort(stable=True)
            first = torch.searchsorted(row, torch.arange(len(table), dtype=row.dtype))
            # Looked up, because dividing whole numbers takes several times as long.
            bag = torch.arange(len(rows)).repeat_interleave(rows.shape[1]).index_select(0, order)
            for_table = F.embedding_bag(
                bag, gradient, first, mode="sum", per_sample_weights=weights.flatten().index_select(0, order)
            )
        if ctx.needs_input_grad[2]:
            with torch.enable_grad():
                leaf = weights.detach().requires_grad_()
                sums = F.embedding_bag(rows, table.detach(), mode="sum", per_sample_weights=leaf)
                (for_weights,) = torch.autograd.grad(sums, leaf, gradient)
        return for_table, None, for_weights


def sample_by_gather(
    values: Float[Tensor, "B K D"],
    places: Float[Tensor, "B N H S P 2"],
    shares: Float[Tensor, "B N H S P"],
    levels: Levels,
) -> Float[Tensor, "B N D"]:
    """Sample by indexing, in operations that every runtime computes alike; see `sample`.

    No array has more than six axes: OpenVINO computes some operations wrongly on seven.
    """
    batch, _, heads, *_ = places.shape
    low = places.detach().floor()
    ends = [_ends(low, places - low, levels.sizes, axis) for axis in (0, 1)]
    width = levels.sizes[:, 0].int().view(-1, 1)
    image = torch.arange(batch, dtype=torch.int32, device=places.device).view(-1, 1, 1, 1, 1) * values.shape[1]
    head = torch.arange(heads, dtype=torch.int32, device=places.device).view(-1, 1, 1)
    first = levels.starts.view(-1, 1) + image
    corners = [(across, down) for down in ends[1] for across in ends[0]]
    rows = torch.stack([(first + row * width + column) * heads + head for (column, _), (row, _) in corners], dim=-1)
    weights = torch.stack([shares * below * beside for (_, beside), (_, below) in corners], dim=-1)
    rows, weights = rows.flatten(4), weights.flatten(4)
    table = values.reshape(-1, values.shape[-1] // heads)
    # Level by level, since every sample is stored.
    parts = []
    for level in range(rows.shape[3]):
        samples = table[rows[:, :, :, level].long()]
        parts.append((weights[:, :, :, level].unsqueeze(-2).to(table.dtype) @ samples).squeeze(-2))
    return torch.stack(parts).sum(0).flatten(2)


def _ends(low: Tensor, part: Tensor, sizes: Tensor, axis: int) -> list[tuple[Tensor, Tensor]]:
    """Return the two cells around each point along an axis, the nearest ones inside the level, and their weights."""
    last = (sizes[:, axis] - 1).view(-1, 1)
    ends = []
    for side, weight in ((low[..., axis], 1 - part[..., axis]), (low[..., axis] + 1, part[..., axis])):
        inside = ((side >= 0) & (side <= last)).to(weight)
        ends.append((side.int().clamp(min=0).minimum(last.int()), weight * inside))
    return ends


def sample_by_grid(
    values: Float[Tensor, "B K D"],
    places: Float[Tensor, "B N H S P 2"],
    shares: Float[Tensor, "B N H S P"],
    levels: Levels,
) -> Float[Tensor, "B N D"]:
    """Sample with one call of `grid_sample` per level; see `sample`."""
    batch, count, heads = places.shape[:3]
    maps = values.transpose(1, 2).reshape(batch * heads, -1, values.shape[1])
    grid = ((places + 0.5) * (2 / levels.sizes.to(places.dtype).view(-1, 1, 2)) - 1).transpose(1, 2).flatten(0, 1)
    rows = torch.split(maps, [height * width for height, width in levels.shapes], dim=2)
    samples = [
        F.grid_sample(row.view(*row.shape[:2], *shape), grid[:, :, level].to(row.dtype), align_corners=False)
        for level, (row, shape) in enumerate(zip(rows, levels.shapes, strict=True))
    ]
    weights = shares.transpose(1, 2).reshape(batch * heads, 1, count, -1)
    sums = (torch.stack(samples, dim=-2).flatten(-2) * weights).sum(-1)
    return sums.view(batch, -1, count).transpose(1, 2).to(values.dtype)


def _corners(
    places: Tensor, shares: Tensor, levels: Levels, cells: int
) -> tuple[Int[Tensor, "B N H S _"], Float[Tensor, "B N H S _"]]:
    """Return where the four cells around each point lie in a table of one row per image, cell and head; and weights.

    Cells outside a level weigh nothing; their row is that of the nearest cell inside.
    """
    batch, _, heads, *_ = places.shape
    low = places.detach().floor()
    part = (places - low).unsqueeze(-1)
    sides = torch.stack([low, low + 1], dim=-1)
    last = (levels.sizes - 1).view(-1, 1, 2, 1)
    weights = torch.cat([1 - part, part], dim=-1) * ((sides >= 0) & (sides <= last))
    # Limited as whole numbers, so that a point that is not finite stays an error of the weights.
    column, row = sides.int().clamp(min=0).minimum(last.int()).unbind(-2)
    width = levels.sizes[:, 0].int().view(-1, 1, 1)
    image = torch.arange(batch, dtype=torch.int32, device=places.device).view(-1, 1, 1, 1, 1, 1) * cells
    cell = levels.starts.view(-1, 1, 1) + image + row * width
    head = torch.arange(heads, dtype=torch.int32, device=places.device).view(-1, 1, 1, 1, 1)
    rows = (cell.unsqueeze(-1) + column.unsqueeze(-2)) * heads + head
    across, down = weights.unbind(-2)
    product = (shares.unsqueeze(-1) * down).unsqueeze(-1) * across.unsqueeze(-2)
    return rows.flatten(4), product.flatten(4)
