"""Detections -> AP: COCO's metric, computed by pycocotools, without its traps.

The figures are pycocotools' own to the last digit. What is added: boxes and scores must be finite (a NaN overlap counts
as a match there, so that a diverged model scores well), no detections at all give 0 instead of an error, annotations
are numbered from 1 (number 0 reads as "unmatched" there), and nothing is printed.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ssldet.errors import AnnotationError, DataError, DivergedError
from ssldet.types import Batch, Detections, Source

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100")
"""Names of the figures in the order in which COCO summarises them."""

GroundTruth = dict[str, list[dict[str, Any]]]
Rows = Float[np.ndarray, "N 6"]
"""One detection a row: absolute xywh, score, label."""


@runtime_checkable
class Labelled(Protocol):
    """What a metric must know of a labelled source."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the labels."""
        ...

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Original id of each class."""
        ...

    @property
    def keys(self) -> tuple[str, ...]:
        """`Sample.key` of each image."""
        ...

    @property
    def image_ids(self) -> tuple[int, ...] | tuple[str, ...]:
        """Original id of each image."""
        ...

    def ground_truth(self) -> GroundTruth:
        """Return the annotations in COCO's form, with original ids."""
        ...


class BoxAP:
    """Average precision of boxes over a whole source.

    An image that was never shown counts as one in which nothing was found; one shown twice counts once.

    Attributes:
        source: The labelled source that is evaluated.
    """

    def __init__(self, source: Source) -> None:
        """Start without detections.

        Args:
            source: The labelled source that is evaluated.

        Raises:
            DataError: The source carries no labels.
        """
        if not isinstance(source, Labelled):
            raise DataError("no labels to measure against; evaluate on one coco:ANN.json:IMAGES or voc:ROOT:SPLIT")
        self.source: Labelled = source
        self._found: dict[str, Rows] = {}

    def update(self, detections: list[Detections], batch: Batch) -> None:
        """Take in one batch.

        Args:
            detections: One entry an image, absolute xyxy in pixels of the image on disk.
            batch: Where they were found.

        Raises:
            DivergedError: A box or score is not finite.
            DataError: A label that the source has no class for.
        """
        for found, key in zip(detections, batch.keys, strict=True):
            if not (found.boxes.isfinite().all() and found.scores.isfinite().all()):
                raise DivergedError(
                    f"image {key}: a detected box or score is not finite; a diverged model is not scored, "
                    "go back to an earlier checkpoint"
                )
            if len(found) and int(found.labels.max()) >= len(self.source.classes):
                raise DataError(
                    f"image {key}: detected class number {int(found.labels.max())}, but the data has "
                    f"{len(self.source.classes)} classes; evaluate on data with the classes of the training set"
                )
            left, top, right, bottom = found.boxes.double().cpu().unbind(-1)
            columns = (left, top, right - left, bottom - top, found.scores.cpu(), found.labels.cpu())
            self._found[key] = np.stack([column.numpy().astype(np.float64) for column in columns], axis=-1)

    def results(self) -> dict[str, float | dict[str, float]]:
        """Return AP by its COCO names, and `per_class`; -1 where the data has no object to measure on."""
        index = dict(zip(self.source.keys, self.source.image_ids, strict=True))
        rows = [
            {"image_id": index[key], "category_id": self.source.category_ids[int(label)], "bbox": box, "score": score}
            for key, found in self._found.items()
            for *box, score, label in found.tolist()
        ]
        return box_ap(self.source.ground_truth(), rows)


def box_ap(truth: GroundTruth, detections: Sequence[Mapping[str, Any]]) -> dict[str, float | dict[str, float]]:
    """Compute COCO's figures.

    Args:
        truth: COCO's `images`, `annotations` and `categories`; an annotation with `iscrowd` or `difficult` is neither
            a target nor, when found, a mistake.
        detections: COCO results: `image_id`, `category_id`, `bbox` in absolute xywh and `score`, all finite.

    Returns:
        The figures by name in 0..1, -1 where there is nothing to measure on; `per_class` holds AP by class name.

    Raises:
        AnnotationError: The data has no object at all.
    """
    if not any(not (row["iscrowd"] or row.get("difficult")) for row in truth["annotations"]):
        raise AnnotationError("the data to evaluate on holds no object at all; is it the right split?")
    with redirect_stdout(io.StringIO()):
        evaluation = _Evaluation(_indexed(truth, truth["annotations"]), _indexed(truth, detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # Axes: overlap threshold, recall, class, object size, detections an image.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    named = {row["id"]: row["name"] for row in truth["categories"]}
    per_class = {
        named[category]: float(values[values > -1].mean()) if (values > -1).any() else -1.0
        for category, values in zip(evaluation.params.catIds, precision.transpose(2, 0, 1), strict=True)
    }
    figures = dict(zip(NAMES, map(float, evaluation.stats), strict=False))
    return {**figures, "per_class": per_class}


class _Evaluation(COCOeval):  # type: ignore[misc]  # pycocotools has no types
    def _prepare(self) -> None:
        super()._prepare()
        # COCO's own preparation ignores crowds only.
        for rows in self._gts.values():
            for row in rows:
                row["ignore"] = int(row["ignore"] or row.get("difficult", 0))


def _indexed(truth: GroundTruth, rows: Iterable[Mapping[str, Any]]) -> COCO:
    """Return annotations or detections as pycocotools wants them, numbered from 1."""
    coco = COCO()
    numbered = []
    for number, row in enumerate(rows, start=1):
        *_, width, height = row["bbox"]
        numbered.append({"iscrowd": 0, "area": width * height, **row, "id": number})
    coco.dataset = {"images": truth["images"], "categories": truth["categories"], "annotations": numbered}
    coco.createIndex()
    return coco
