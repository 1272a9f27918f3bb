"""encoded cells -> box proposals, and queries for them: two-stage Deformable DETR (section 4.2, A.4).

Parameters carry the names of the authors' files.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ssldet.boxes import cxcywh_to_xyxy, pairwise_iou
from ssldet.nn.deformable import Levels

SIDE = 0.05
"""Side of the boxes around the cells of the finest level; it doubles with each level."""
MARGIN = 0.01
"""Cells make a proposal only if all four numbers of their box are between this and one minus this."""
TEMPERATURE = 10_000.0
SPARE = 4
"""Cells, for each wanted one, among which distinct boxes are looked for: pairs of all cells take too much memory."""
ROUNDS = 9
"""Rounds in which cells are passed over: an odd number, after which no two of the kept boxes overlap."""


class Proposals(nn.Module):
    """Computes a proposal for every cell, and turns chosen boxes into queries."""

    def __init__(self, width: int) -> None:
        """Create the weights.

        Args:
            width: Width of the transformer; a multiple of 4.
        """
        super().__init__()
        self.enc_output = nn.Linear(width, width)
        self.enc_output_norm = nn.LayerNorm(width)
        self.pos_trans = nn.Linear(2 * width, 2 * width)
        self.pos_trans_norm = nn.LayerNorm(2 * width)
        for linear in (self.enc_output, self.pos_trans):
            nn.init.xavier_uniform_(linear.weight)

    def forward(
        self, encoded: Float[Tensor, "B K D"], levels: Levels
    ) -> tuple[Float[Tensor, "B K D"], Float[Tensor, "B K 4"]]:
        """Return the state of each cell, and a first box around it.

        Args:
            encoded: Encoded cells of all levels.
            levels: Layout of the levels in the row of cells.

        Returns:
            States for the heads, and logits of normalised cxcywh, infinite where a cell makes no proposal.
        """
        sides = torch.cat(
            [
                torch.full_like(levels.sizes[:1, :1], SIDE * 2**level).expand(height * width, 2)
                for level, (height, width) in enumerate(levels.shapes)
            ]
        )
        centres = levels.centres()
        boxes = torch.cat([centres, sides.unsqueeze(0).expand_as(centres)], dim=-1)
        useful = ((boxes > MARGIN) & (boxes < 1 - MARGIN)).all(-1, keepdim=True)
        if levels.padding is not None:
            useful = useful & ~levels.padding.unsqueeze(-1)
        logits = torch.where(useful, torch.logit(boxes, eps=MARGIN), torch.inf)
        states: Tensor = self.enc_output_norm(self.enc_output(encoded.masked_fill(~useful, 0)))
        return states, logits

    def queries(self, boxes: Float[Tensor, "B Q 4"]) -> tuple[Float[Tensor, "B Q D"], Float[Tensor, "B Q D"]]:
        """Return content and position of queries for boxes.

        Args:
            boxes: Normalised cxcywh.
        """
        pairs = self.pos_trans.in_features // 8
        exponent = torch.arange(pairs, dtype=boxes.dtype, device=boxes.device) / pairs
        waves = boxes.unsqueeze(-1) * (2 * math.pi) / TEMPERATURE**exponent
        encoding = torch.stack([waves.sin(), waves.cos()], dim=-1).flatten(2)
        position, content = self.pos_trans_norm(self.pos_trans(encoding)).chunk(2, dim=-1)
        return content, position


def best_cells(scores: Float[Tensor, "B K"], count: int) -> Int[Tensor, "B N"]:
    """Return the cells with the best proposals, best first.

    Args:
        scores: Score of the proposal of each cell.
        count: Number of cells; where an image has fewer, its last one is repeated.
    """
    best = F.pad(scores, (0, count), value=-torch.inf).topk(count, dim=1).indices
    return best.clamp(max=scores.shape[1] - 1)


def distinct_cells(
    scores: Float[Tensor, "B K"], boxes: Float[Tensor, "B K 4"], count: int, overlap: float
) -> Int[Tensor, "B N"]:
    """Return the cells with the best proposals that lie apart from one another, best first, then those passed over.

    A cell is passed over if its box overlaps the box of a better cell that is not: non-maximum suppression, as DETA
    (Ouyang-Zhang et al. 2022, "NMS Strikes Back") selects proposals. Without it, the cells of one object propose the
    same box once boxes are good, and queries that begin alike answer alike.

    All images are decided at once, in rounds: a box without a better one on it stays, those on it go, and so on. A box
    at the end of a chain of more than `ROUNDS` boxes, each on the one before, counts as passed over.

    Args:
        scores: Score of the proposal of each cell.
        boxes: The proposals, cxcywh.
        count: Number of cells.
        overlap: Intersection over union of two boxes above which the worse one is passed over.
    """
    looked_through = best_cells(scores, SPARE * count)
    corners = cxcywh_to_xyxy(boxes.detach().gather(1, looked_through.unsqueeze(-1).expand(-1, -1, 4)))
    # Of the pair (better, worse), for the worse in rows.
    on_better = (pairwise_iou(corners, corners) > overlap).tril(-1).to(scores.dtype)
    stays = torch.ones_like(on_better[..., :1])
    for _ in range(ROUNDS):
        stays = (on_better @ stays == 0).to(scores.dtype)
    ranks = torch.arange(looked_through.shape[1], device=scores.device)
    order = ranks + (1 - stays.squeeze(-1)) * looked_through.shape[1]
    return looked_through.gather(1, order.argsort(dim=1)[:, :count])
