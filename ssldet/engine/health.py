"""objective, images -> how well its vectors still tell images apart; objective -> parameters that no loss reaches.

A pretext task can be solved, or its loss be lowered, by a network that describes all images alike. The vector of an
image is the mean of the backbone's features over its cells, and the mean of the last decoder layer over the detector's
own queries.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ssldet.collapse import effective_rank, spread
from ssldet.data.sources import PartSource
from ssldet.engine.evaluate import answers
from ssldet.engine.run import Run
from ssldet.engine.sources import evaluation_batches_of
from ssldet.neighbours import vote
from ssldet.source import Source, WrappedSource
from ssldet.task import Objective, learning_sections
from ssldet.types import Batch, Embedding, Sample

NEIGHBOURS = 10
"""Nearest neighbours that vote."""
FEWEST = 8
"""Images without which nothing is measured."""


class Health:
    """Measures a pretext run on a few of its images, those that it is measured on where there are any.

    Attributes:
        on: Whether anything is measured: not for tasks that read labels, of which the score tells more.
    """

    def __init__(self, run: Run, source: Source) -> None:
        """Choose images, spread evenly over a source.

        Args:
            run: Says how many.
            source: What the run is measured on, or else trains on.
        """
        self._run = run
        step = max(1, len(source) // max(1, run.health))
        self._chosen = list(range(0, len(source), step))[: run.health]
        self._source = source
        self.on = run.task.verb == "pretrain" and len(self._chosen) >= FEWEST

    def measure(self, objective: Objective, device: torch.device) -> dict[str, float | int]:
        """Return the measures by name; `backbone` and `decoder` stand for the vectors, as far as these parts learn.

        Args:
            objective: The model inside its task, on the device.
            device: Where to compute.

        Returns:
            `rank_…`, the effective rank; `spread_…`, how widely directions spread; and, where the folders of the images
            have several names, `knn_…`, the share of images whose neighbours lie in their folder, `knn_chance`, the
            share of the largest folder; and `images`, their number.
        """
        batches = evaluation_batches_of(
            self._run.task,
            _Numbered(PartSource(self._source, self._chosen)),
            batch_size=max(1, self._run.data.batch_size // self._run.optim.accumulate),
            seed=self._run.seed,
        )
        learning = set(learning_sections(self._run.task, objective.detector))
        numbers: list[int] = []
        vectors: dict[str, list[Tensor]] = {"backbone": [], "decoder": []}
        rests = set(objective.detector.sections) - learning
        if learning <= {"backbone"} or "decoder" in rests:
            del vectors["decoder"]
        for part in vectors:
            numbers = []
            describe = _Describe(objective, part)
            for batch, found in answers(objective, batches, device, self._run.precision, describe):
                numbers += map(int, batch.keys)
                vectors[part] += [one.vector for one in found if isinstance(one, Embedding)]
        return _figures({part: torch.stack(rows) for part, rows in vectors.items()}, self._folders(numbers))

    def _folders(self, numbers: Sequence[int]) -> list[str]:
        """Return the folder's name of each image; empty where there is but one, or images are no files."""
        paths = [self._source.path_of(self._chosen[number]) for number in numbers]
        names = [path.parent.name for path in paths if isinstance(path, Path)]
        return names if len(names) == len(paths) and len(set(names)) > 1 else []


def unreached(objective: Objective) -> list[str]:
    """Return the names of parameters that learn and got no gradient, after a step's last backward pass.

    Args:
        objective: The objective that is trained.
    """
    return [name for name, value in objective.named_parameters() if value.requires_grad and value.grad is None]


class _Numbered(WrappedSource):
    """Images whose keys are their numbers, so that one knows which image a vector is of."""

    def __getitem__(self, index: int) -> Sample:
        return replace(super().__getitem__(index), key=str(index))

    def draw(self, index: int, generator: torch.Generator) -> Sample:
        return replace(super().draw(index, generator), key=str(index))


class _Describe:
    """A batch without padding -> one vector per image."""

    def __init__(self, objective: Objective, part: str) -> None:
        self._detector, self._part = objective.detector, part

    def __call__(self, batch: Batch) -> list[Embedding]:
        images = self._detector.normalise(batch.images, batch.padding)
        if self._part == "backbone":
            vectors = self._detector.features(images).mean((2, 3))
        else:
            vectors = self._detector(images, batch.padding).states[-1].mean(1)
        return [Embedding(vector=vector) for vector in vectors.float()]


def _figures(vectors: dict[str, Float[Tensor, "N _"]], folders: Sequence[str]) -> dict[str, float | int]:
    figures: dict[str, float | int] = {"images": len(next(iter(vectors.values())))}
    for part, rows in vectors.items():
        figures |= {f"rank_{part}": float(effective_rank(rows)), f"spread_{part}": float(spread(rows))}
    if folders:
        places = {name: place for place, name in enumerate(sorted(set(folders)))}
        labels = torch.tensor([places[name] for name in folders])
        for part, rows in vectors.items():
            figures[f"knn_{part}"] = float((vote(rows, labels, NEIGHBOURS) == labels).float().mean())
        figures["knn_chance"] = max(Counter(folders).values()) / len(folders)
    return figures
