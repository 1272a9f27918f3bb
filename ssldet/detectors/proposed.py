"""what cells propose, what queries ask for -> the proposals with which each group of queries begins."""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ssldet.nn.deformable import Levels
from ssldet.nn.padding import mean_over_cells
from ssldet.nn.proposals import best_cells, distinct_cells
from ssldet.queries import ranks_within_groups
from ssldet.types import Predictions, Queries

SHARPNESS = 5.0
"""Logit of a cell that looks exactly like what is asked for. As a parameter, it moved by less than a hundredth in 300
steps on photographs."""


def for_groups(
    proposed: Predictions, asked: Float[Tensor, "B G D"], alike: Float[Tensor, "B G K"] | None = None
) -> Predictions:
    """Return the proposals of all cells once for each group, which adds its own score: how well the cell agrees.

    The score is the scaled product of attention, and joins the logits of all classes. States are left out: those of all
    groups would be the same, and copies of them take more memory than all else that is returned.

    Args:
        proposed: What all cells propose, with the state of each.
        asked: What each group asks for.
        alike: How much each cell looks like that, as `resemblance` returns it, which adds to the score.

    Returns:
        Proposals of the first group, then those of the second, and so on; `groups` numbers them, on the CPU. Their
        states have no channels.
    """
    (states,), groups = proposed.states, asked.shape[1]
    cells, width = states.shape[1:]
    agreement = asked @ states.transpose(1, 2) / math.sqrt(width)
    if alike is not None:
        agreement = agreement + alike
    logits = proposed.logits.unsqueeze(2) + agreement.unsqueeze(-1)
    boxes = proposed.boxes.unsqueeze(2).expand(-1, -1, groups, -1, -1)
    return replace(
        proposed,
        logits=logits.flatten(2, 3),
        boxes=boxes.flatten(2, 3),
        states=states.new_zeros(1, len(states), groups * cells, 0),
        groups=torch.arange(groups).repeat_interleave(cells),
    )


def resemblance(level: Float[Tensor, "B C h w"], looks: Float[Tensor, "B G C"], lie: Levels) -> Float[Tensor, "B G K"]:
    """Return how much the image looks at each cell like what each group asks for: a cosine times `SHARPNESS`.

    Both are taken relative to the mean of the image. What cells of coarser levels look like is the mean over what they
    cover, so that all levels are compared by the same features. Nothing of this is learned: it tells a detector from
    its first step on where to look, which proposals had not learned on photographs in hundreds of steps.

    Args:
        level: The backbone's features of the finest level of the cells.
        looks: The same features of what each group asks for; zeros where a group asks for nothing.
        lie: How the cells of all levels lie in their row.
    """
    height, width = lie.shapes[0]
    hidden = None if lie.padding is None else lie.padding[:, : height * width]
    mean = mean_over_cells(level.flatten(2).transpose(1, 2), hidden).unsqueeze(1)
    shows = torch.ones_like(level[:, :1]) if hidden is None else (~hidden).view(-1, 1, height, width).to(level)
    away = (level - mean.view(-1, level.shape[1], 1, 1)) * shows
    around, count = (F.avg_pool2d(part, 3, stride=1, padding=1) for part in (away, shows))
    cells = around / count.clamp(min=1 / 9) * shows
    asked = F.normalize(looks - mean, dim=-1) * (looks != 0).any(-1, keepdim=True)
    each = []
    for size in lie.shapes:
        step = [max(1, round(fine / coarse)) for fine, coarse in zip((height, width), size, strict=True)]
        covered = F.interpolate(F.avg_pool2d(cells, step, ceil_mode=True), size)
        each.append(asked @ F.normalize(covered.flatten(2), dim=1))
    return SHARPNESS * torch.cat(each, dim=-1)


def first_cells(
    scores: Float[Tensor, "B _"], boxes: Float[Tensor, "B K 4"], queries: Queries, overlap: float
) -> Int[Tensor, "B Q"]:
    """Return the cell with which each query begins: every group has the best ones, best first.

    Args:
        scores: Score of each cell, one group after the other where the groups ask for something.
        boxes: What each cell proposes, cxcywh.
        queries: The queries.
        overlap: Intersection over union of two boxes above which a group prefers another one to the worse; 1 prefers
            none.
    """

    def best(scores: Tensor, count: int, groups: int = 1) -> Tensor:
        if overlap >= 1:
            return best_cells(scores, count)
        own = boxes if groups == 1 else boxes.repeat_interleave(groups, dim=0)
        return distinct_cells(scores, own, count, overlap)

    if queries.groups is None:
        return best(scores, queries.content.shape[1])
    ranks = ranks_within_groups(queries.groups)
    most = int(ranks.max()) + 1 if queries.equal_groups is None else len(ranks) // queries.equal_groups
    ranks = ranks.to(scores.device)
    if queries.asked is None:
        return best(scores, most)[:, ranks]
    groups = queries.asked.shape[1]
    each = best(scores.reshape(-1, boxes.shape[1]), most, groups)
    return each.view(len(boxes), groups, most)[:, queries.groups.to(scores.device), ranks]
