"""Detections -> AP: COCO's metric for boxes and masks, computed by pycocotools with checked inputs.

The figures are pycocotools' own to the last digit. This file adds four things: boxes and scores must be finite
(pycocotools counts a NaN overlap as a match, so that a diverged model scores well); a result without detections gives 0
instead of an error; annotations are numbered from 1 (pycocotools takes number 0 for "unmatched"); nothing is printed.
`accelerate` passes the same rows to faster-coco-eval, which must give the same figures.
"""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any, Literal

import numpy as np
import pycocotools.mask as coco_mask
import torch
from jaxtyping import Float
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from downstream.annotations.masks import RunLengths, encode, read_mask
from ssldet.boxes import xyxy_to_xywh
from ssldet.errors import AnnotationError, DataError, DivergedError, SetupError
from ssldet.source import GroundTruth, Measurable, Source
from ssldet.types import Batch, Detections

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100")
"""Names of the figures in the order in which COCO summarises them."""

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

    def rows(self) -> list[dict[str, Any]]:
        """Return all detections as COCO results with original ids, in the order of the source."""
        return [
            {"image_id": image, "category_id": self.source.category_ids[int(label)], "bbox": box, "score": score}
            for key, image in zip(self.source.keys, self.source.image_ids, strict=True)
            for *box, score, label in (self._found[key].tolist() if key in self._found else ())
        ]

    def results(self) -> dict[str, Any]:
        """Return the figures by name, and `per_class`; a figure is -1 if the data has no object for it."""
        return self._figures(self.source.ground_truth(), self.rows())


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

    def __init__(self, source: Source, *, accelerate: bool = False) -> None:
        """Start without detections.

        Args:
            source: A labelled source whose `ground_truth` holds a `segmentation` for each annotation.
            accelerate: Compute with faster-coco-eval.

        Raises:
            DataError: The source has no labels.
        """
        self.boxes = BoxAP(source)
        self._accelerate = accelerate
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
        segm = mask_ap(truth, shapes, accelerate=self._accelerate)
        return {**box_ap(truth, rows, accelerate=self._accelerate), "segm": segm}


def box_ap(truth: GroundTruth, detections: Sequence[Mapping[str, Any]], *, accelerate: bool = False) -> dict[str, Any]:
    """Compute COCO's figures of boxes.

    Args:
        truth: COCO's `images`, `annotations` and `categories`. An annotation with `iscrowd` or `difficult` need not be
            found, and a detection that matches it is no mistake.
        detections: COCO results: `image_id`, `category_id`, `score` and `bbox` in absolute xywh or, without a `bbox`,
            `segmentation` as compressed run lengths; all finite.
        accelerate: Compute with faster-coco-eval.

    Returns:
        The figures by name in 0..1, or -1 if the data has no object for a figure; `per_class` holds AP by class name.

    Raises:
        AnnotationError: The data has no object at all.
        SetupError: `accelerate` is set and faster-coco-eval is not installed.
    """
    return _coco_ap(truth, truth["annotations"], detections, "bbox", accelerate=accelerate)


def mask_ap(truth: GroundTruth, detections: Sequence[Mapping[str, Any]], *, accelerate: bool = False) -> dict[str, Any]:
    """Compute COCO's figures of masks.

    As in pycocotools, the size class of a detection comes from its `bbox` or, without one, from its mask.

    Args:
        truth: As for `box_ap`; every annotation has a `segmentation` in any of COCO's forms.
        detections: COCO results with `segmentation` as compressed run lengths; all finite.
        accelerate: Compute with faster-coco-eval.

    Returns:
        The figures by name in 0..1, or -1 if the data has no object for a figure; `per_class` holds AP by class name.

    Raises:
        AnnotationError: The data has no object at all, or an object without a valid mask.
        SetupError: `accelerate` is set and faster-coco-eval is not installed.
    """
    sizes = {image["id"]: (image["height"] or 0, image["width"] or 0) for image in truth["images"]}
    objects = []
    for number, row in enumerate(truth["annotations"]):
        try:
            mask = read_mask(row.get("segmentation"), sizes[row["image_id"]])
        except ValueError as error:
            raise AnnotationError(f"$.annotations[{number}].segmentation: {error}; masks can't be measured") from error
        objects.append({**row, "segmentation": mask})
    return _coco_ap(truth, objects, detections, "segm", accelerate=accelerate)


