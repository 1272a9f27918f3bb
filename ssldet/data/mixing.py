"""labelled images, unlabelled images -> one source that mixes them in a fixed ratio.

An epoch is a sequence of groups of one labelled image and `ratio` unlabelled ones, so that every batch of whole groups
holds both. Which images a step shows is a function of the step, as for any other source: runs resume exactly.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ssldet import chance
from ssldet.data.joining import without_labels
from ssldet.source import Source
from ssldet.types import Gather, Problem, Sample, Skipped, Targets


@dataclass(frozen=True, kw_only=True)
class Origin(Problem):
    """Which part of a mixed source an image is from.

    Attributes:
        labelled: Whether its targets are what it shows; where not, it has none and may show anything.
    """

    labelled: Annotated[bool | list[bool], Gather.LIST]


class MixedSource(Source):
    """Groups of one labelled image and some unlabelled ones; no label of the second source is passed on.

    An epoch shows every unlabelled image at least once and every labelled one equally often, in the order of its own
    source; unlabelled images come in random order, unless their source has an order of its own. Where a part is too
    short for the other, it begins again, under other keys and with other views.
    """

    def __init__(self, labelled: Source, unlabelled: Source, ratio: int) -> None:
        """Mix two sources.

        Args:
            labelled: Images with labels.
            unlabelled: Further images, whose labels are removed if there are any.
            ratio: Unlabelled images for each labelled one.
        """
        self._labelled, self._unlabelled, self._ratio = labelled, unlabelled, ratio
        usable = len(labelled) > 0 < len(unlabelled)
        self._passes = max(1, math.ceil(len(unlabelled) / (ratio * len(labelled)))) if usable else 0
        self._groups = self._passes * len(labelled)

    @property
    def classes(self) -> tuple[str, ...]:
        """Those of the labelled part."""
        return self._labelled.classes

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Those of the labelled part."""
        return self._labelled.category_ids

    @property
    def is_thing(self) -> tuple[bool, ...]:
        """That of the labelled part."""
        return self._labelled.is_thing

    @property
    def fingerprint(self) -> str:
        """Short hash of both parts and their ratio."""
        words = f"{self._labelled.fingerprint}\n{self._unlabelled.fingerprint}\n{self._ratio}"
        words += "\nin its order" * self._unlabelled.has_own_order
        return hashlib.blake2b(words.encode(), digest_size=6).hexdigest()

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Files of both parts that can't be used."""
        return self._labelled.skipped + self._unlabelled.skipped

    def __len__(self) -> int:
        """Number of images that an epoch shows."""
        return self._groups * (1 + self._ratio)

    def __getitem__(self, index: int) -> Sample:
        """Read one image, which says in its `Origin` whether it is labelled.

        Raises:
            UnreadableError: The file can't be decoded.
        """
        part, place, turn = self._find(index)
        return self._marked(part, turn, part[place])

    def draw(self, index: int, generator: torch.Generator) -> Sample:
        """Read one image for training, as its own source draws it."""
        part, place, turn = self._find(index)
        return self._marked(part, turn, part.draw(place, generator))

    def path_of(self, index: int) -> Path | None:
        """Return where an image lies, if its own source knows."""
        part, place, _ = self._find(index)
        return part.path_of(place)

    def name_of(self, index: int) -> str | None:
        """Return what an image is called in messages, if its own source knows."""
        part, place, _ = self._find(index)
        return part.name_of(place)

    def targets_of(self, index: int) -> Targets | None:
        """Return boxes and labels of a labelled image without reading it, if its own source can."""
        part, place, _ = self._find(index)
        return part.targets_of(place) if part is self._labelled else None

    def with_classes(self, classes: Sequence[str]) -> "MixedSource | None":
        """Return the same images with their classes counted in another order, if the labelled part can.

        Args:
            classes: The same names in the wanted order.
        """
        labelled = self._labelled.with_classes(classes)
        return None if labelled is None else MixedSource(labelled, self._unlabelled, self._ratio)

    def order(self, seed: int, epoch: int) -> Int[Tensor, " N"]:
        """Return the groups of an epoch one after the other, each with its labelled image first.

        Args:
            seed: Seed of the run.
            epoch: Number of the epoch, from 0.
        """
        first = epoch * self._passes
        passes = [self._labelled.order(seed, first + turn) for turn in range(self._passes)]
        labelled = torch.cat([turn * len(self._labelled) + places.long() for turn, places in enumerate(passes)])
        unlabelled = self._groups + self._unlabelled_order(seed, epoch)
        return torch.cat([labelled.unsqueeze(1), unlabelled.view(self._groups, self._ratio)], dim=1).flatten()

    def _unlabelled_order(self, seed: int, epoch: int) -> Int[Tensor, " U"]:
        """Return the order of the unlabelled images of an epoch, counted from 0 as they begin again."""
        count, whole = self._groups * self._ratio, len(self._unlabelled)
        if not self._unlabelled.has_own_order:
            return torch.randperm(count, generator=chance.generator(seed, "unlabelled", epoch))
        turns, rest = divmod(count, whole)
        first = epoch * (turns + (rest > 0))
        orders = [turn * whole + self._unlabelled.order(seed, first + turn).long() for turn in range(turns)]
        if rest:
            orders.append(turns * whole + self._unlabelled.part_order(np.arange(rest), seed, first + turns).long())
        return torch.cat(orders)

    def _find(self, index: int) -> tuple[Source, int, int]:
        """Return the part that an image is from, its number there, and how often the part has begun again before it."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        part, place = (self._labelled, index) if index < self._groups else (self._unlabelled, index - self._groups)
        turn, place = divmod(place, len(part))
        return part, place, turn

    def _marked(self, part: Source, turn: int, sample: Sample) -> Sample:
        labelled = part is self._labelled
        key = f"{'labelled' if labelled else 'unlabelled'}:{f'{turn}:' if turn else ''}{sample.key}"
        known = sample if labelled else without_labels(sample)
        return replace(known, key=key, problem=Origin(labelled=labelled))
