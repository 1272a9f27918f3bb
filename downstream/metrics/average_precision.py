"""Detections -> AP: COCO's metric for boxes and masks, on checked inputs.

The figures are pycocotools' own to the last digit; `coco_engines` computes the curves behind them. This file adds four
things: boxes and scores must be finite (pycocotools counts a NaN overlap as a match, so that a diverged model scores
well); a result without detections gives 0 instead of an error; difficult objects are ignored; any number of detections
per image may count, where pycocotools' own summary holds for 100 only.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from downstream.annotations.masks import RunLengths, encode, read_mask
from downstream.metrics.coco_engines import Columns, Curves, Kind, Numbers, Results, columns_of, fastest
from downstream.metrics.findings import findings
from ssldet.boxes import xyxy_to_xywh
from ssldet.errors import AnnotationError, DataError, DivergedError
from ssldet.findings import Findings
from ssldet.source import GroundTruth, Measurable, Source
from ssldet.types import Batch, Detections

log = logging.getLogger(__name__)

MAX_DETS = 100
"""Detections per image and class that count in published figures."""

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100")
"""Names of the figures in the order in which COCO summarises them."""

OVERLAPS = {"AP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}
"""Figure -> which of COCO's overlap thresholds 0.50, 0.55, … 0.95 it averages."""

SIZES = {"APs": 1, "APm": 2, "APl": 3}
"""Figure -> COCO's range of object sizes; 0 is all sizes."""

Figures = Callable[[GroundTruth, Sequence[Mapping[str, Any]]], dict[str, Any]]
"""A function that computes named figures from annotations and results, both with original ids."""
Rows = Float[np.ndarray, "N 6"]
"""One detection per row: absolute xywh, score, label."""


class BoxAP:
    """Average precision of boxes over a whole source, by COCO's metric or another one.

    An image that never came in a batch counts as an image without detections; an image that came twice counts once. The
    order of images has no influence.

    Attributes:
        source: The labelled source that is evaluated.
    """

    def __init__(self, source: Source, figures: Figures | None = None) -> None:
        """Start without detections.

        Args:
            source: The labelled source that is evaluated.
            figures: The function that computes the figures; `None` means `box_ap`.

        Raises:
            DataError: The source has no labels.
        """
        if not isinstance(source, Measurable):
            raise DataError("no labels to measure against; evaluate on one coco:ANN.json:IMAGES or voc:ROOT:SPLIT")
        self.source: Measurable = source
        self._figures: Figures = figures or box_ap
        self._found: dict[str, Rows] = {}

    def update(self, detections: list[Detections], batch: Batch) -> None:
        """Take in one batch.

        Args:
            detections: One entry per image, absolute xyxy in pixels of the image on disk.
            batch: The images of the detections.

        Raises:
            DivergedError: A box or score is not finite.
            DataError: A label has no class in the source.
        """
        for found, key in zip(detections, batch.keys, strict=True):
            rows = finite_rows(found, f"image {key}")
            if len(found) and int(found.labels.max()) >= len(self.source.classes):
                raise DataError(
                    f"image {key}: detected class number {int(found.labels.max())}, but the data has "
                    f"{len(self.source.classes)} classes; evaluate on data with the classes of the training set"
                )
            self._found[key] = rows

    def take_rows(self) -> dict[str, Rows]:
        """Return the detections of each image since the last call, and forget them."""
        taken, self._found = self._found, {}
        return taken

    def add_rows(self, rows: Mapping[str, Rows]) -> None:
        """Take in detections that another evaluator of the same source has taken."""
        self._found.update(rows)

    def rows(self) -> Results:
        """Return all detections as COCO results with original ids, in the order of the source."""
        found = [self._found.get(key, np.empty((0, 6))) for key in self.source.keys]
        return Results(
            self.source.image_ids,
            self.source.category_ids,
            np.repeat(np.arange(len(found)), [len(rows) for rows in found]),
            np.concatenate([np.empty((0, 6)), *found]),
        )

    def results(self) -> dict[str, Any]:
        """Return the figures by name, and `per_class`; a figure is -1 if the data has no object for it."""
        return self._figures(self.source.ground_truth(), self.rows())

    def findings(self) -> Findings:
        """Return what stands behind the figures."""
        keys = dict(zip(self.source.image_ids, self.source.keys, strict=True))
        return findings(self.source.ground_truth(), self.rows(), keys, self._figures)


