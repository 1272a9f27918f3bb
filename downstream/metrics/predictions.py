"""results file, coco:…, voc:… or yolo:… -> AP: score detections of any program, without a model."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from downstream.annotations.coco import Masks, read_coco
from downstream.annotations.doubts import DOUBTS, are_corners, are_fractions, told
from downstream.annotations.fields import other_kind
from downstream.annotations.labelled import CORNERS, FRACTIONS, LEAVING
from downstream.annotations.labels import Labels, ground_truth
from downstream.annotations.masks import read_mask
from downstream.annotations.numbers import LARGEST, finite_number
from downstream.annotations.problems import SHOWN, Problems, json_of, shown
from downstream.annotations.voc import read_voc
from downstream.annotations.yolo import open_yolo
from downstream.metrics.average_precision import MAX_DETS, Figures, box_ap, mask_ap
from downstream.metrics.voc import voc_ap
from ssldet.data.images import ANY_SIZE
from ssldet.errors import ConfigError, suggest
from ssldet.escapes import printable
from ssldet.regular import read_bytes
from ssldet.source import GroundTruth

log = logging.getLogger(__name__)

READERS: dict[str, Callable[[str, bool], Labels]] = {
    "coco": lambda rest, _: read_coco(Path(rest.partition(":")[0])),
    "voc": lambda rest, _: read_voc(rest),
    "yolo": lambda rest, masks: open_yolo(rest, ANY_SIZE, masks=masks).all_labels,
}
"""Prefix of a data specification -> function that reads its annotations; its second argument asks for masks."""


def score_predictions(
    predictions: Path,
    spec: str,
    *,
    metric: Literal["coco", "voc"] | None = None,
    iou: float | None = None,
    max_dets: int = MAX_DETS,
) -> dict[str, Any]:
    """Score a COCO results file.

    Args:
        predictions: A JSON list of `{"image_id", "category_id", "bbox", "score"}` with boxes in absolute xywh, pixels
            counted from 0. Instead of `category_id` there may be `category`, the class's name, and in addition to or
            instead of `bbox` a `segmentation` (run lengths or polygons). An image may be named by its id, its file
            or, with VOC and YOLO, its file name without suffix; a class by its name or by its number, which counts
            from 1 with VOC and from 0 with YOLO.
        spec: `coco:ANN.json`, `voc:ROOT:SPLIT` or `yolo:ROOT:SPLIT`; only YOLO needs the images.
        metric: The metric; `None` takes VOC's for VOC data and COCO's for all other data.
        iou: Overlap from which an object counts as found; only VOC's metric has it, and `None` takes 0.5.
        max_dets: Detections per image and class that count in COCO's figures.

    Returns:
        The figures of `box_ap` and, if there are masks, those of `mask_ap` under `segm`; or the figures of `voc_ap`.

    Raises:
        AnnotationError: The file or the annotations are invalid; the message lists all problems, with JSON pointers.
        ConfigError: The specification names no labelled data, or the metric lacks an option that is set.
    """
    form, _, rest = spec.partition(":")
    if form not in READERS or not rest:
        raise ConfigError(
            f"{spec}: labels are needed to score against; give coco:ANN.json, voc:ROOT:SPLIT or yolo:ROOT:SPLIT"
        )
    metric = metric or ("voc" if form == "voc" else "coco")
    figures = figures_of(metric, iou=iou, max_dets=max_dets)
    records = json_of(predictions, list, "a list of results, one object a box")
    masks = _with_masks(records)
    labels = READERS[form](rest, masks)
    rows = _checked(records, labels, Problems(predictions))
    for what, line in told(labels).items():
        if what in DOUBTS:
            log.warning("%s: %s", spec, line)
    for warning in _suspicions(rows, labels):
        log.warning("%s: %s", predictions, warning)
    annotations = Path(rest.partition(":")[0])
    if form == "coco" and masks:
        # The same checks of true masks as in training, all faults at once.
        read_coco(annotations, masks=Masks.KEPT)
    truth = _as_stated(annotations) if form == "coco" else ground_truth(labels)
    found = figures(truth, rows)
    return {**found, "segm": mask_ap(truth, rows, max_dets=max_dets)} if masks and metric == "coco" else found


def figures_of(metric: str, *, iou: float | None = None, max_dets: int = MAX_DETS) -> Figures:
    """Return the function that computes the figures of boxes by a metric.

    Args:
        metric: `coco` or `voc`.
        iou: Overlap from which an object counts as found by VOC's metric; `None` takes 0.5.
        max_dets: Detections per image and class that count in COCO's figures.

    Raises:
        ConfigError: There is no such metric, or it lacks an option that is set.
    """
    if metric not in {"coco", "voc"}:
        raise ConfigError(f"metric: no {metric!r}{suggest(metric, ('coco', 'voc'))}; there are coco and voc")
    if metric == "coco" and iou is not None:
        raise ConfigError("iou: COCO's AP is a mean over its own ten overlaps; choose one with --metric voc")
    if metric == "voc" and max_dets != MAX_DETS:
        raise ConfigError("max_dets: every detection counts in VOC's figures; leave it out")
    if max_dets < 1:
        raise ConfigError(f"max_dets: {max_dets} must be a number of detections, at least 1")
    if iou is not None and not 0 < iou <= 1:
        raise ConfigError(f"iou: {iou} must be an overlap above 0 and up to 1, such as 0.5")
    return partial(voc_ap, iou=0.5 if iou is None else iou) if metric == "voc" else partial(box_ap, max_dets=max_dets)


def _as_stated(path: Path) -> GroundTruth:
    """Return a file that `read_coco` accepted as the official metric reads it: with masks and all objects."""
    document = json.loads(read_bytes(path))
    for image in document["images"]:
        image |= {"height": int(image.get("height") or 0), "width": int(image.get("width") or 0)}
    for row in document["annotations"]:
        *_, width, height = row["bbox"]
        area = row.get("area")
        row |= {"iscrowd": int(row.get("iscrowd", 0)), "area": width * height if finite_number(area) is None else area}
    return {name: document[name] for name in ("images", "annotations", "categories")}


def _checked(records: Sequence[object], labels: Labels, problems: Problems) -> list[dict[str, Any]]:
    """Return the results with original ids, or raise all problems of all results."""
    images, categories = _image_names(labels), _category_names(labels)
    sizes = dict(zip(labels.image_ids, labels.sizes.tolist(), strict=True))
    masks = _with_masks(records)
    rows = []
    for number, record in enumerate(records):
        where = f"$[{number}]"
        if not isinstance(record, dict):
            problems.add(where, shown(record), "expects an object with image_id, category_id, bbox and score")
            continue
        image = _original_id(record, "image_id", images, where, problems)
        row = {"image_id": image, "category_id": _category(record, categories, where, problems)}
        row["score"] = _score(record, where, problems)
        # In the official format an empty list means "no box".
        if not masks or record.get("bbox", []) != []:
            row["bbox"] = _box(record, where, problems)
        if masks:
            row["segmentation"] = _mask(record, sizes.get(image), where, problems)
        rows.append(row)
    problems.stop()
    return rows


def _suspicions(rows: Sequence[Mapping[str, Any]], labels: Labels) -> Iterator[str]:
    """Yield what may be wrong with results that can all the same be scored, one line each."""
    answered = {row["image_id"] for row in rows}
    without = [name for name, key in zip(labels.files, labels.image_ids, strict=True) if key not in answered]
    if without:
        yield (
            f"{len(without)} of {len(labels)} images have no result, {printable(without[0])} for one; their objects "
            "count as not found"
        )
    sizes = dict(zip(labels.image_ids, labels.sizes.tolist(), strict=True))
    # Boxes without area say nothing about how they were written.
    boxed = [row for row in rows if "bbox" in row and min(row["bbox"][2:]) > 0]
    boxes = np.array([row["bbox"] for row in boxed], dtype=np.float64).reshape(-1, 4)
    if are_fractions(boxes):
        yield FRACTIONS
    elif are_corners(boxes, np.array([sizes[row["image_id"]] for row in boxed], dtype=np.int64).reshape(-1, 2)):
        yield LEAVING + CORNERS


def _with_masks(records: Sequence[object]) -> bool:
    return any(isinstance(record, dict) and "segmentation" in record for record in records)


def _image_names(labels: Labels) -> dict[object, Any]:
    """Return every name of an image -> its id; an id takes precedence over a file name, that over its stem."""
    files: dict[object, Any] = dict(zip(labels.files, labels.image_ids, strict=True))
    stems = [Path(name).stem for name in labels.files]
    unique = {name for name, count in Counter(stems).items() if count == 1}
    short: dict[object, Any] = {
        stem: key for stem, key in zip(stems, labels.image_ids, strict=True) if isinstance(key, str) and stem in unique
    }
    return short | files | {key: key for key in labels.image_ids}


def _category_names(labels: Labels) -> dict[object, int]:
    """Return every name of a class -> its id."""
    names: dict[object, int] = dict(zip(labels.classes, labels.category_ids, strict=True))
    return names | {key: key for key in labels.category_ids}


def _category(record: Mapping[str, Any], ids: Mapping[object, int], where: str, problems: Problems) -> object:
    """Return the original id of the class, which `category_id`, `category` or both in agreement name."""
    name = record.get("category")
    if "category_id" not in record and "category" in record:
        return _original_id(record, "category", ids, where, problems)
    category = _original_id(record, "category_id", ids, where, problems)
    if category is not None and isinstance(name, str) and ids.get(name, category) != category:
        fault = f"{shown(record['category_id'])} is not the class {name!r}, whose id is {ids[name]}"
        problems.add(f"{where}.category_id", fault, "category_id and category must agree; leave one of them out")
    return category


def _original_id(record: Mapping[str, Any], name: str, ids: Mapping[Any, Any], where: str, problems: Problems) -> Any:
    """Return the original id that an entry names."""
    value = record.get(name)
    if isinstance(value, int | str) and not isinstance(value, bool) and value in ids:
        return ids[value]
    # The search for similar names is slow, and the first few faults show the pattern.
    nearest = other_kind(value, ids) if len(problems) < SHOWN else ""
    if not nearest and isinstance(value, str) and len(problems) < SHOWN:
        nearest = suggest(value, map(str, ids))
    example = next(iter(ids.values()))
    remedy = f"no such {name.removesuffix('_id')} in the annotations, whose first is {example!r}"
    problems.add(f"{where}.{name}", (shown(value) if name in record else "missing") + nearest, remedy)
    return None


def _box(record: Mapping[str, Any], where: str, problems: Problems) -> Any:
    """Return the box after checking it."""
    box = record.get("bbox")
    if not isinstance(box, list) or len(box) != 4:
        fault = shown(box) if "bbox" in record else "missing"
        problems.add(f"{where}.bbox", fault, "expects four numbers [x, y, width, height] in pixels")
    elif any((number := finite_number(side)) is None or abs(number) > LARGEST for side in box):
        problems.add(f"{where}.bbox", shown(box), "expects finite numbers of pixels; a diverged model is not scored")
    elif box[2] < 0 or box[3] < 0:
        problems.add(f"{where}.bbox", shown(box), "width and height can't be negative; bbox is xywh, not xyxy")
    return box


def _score(record: Mapping[str, Any], where: str, problems: Problems) -> Any:
    """Return the score after checking it."""
    score = record.get("score")
    if finite_number(score) is None:
        fault = shown(score) if "score" in record else "missing"
        problems.add(f"{where}.score", fault, "expects a finite number; a diverged model is not scored")
    return score


def _mask(record: Mapping[str, Any], size: list[int] | None, where: str, problems: Problems) -> Any:
    """Return the run lengths of the mask, or `None` if it is invalid or its image is unknown."""
    if "segmentation" not in record:
        problems.add(f"{where}.segmentation", "missing", "other results of this file have one; give all or none a mask")
    elif size is not None:
        try:
            return read_mask(record["segmentation"], (size[0], size[1]))
        except ValueError as error:
            problems.add(f"{where}.segmentation", shown(record["segmentation"]), str(error))
    return None
