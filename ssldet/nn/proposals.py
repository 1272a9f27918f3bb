"""encoded cells -> box proposals, and queries for them: two-stage Deformable DETR (section 4.2, A.4).

Parameters carry the names of the authors' files.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ssldet.nn.deformable import Levels

SIDE = 0.05
"""Side of the boxes around the cells of the finest level; it doubles with each level."""
MARGIN = 0.01
"""Cells make a proposal only if all four numbers of their box are between this and one minus this."""
TEMPERATURE = 10_000.0


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