def finite_rows(detections: Detections, where: str) -> Rows:
    """Return the detections of one image as the rows that a metric keeps.

    Args:
        detections: Detections of one image, absolute xyxy in pixels of the image on disk.
        where: Name of the image in the message.

    Raises:
        DivergedError: A box or score is not finite.
    """
    if not (detections.boxes.isfinite().all() and detections.scores.isfinite().all()):
        raise DivergedError(
            f"{where}: a detected box or score is not finite; a diverged model is not scored, "
            "go back to an earlier checkpoint"
        )
    scores, labels = detections.scores[:, None].double(), detections.labels[:, None].double()
    columns = (xyxy_to_xywh(detections.boxes.double()), scores, labels)
    rows: Rows = torch.cat(columns, dim=1).cpu().numpy()
    return rows


class MaskAP:
    """Average precision of masks and of their boxes over a whole source.

    The masks of each batch are encoded as run lengths at once, so that only one batch of them is in memory.

    Attributes:
        boxes: The metric of the boxes.
    """

    def __init__(self, source: Source, *, max_dets: int = MAX_DETS) -> None:
        """Start without detections.

        Args:
            source: A labelled source whose `ground_truth` holds a `segmentation` for each annotation.
            max_dets: Detections per image and class that count.

        Raises:
            DataError: The source has no labels.
        """
        self.boxes = BoxAP(source)
        self._max_dets = max_dets
        self._masks: dict[str, list[RunLengths]] = {}

    def update(self, detections: list[Detections], batch: Batch) -> None:
        """Take in one batch.

        Args:
            detections: One entry per image, with masks in pixels of the image on disk.
            batch: The images of the detections.

        Raises:
            DivergedError: A box or score is not finite.
            DataError: The detections have no masks, or a label has no class in the source.
        """
        self.boxes.update(detections, batch)
        for found, key in zip(detections, batch.keys, strict=True):
            if found.masks is None:
                raise DataError(f"image {key}: detections without masks can't be measured by mask AP")
            self._masks[key] = encode(found.masks)

    def take_rows(self) -> tuple[dict[str, Rows], dict[str, list[RunLengths]]]:
        """Return boxes and run lengths of each image since the last call, and forget them."""
        taken, self._masks = self._masks, {}
        return self.boxes.take_rows(), taken

    def add_rows(self, rows: tuple[Mapping[str, Rows], Mapping[str, list[RunLengths]]]) -> None:
        """Take in what another evaluator of the same source has taken."""
        self.boxes.add_rows(rows[0])
        self._masks.update(rows[1])

    def results(self) -> dict[str, Any]:
        """Return the figures of the boxes by name and, under `segm`, those of the masks with the same names.

        Under `segm` the size of a detection is the area of its mask, as in published figures.
        """
        truth, rows = self.boxes.source.ground_truth(), self.boxes.rows()
        masks = (mask for key in self.boxes.source.keys for mask in self._masks.get(key, ()))
        shapes = [
            {name: row[name] for name in ("image_id", "category_id", "score")} | {"segmentation": mask}
            for row, mask in zip(rows, masks, strict=True)
        ]
        segm = mask_ap(truth, shapes, max_dets=self._max_dets)
        return {**box_ap(truth, rows, max_dets=self._max_dets), "segm": segm}

    def findings(self) -> Findings:
        """Return what stands behind the figures of the boxes."""
        return self.boxes.findings()


def box_ap(truth: GroundTruth, detections: Sequence[Mapping[str, Any]], *, max_dets: int = MAX_DETS) -> dict[str, Any]:
    """Compute COCO's figures of boxes.

    Args:
        truth: COCO's `images`, `annotations` and `categories`. An annotation with `iscrowd` or `difficult` need not be
            found, and a detection that matches it is no mistake.
        detections: COCO results: `image_id`, `category_id`, `score` and `bbox` in absolute xywh or, without a `bbox`,
            `segmentation` as compressed run lengths; all finite.
        max_dets: Detections per image and class that count, the most confident ones.

    Returns:
        The figures by name in 0..1, or -1 if the data has no object for a figure; `per_class` holds AP by class name.
        The recall at `max_dets` is named after it: `AR100`.

    Raises:
        AnnotationError: The data has no object at all.
    """
    return _coco_ap(truth, truth["annotations"], detections, "bbox", max_dets)


