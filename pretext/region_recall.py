"""answers, proposed boxes -> the share of proposed regions that the most confident answers cover."""

import torch
from jaxtyping import Bool
from torch import Tensor

from pretext.proposals import draw_boxes
from ssldet import chance
from ssldet.boxes import pairwise_iou, to_absolute
from ssldet.errors import DataError, DivergedError
from ssldet.types import Batch, Detections

AT = (10, 30, 100)
"""Numbers of answers per image of which recall is taken."""
OVERLAP = 0.5
"""Least intersection over union at which a region counts as found."""


class RegionRecall:
    """Recall of regions at an overlap of 0.5, whatever their class, next to as many random boxes."""

    def __init__(self) -> None:
        """Start without regions."""
        self._found: dict[int, list[Bool[Tensor, " _"]]] = {number: [] for number in AT}
        self._by_chance: list[Bool[Tensor, " _"]] = []

    def update(self, detections: list[Detections], batch: Batch) -> None:
        """Take in one batch.

        Args:
            detections: Answers to each image; absolute xyxy in pixels of the image on disk.
            batch: Its targets are the regions.

        Raises:
            DivergedError: A box is not finite.
        """
        sizes = batch.original_sizes.tolist()
        for answers, targets, size, key in zip(detections, batch.targets, sizes, batch.keys, strict=True):
            if not bool(answers.boxes.isfinite().all()):
                raise DivergedError("a found box is not finite: the model has diverged; lower optim.lr")
            if not len(targets):
                continue
            regions = to_absolute(targets.boxes, tuple(size)).cpu()
            best = answers.boxes[answers.scores.argsort(descending=True)].float().cpu()
            overlaps = pairwise_iou(regions, best) >= OVERLAP
            for number in AT:
                self._found[number].append(overlaps[:, :number].any(1))
            drawn = draw_boxes(AT[1], tuple(size), 0.0, 1.0, chance.generator("region recall", key))
            self._by_chance.append((pairwise_iou(regions, drawn) >= OVERLAP).any(1))

    def results(self) -> dict[str, float]:
        """Return the figures so far.

        Returns:
            `region_recall_10`, `region_recall_30` and `region_recall_100`, in 0..1, of the so many most confident
            answers per image; `region_recall_30_chance`, that of 30 random boxes.

        Raises:
            DataError: There was no region.
        """
        if not self._by_chance:
            raise DataError("no region to measure recall on; give images that are not of one colour")
        figures = {f"region_recall_{number}": _share(self._found[number]) for number in AT}
        return figures | {f"region_recall_{AT[1]}_chance": _share(self._by_chance)}


def _share(parts: list[Bool[Tensor, " _"]]) -> float:
    return float(torch.cat(parts).float().mean())
