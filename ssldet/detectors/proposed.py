"""what cells propose, what queries ask for -> the proposals with which each group of queries begins."""

import math
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ssldet.nn.proposals import best_cells
from ssldet.queries import ranks_within_groups
from ssldet.types import Predictions, Queries


def for_groups(proposed: Predictions, asked: Float[Tensor, "B G D"]) -> Predictions:
    """Return the proposals of all cells once for each group, which adds its own score: how well the cell agrees.

    The score is the scaled product of attention, and joins the logits of all classes.

    Args:
        proposed: What all cells propose, with the state of each.
        asked: What each group asks for.

    Returns:
        Proposals of the first group, then those of the second, and so on; `groups` numbers them, on the CPU.
    """
    (states,), groups = proposed.states, asked.shape[1]
    cells, width = states.shape[1:]
    agreement = asked @ states.transpose(1, 2) / math.sqrt(width)
    repeated = {
        name: getattr(proposed, name).unsqueeze(2).expand(-1, -1, groups, -1, -1) for name in ("boxes", "states")
    }
    logits = proposed.logits.unsqueeze(2) + agreement.unsqueeze(-1)
    return replace(
        proposed,
        logits=logits.flatten(2, 3),
        groups=torch.arange(groups).repeat_interleave(cells),
        **{name: value.flatten(2, 3) for name, value in repeated.items()},
    )


def first_cells(scores: Float[Tensor, "B _"], queries: Queries) -> Int[Tensor, "B Q"]:
    """Return the cell with which each query begins: every group has the best ones, best first.

    Args:
        scores: Score of each cell, one group after the other where the groups ask for something.
        queries: The queries.
    """
    if queries.groups is None:
        return best_cells(scores, queries.content.shape[1])
    ranks = ranks_within_groups(queries.groups)
    most = int(ranks.max()) + 1 if queries.equal_groups is None else len(ranks) // queries.equal_groups
    ranks = ranks.to(scores.device)
    if queries.asked is None:
        return best_cells(scores, most)[:, ranks]
    batch, groups = queries.asked.shape[:2]
    best = best_cells(scores.reshape(batch * groups, -1), most).view(batch, groups, most)
    return best[:, queries.groups.to(scores.device), ranks]