def mask_ap(truth: GroundTruth, detections: Sequence[Mapping[str, Any]], *, max_dets: int = MAX_DETS) -> dict[str, Any]:
    """Compute COCO's figures of masks.

    As in pycocotools, the size class of a detection comes from its `bbox` or, without one, from its mask.

    Args:
        truth: As for `box_ap`; every annotation has a `segmentation` in any of COCO's forms.
        detections: COCO results with `segmentation` as compressed run lengths; all finite.
        max_dets: Detections per image and class that count, the most confident ones.

    Returns:
        As for `box_ap`.

    Raises:
        AnnotationError: The data has no object at all, or an object without a valid mask.
    """
    sizes = {image["id"]: (image["height"] or 0, image["width"] or 0) for image in truth["images"]}
    objects = []
    for number, row in enumerate(truth["annotations"]):
        try:
            mask = read_mask(row.get("segmentation"), sizes[row["image_id"]])
        except ValueError as error:
            raise AnnotationError(f"$.annotations[{number}].segmentation: {error}; masks can't be measured") from error
        objects.append({**row, "segmentation": mask})
    return _coco_ap(truth, objects, detections, "segm", max_dets)


def _coco_ap(
    truth: GroundTruth,
    objects: Sequence[Mapping[str, Any]],
    detections: Sequence[Mapping[str, Any]],
    kind: Kind,
    max_dets: int,
) -> dict[str, Any]:
    if not any(not (row["iscrowd"] or row.get("difficult")) for row in objects):
        raise AnnotationError("the data to evaluate on holds no object at all; is it the right split?")
    numbers = Numbers.of(truth)
    true, found = columns_of(objects, numbers, kind), columns_of(detections, numbers, kind)
    _warn_of_more_objects(true, max_dets)
    limits = [*(limit for limit in (1, 10) if limit < max_dets), max_dets]
    curves = fastest()(numbers, true, found, kind, limits)
    named = _unique_names(truth["categories"])
    classes = zip(numbers.categories, np.moveaxis(curves[0][..., 0, -1], 2, 0), strict=True)
    per_class = {named[category]: _mean(precision) for category, precision in classes}
    return {**_summary(curves, limits), "per_class": per_class}


def _summary(curves: Curves, limits: Sequence[int]) -> dict[str, float]:
    """Return COCO's figures; those of recall are named after the number of detections that count."""
    precision, recall = curves
    return {
        **{name: _mean(precision[overlaps, :, :, 0, -1]) for name, overlaps in OVERLAPS.items()},
        **{name: _mean(precision[..., size, -1]) for name, size in SIZES.items()},
        **{f"AR{limit}": _mean(recall[..., 0, number]) for number, limit in enumerate(limits)},
    }


def _mean(values: Float[np.ndarray, "..."]) -> float:
    """Return the mean of what could be measured, -1 where nothing could."""
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else -1.0


def _warn_of_more_objects(objects: Columns, max_dets: int) -> None:
    """Say that some objects can't be found, because more of them are in an image than detections count."""
    pairs = np.stack([objects.images, objects.categories])
    _, counts = np.unique(pairs[:, objects.crowd == 0], axis=1, return_counts=True)
    if (crowded := counts[counts > max_dets]).size:
        _warn(
            f"{crowded.size} times an image holds more than {max_dets} objects of one class (up to {crowded.max()}), "
            f"but only {max_dets} detections of a class count in an image, so that these objects can't all be found; "
            f"--max-dets {crowded.max()} lets more count (task.max_dets in a run)"
        )


@cache
def _warn(message: str) -> None:
    """Say something once, however often a run evaluates."""
    log.warning("%s", message)


def _unique_names(categories: Sequence[Mapping[str, Any]]) -> dict[Any, str]:
    """Return id -> name; if several classes share a name, their ids are appended."""
    names = [row["name"] for row in categories]
    return {
        row["id"]: row["name"] if names.count(row["name"]) == 1 else f"{row['name']} ({row['id']})"
        for row in categories
    }
