"""answers, proposed boxes, labels -> the share of proposed regions, and of labelled objects, that boxes cover."""

from collections import defaultdict

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pretext.proposals import MeasuredRegions, draw_boxes
from ssldet import chance
from ssldet.boxes import pairwise_iou, to_absolute
from ssldet.errors import DataError, DivergedError
from ssldet.types import Batch, Detections

AT = (10, 30, 100)
"""Numbers of answers per image of which recall is taken."""
CHANCE = f"region_recall_{AT[1]}_chance"
"""Name of the recall of as many random boxes."""
OVERLAP = 0.5
"""Least intersection over union at which a region counts as found."""


class RegionRecall:
    """Recall of regions by answers, whatever their class, next to as many random boxes.

    Where images have labels, also recall of labelled objects by answers and by proposals. A box covers what it overlaps
    by at least 0.5.
    """

    def __init__(self) -> None:
        """Start without regions."""
        self._covered: dict[str, list[Bool[Tensor, " _"]]] = defaultdict(list)

    def update(self, detections: list[Detections], batch: Batch) -> None:
        """Take in one batch.

        Args:
            detections: Answers to each image; absolute xyxy in pixels of the image on disk.
            batch: Its targets are the regions.

        Raises:
            DivergedError: A box is not finite.
        """
        measured = batch.problem
        assert isinstance(measured, MeasuredRegions), "these samples were made for training"
        sizes = batch.original_sizes.tolist()
        for image, (answers, targets, key) in enumerate(zip(detections, batch.targets, batch.keys, strict=True)):
            if not bool(answers.boxes.isfinite().all()):
                raise DivergedError("a found box is not finite: the model has diverged; lower optim.lr")
            height, width = sizes[image]
            regions, objects, candidates = (
                to_absolute(boxes, (height, width)).cpu()
                for boxes in (targets.boxes, measured.objects[image], measured.candidates[image])
            )
            best = answers.boxes[answers.scores.argsort(descending=True)].float().cpu()
            self._count("region_recall", regions, best)
            self._count("object_recall", objects, best)
            self._count("patch_recall", objects, candidates)
            if len(regions):
                drawn = draw_boxes(AT[1], (height, width), 0.0, 1.0, chance.generator("region recall", key))
                self._covered[CHANCE].append((pairwise_iou(regions, drawn) >= OVERLAP).any(1))

    def results(self) -> dict[str, float]:
        """Return the figures so far, in 0..1.

        Returns:
            `region_recall_10`, `region_recall_30` and `region_recall_100`, of proposed regions by the so many most
            confident answers per image, and `region_recall_30_chance`, by 30 random boxes. Where images have labels,
            `object_recall_10` and so on, of labelled objects by answers, and `patch_recall_10` and so on, of labelled
            objects by the first proposals.

        Raises:
            DataError: There was no region.
        """
        if CHANCE not in self._covered:
            raise DataError("no region to measure recall on; give images that are not of one colour")
        return {name: float(torch.cat(parts).float().mean()) for name, parts in self._covered.items()}

    def _count(self, name: str, wanted: Float[Tensor, "R 4"], boxes: Float[Tensor, "N 4"]) -> None:
        """Note which of the wanted boxes the first of some others cover; of an image without any, nothing."""
        if not len(wanted):
            return
        overlaps = pairwise_iou(wanted, boxes) >= OVERLAP
        for number in AT:
            self._covered[f"{name}_{number}"].append(overlaps[:, :number].any(1))
