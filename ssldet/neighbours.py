"""vectors, labels -> what nearest neighbours vote for: a probe of features that trains nothing."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

TEMPERATURE = 0.07
"""Temperature of the votes (Wu et al. 2018)."""
CHUNK = 1024
"""Number of vectors whose neighbours are searched at a time."""


def vote(vectors: Float[Tensor, "N E"], labels: Int[Tensor, " N"], neighbours: int) -> Int[Tensor, " N"]:
    """Return the label that the nearest neighbours of each vector vote for.

    Args:
        vectors: At least two vectors.
        labels: Labels of the vectors, counted from 0.
        neighbours: Number of neighbours that vote; all other vectors if there are fewer.
    """
    directions, elected = F.normalize(vectors, dim=1), []
    for start in range(0, len(vectors), CHUNK):
        some = directions[start : start + CHUNK]
        similarity = some @ directions.T
        similarity[torch.arange(len(some)), torch.arange(start, start + len(some))] = -torch.inf
        nearest, index = similarity.topk(min(neighbours, len(vectors) - 1))
        votes = torch.zeros(len(some), int(labels.max()) + 1)
        elected.append(votes.scatter_add(1, labels[index], (nearest / TEMPERATURE).exp()).argmax(1))
    return torch.cat(elected)
