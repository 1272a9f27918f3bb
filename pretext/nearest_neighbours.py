"""image vectors, folder names -> accuracy of a nearest-neighbour classifier: a probe of features without training."""

import logging
from collections import Counter
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from ssldet.collapse import spread
from ssldet.errors import DataError, DivergedError
from ssldet.neighbours import vote
from ssldet.types import Batch, Embedding, Gather, Problem

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Category(Problem):
    """The class of a whole image, for evaluation only; nothing is trained on it.

    Attributes:
        folder: Name of the folder that the image lies in; in a batch, one per image.
    """

    folder: Annotated[str | list[str], Gather.LIST]


class NearestNeighbours:
    """Classifies each image by its nearest neighbours among all other images; the name of its folder is its class.

    Votes are weighted by similarity, as has become usual since Wu et al. (2018). No image votes on itself, and no
    second set of images is needed, so a small set is used whole. The figure to compare with is `knn_chance`, the share
    of the most frequent folder. Folder names serve evaluation only; nothing is trained on them.
    """

    def __init__(self, neighbours: int) -> None:
        """Start without images.

        Args:
            neighbours: Number of neighbours that vote.
        """
        self._neighbours = neighbours
        self._vectors: list[Float[Tensor, " E"]] = []
        self._folders: list[str] = []

    def update(self, answers: list[Embedding], batch: Batch) -> None:
        """Take in one batch.

        Args:
            answers: The vector of each image.
            batch: Its problem is a `Category`, which names the folder of each image.

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
        """Return the figures of the images so far.

        Returns:
            `knn_top1` and `knn_chance`, both `None` if all images lie in one folder; `folders`, the number of folders;
            and `feature_std`, the result of `ssldet.collapse.spread`.

        Raises:
            DataError: There was no image.
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
            log.warning("no nearest-neighbour probe: all images lie in one folder; sort them into one folder per class")
        return {"knn_top1": top1, "knn_chance": chance, "folders": len(counts), "feature_std": float(spread(vectors))}
