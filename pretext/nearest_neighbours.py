"""image vectors, folder names -> how often the nearest neighbours agree: a probe of features that needs no training."""

import logging
import math
from collections import Counter
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ssldet.errors import DataError, DivergedError
from ssldet.types import Batch, Embedding, Gather, Problem

log = logging.getLogger(__name__)

TEMPERATURE = 0.07
"""Of the votes (Wu et al. 2018)."""
CHUNK = 1024
"""Images whose neighbours are sought at a time."""


@dataclass(frozen=True, kw_only=True)
class Category(Problem):
    """What an image shows as a whole, for measuring; nothing learns from it.

    Attributes:
        folder: Name of the folder that the image lies in; in a batch, one per image.
    """

    folder: Annotated[str | list[str], Gather.LIST]


class NearestNeighbours:
    """Vote of each image's nearest neighbours among all others, with the name of an image's folder for its class.

    Votes are weighted by similarity, as has become usual since Wu et al. (2018). No image votes on itself, and there is
    no other set to keep, so all of a small set is used. What to compare with is `knn_chance`, the share of the most
    frequent folder. Folder names are for measuring only; nothing learns from them.
    """

    def __init__(self, neighbours: int) -> None:
        """Start with nothing.

        Args:
            neighbours: How many vote.
        """
        self._neighbours = neighbours
        self._vectors: list[Float[Tensor, " E"]] = []
        self._folders: list[str] = []

    def update(self, answers: list[Embedding], batch: Batch) -> None:
        """Take in one batch.

        Args:
            answers: The vector of each image.
            batch: Its problem names the folder of each image, see `Category`.

        Raises:
            DivergedError: A vector is not finite.
        """
        assert isinstance(batch.problem, Category), "this probe is for images with the names of their folders"
        for answer, folder in zip(answers, batch.problem.folder, strict=True):
            if not bool(answer.vector.isfinite().all()):
                raise DivergedError("an image's vector is not finite: the model has diverged; lower optim.lr")
            self._vectors.append(answer.vector.float().cpu())
            self._folders.append(folder)

    def results(self) -> dict[str, float | int | None]:
        """Return `knn_top1` and `knn_chance`, none in one folder; `folders`; and `feature_std`, see `spread`.

        Raises:
            DataError: There was nothing to measure.
        """
        if not self._vectors:
            raise DataError("no image to find neighbours of; give at least one")
        vectors, counts = torch.stack(self._vectors), Counter(self._folders)
        top1 = chance = None
        if len(counts) > 1:
            numbers = {name: number for number, name in enumerate(sorted(counts))}
            labels = torch.tensor([numbers[name] for name in self._folders])
            top1 = float((vote(vectors, labels, self._neighbours) == labels).float().mean())
            chance = max(counts.values()) / len(labels)
        else:
            log.warning("no nearest-neighbour probe: all images lie in one folder; sort them into one folder a class")
        return {"knn_top1": top1, "knn_chance": chance, "folders": len(counts), "feature_std": float(spread(vectors))}


def vote(vectors: Float[Tensor, "N E"], labels: Int[Tensor, " N"], neighbours: int) -> Int[Tensor, " N"]:
    """Return the label that each vector's nearest others elect.

    Args:
        vectors: At least two.
        labels: Counted from 0.
        neighbours: How many vote; fewer where there are fewer.
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


def spread(vectors: Float[Tensor, "N E"]) -> Float[Tensor, ""]:
    """Return how far vectors spread over directions: 0 where all point the same way, a collapse; 1 at most.

    It is the mean deviation of a component of the vectors, made length one, times the root of their size.

    Args:
        vectors: One an image.
    """
    return F.normalize(vectors.float(), dim=1).std(0, correction=0).mean() * math.sqrt(vectors.shape[1])
