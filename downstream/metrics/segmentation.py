"""Detections with masks -> PQ, and AP of boxes and masks of things: every figure that a source allows.

Panoptic quality needs a source that labels every pixel. AP needs countable objects: if a source has stuff too, AP only
considers the things among labels and detections.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from downstream.annotations.masks import encode
from downstream.annotations.segments import EveryPixelLabelled
from downstream.metrics.average_precision import MAX_DETS, MaskAP
from downstream.metrics.panoptic_quality import PanopticQuality
from ssldet.errors import DataError
from ssldet.source import GroundTruth, Measurable, Source, WrappedSource
from ssldet.types import Batch, Detections


class SegmentationFigures:
    """Panoptic quality, if every pixel is labelled, and average precision of boxes and masks of things."""

    def __init__(self, source: Source, *, max_dets: int = MAX_DETS) -> None:
        """Start without answers.

        Args:
            source: The labelled source that is evaluated.
            max_dets: Detections per image and class that count in AP.

        Raises:
            DataError: The source has no labels, or no masks.
        """
        if not isinstance(source, Measurable):
            raise DataError("no labels to measure against; evaluate on one panoptic:ANN.json:PNGS:IMAGES or coco:…")
        every_pixel = isinstance(source, EveryPixelLabelled)
        self._quality = PanopticQuality(source) if every_pixel else None
        things = source.is_thing or (True,) * len(source.classes)
        self._is_thing: Bool[Tensor, " C"] = torch.tensor(things, dtype=torch.bool)
        measured = Things(source) if isinstance(source, EveryPixelLabelled) else source
        self._precision = MaskAP(measured, max_dets=max_dets) if self._is_thing.any() else None

    def update(self, detections: list[Detections], batch: Batch) -> None:
        """Take in one batch.

        Args:
            detections: One entry per image, with masks and, if pixels are labelled, a segmentation.
            batch: The images of the detections.

        Raises:
            DivergedError: A box or score is not finite.
            DataError: An answer lacks masks or segmentation, or has a class that the source lacks.
        """
        if self._quality is not None:
            self._quality.update(detections, batch)
        if self._precision is not None:
            self._precision.update([self._things(answer) for answer in detections], batch)

    def take_rows(self) -> tuple[Any, Any]:
        """Return what both metrics took in since the last call, and forget it."""
        quality = None if self._quality is None else self._quality.take_rows()
        return quality, None if self._precision is None else self._precision.take_rows()

    def add_rows(self, rows: tuple[Any, Any]) -> None:
        """Take in what another evaluator of the same source has taken."""
        for metric, part in zip((self._quality, self._precision), rows, strict=True):
            if metric is not None:
                metric.add_rows(part)

    def results(self) -> dict[str, Any]:
        """Return all figures of `PanopticQuality`, those of boxes under `box` and those of masks under `segm`.

        If the source does not label every pixel, return the figures of `MaskAP`.
        """
        precision = {} if self._precision is None else self._precision.results()
        if self._quality is None:
            return precision
        masks = {"segm": precision.pop("segm")} if precision else {}
        return {**self._quality.results(), **({"box": precision} if precision else {}), **masks}

    def _things(self, answer: Detections) -> Detections:
        """Leave out stuff, which AP does not consider, before the masks are encoded."""
        known = answer.labels < len(self._is_thing)
        # Labels without a class are kept, so that the metric reports them as an error.
        return answer.only(~known | self._is_thing[answer.labels.clamp(max=len(self._is_thing) - 1)])


class Things(WrappedSource, Measurable):
    """The things of a source that labels every pixel: the part of its labels that AP measures."""

    source: EveryPixelLabelled

    @property
    def keys(self) -> tuple[str, ...]:
        """`Sample.key` of each image."""
        return self.source.keys

    @property
    def image_ids(self) -> tuple[int, ...] | tuple[str, ...]:
        """Original id of each image."""
        return self.source.image_ids

    def to_results(self, detections: Sequence[Detections], batch: Batch) -> list[dict[str, Any]]:
        """Return detections as COCO results with original ids."""
        return self.source.to_results(detections, batch)

    def ground_truth(self) -> GroundTruth:
        """Return categories and annotations of things in COCO's form, with masks that are read from disk."""
        truth = self.source.ground_truth()
        things = {key for key, thing in zip(self.category_ids, self.source.is_thing, strict=True) if thing}
        rows: dict[Any, list[dict[str, Any]]] = {}
        for row in truth["annotations"]:
            rows.setdefault(row["image_id"], []).append(row)
        annotations = []
        for key, image in zip(self.source.all_keys, truth["images"], strict=True):
            numbered = [
                (n, row) for n, row in enumerate(rows.get(image["id"], ()), start=1) if row["category_id"] in things
            ]
            if numbered:
                segments = self.source.truth(key).segments
                masks = encode(torch.stack([segments == number for number, _ in numbered]))
                annotations += [row | {"segmentation": mask} for (_, row), mask in zip(numbered, masks, strict=True)]
        categories = [row for row in truth["categories"] if row["id"] in things]
        return {"images": truth["images"], "categories": categories, "annotations": annotations}