def _coco_ap(
    truth: GroundTruth,
    objects: Sequence[Mapping[str, Any]],
    detections: Sequence[Mapping[str, Any]],
    kind: Literal["bbox", "segm"],
    *,
    accelerate: bool,
) -> dict[str, Any]:
    if not any(not (row["iscrowd"] or row.get("difficult")) for row in objects):
        raise AnnotationError("the data to evaluate on holds no object at all; is it the right split?")
    index, evaluator = _coco_classes(accelerate=accelerate)
    with redirect_stdout(io.StringIO()):
        evaluation = evaluator(_indexed(index(), truth, objects), _indexed(index(), truth, detections), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # Axes: overlap threshold, recall, class, object size, detections per image.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    named = _unique_names(truth["categories"])
    per_class = {
        named[category]: float(values[values > -1].mean()) if (values > -1).any() else -1.0
        for category, values in zip(evaluation.params.catIds, precision.transpose(2, 0, 1), strict=True)
    }
    figures = dict(zip(NAMES, map(float, evaluation.stats), strict=False))
    return {**figures, "per_class": per_class}


def _unique_names(categories: Sequence[Mapping[str, Any]]) -> dict[Any, str]:
    """Return id -> name; if several classes share a name, their ids are appended."""
    names = [row["name"] for row in categories]
    return {
        row["id"]: row["name"] if names.count(row["name"]) == 1 else f"{row['name']} ({row['id']})"
        for row in categories
    }


class _IgnoresDifficult:
    """Makes either library ignore `difficult` objects too, not only crowds."""

    cocoGt: Any  # noqa: N815 - theirs

    def _prepare(self) -> None:
        super()._prepare()  # type: ignore[misc]  # the library's class comes next
        for row in self.cocoGt.anns.values():
            row["ignore"] = int(row["ignore"] or row.get("difficult", 0))


class _Evaluation(_IgnoresDifficult, COCOeval):  # type: ignore[misc]  # pycocotools has no types
    """The evaluation of pycocotools."""


def _coco_classes(*, accelerate: bool) -> tuple[Any, Any]:
    """Return the library's class of an index and its class of an evaluation."""
    if not accelerate:
        return COCO, _Evaluation
    try:
        import faster_coco_eval as faster
    except ImportError as error:
        raise SetupError("faster-coco-eval is not installed; pip install 'ssldet[coco]', or go without") from error
    return faster.COCO, type("_Accelerated", (_IgnoresDifficult, faster.COCOeval_faster), {})


def _indexed(index: Any, truth: GroundTruth, rows: Iterable[Mapping[str, Any]]) -> Any:
    """Fill an index as these libraries need it: annotations and images numbered from 1, every row with box and area."""
    # In sorted order, as the libraries sort images; the order decides between equal scores.
    images = {key: number for number, key in enumerate(sorted(row["id"] for row in truth["images"]), start=1)}
    index.dataset = {
        "images": [{**row, "id": images[row["id"]]} for row in truth["images"]],
        "categories": truth["categories"],
        "annotations": [
            {"iscrowd": 0, **_extent(row), **row, "id": number, "image_id": images[row["image_id"]]}
            for number, row in enumerate(rows, start=1)
        ],
    }
    index.createIndex()
    return index


def _extent(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return box and area of a detection: the area of the box or, without a box, of the mask."""
    if "bbox" in row:
        *_, width, height = row["bbox"]
        return {"area": width * height}
    mask = row["segmentation"]
    return {"area": float(coco_mask.area(mask)), "bbox": coco_mask.toBbox(mask).tolist()}
