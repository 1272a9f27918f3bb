"""results file with PNGs, panoptic:… -> PQ: score segmentations of any program, without a model or images."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from downstream.annotations.labels import stays_inside
from downstream.annotations.pngs import read_ids
from downstream.annotations.problems import Problems, json_of, records, shown
from downstream.annotations.segments import (
    Panoptic,
    number_segments,
    other_areas,
    read_panoptic,
    sound_segment,
)
from downstream.metrics.panoptic_quality import OTHER_AREAS, count, panoptic_quality
from ssldet.errors import AnnotationError, UnreadableError
from ssldet.types import Segmentation

log = logging.getLogger(__name__)

Entries = dict[object, tuple[str, dict[str, Any]]]
"""Image id -> JSON pointer and entry of a results file."""


def score_panoptic(predictions: Path, spec: str) -> dict[str, Any]:
    """Score a panoptic results file.

    Args:
        predictions: `PRED.json` or `PRED.json:PNGS`, where PNGS is the folder of the PNG files; its default is the
            path of the file without `.json`. The file holds `annotations`, one per image, with `image_id`,
            `file_name` of its PNG and `segments_info`: `id` and `category_id` of each segment.
        spec: `panoptic:ANN.json` or `panoptic:ANN.json:PNGS`; an image folder may follow.

    Returns:
        The figures of `panoptic_quality`.

    Raises:
        AnnotationError: The file, its PNGs or the annotations are invalid, or an image has no prediction; the message
            lists all problems.
    """
    panoptic = read_panoptic(spec.partition(":")[2])
    path, folder = _places(predictions)
    document = json_of(path, dict, "an object with annotations")
    problems = Problems(path)
    if not folder.is_dir():
        problems.add("PNGs", f"no folder {folder}", "give --predictions PRED.json:PNGS")
        problems.stop()
    entries = _entries(document, panoptic, problems)
    for number in panoptic.labels.image_ids:
        if number not in entries:
            problems.add("$.annotations", f"image {number} has no prediction", "predict every image of the annotations")
    problems.stop()
    classes = len(panoptic.labels.classes)
    total, contradicted = np.zeros((classes, 4)), 0
    for index, key in enumerate(panoptic.labels.image_ids):
        try:
            truth = panoptic.truth(index)
        except UnreadableError as error:
            raise AnnotationError(f"{error}; restore the PNG of the true segments") from error
        answer = _answer(*entries[key], folder, panoptic, truth, problems)
        if answer is not None:
            total += count(truth, answer, classes)
        contradicted += other_areas(truth.segments, panoptic.labels.areas[panoptic.labels.rows(index)])
    problems.stop()
    if contradicted:
        log.warning("%s: %d segments of %s", spec, contradicted, OTHER_AREAS)
    return panoptic_quality(total, panoptic.labels.classes, panoptic.is_thing)


def _places(predictions: Path) -> tuple[Path, Path]:
    """Return the file and the folder of its PNGs."""
    name, colon, folder = str(predictions).rpartition(":")
    if colon and not predictions.exists():
        return Path(name), Path(folder)
    return predictions, predictions.with_suffix("")


def _entries(document: Mapping[str, Any], panoptic: Panoptic, problems: Problems) -> Entries:
    """Return the entries of the annotated images; others are counted and left out, as in the official metric."""
    image_ids = set(panoptic.labels.image_ids)
    entries: Entries = {}
    others = 0
    for where, record in records(document, "annotations", problems):
        key, name = record.get("image_id"), record.get("file_name")
        if type(key) is not int:
            problems.add(f"{where}.image_id", shown(key), "expects the id of an image of the annotations")
        elif key not in image_ids:
            others += 1
        elif key in entries:
            problems.add(f"{where}.image_id", f"{key} has two entries", "give every image one entry")
        elif not isinstance(name, str) or not stays_inside(name):
            problems.add(f"{where}.file_name", shown(name), "expects the name of a PNG in the folder of PNGs")
        else:
            entries[key] = where, record
    if others:
        log.warning("%s: %d predictions for images that the annotations don't have, left out", problems.path, others)
    return entries


def _answer(
    where: str, record: Mapping[str, Any], folder: Path, panoptic: Panoptic, truth: Segmentation, problems: Problems
) -> Segmentation | None:
    """Return one answer, or `None` after its faults were added to the problems."""
    before = len(problems)
    label_of = {key: label for label, key in enumerate(panoptic.labels.category_ids)}
    ids: list[int] = []
    labels: list[int] = []
    used: set[int] = set()
    for place, segment in records(record, "segments_info", problems, where, may_be_empty=True):
        number = sound_segment(segment, label_of, used, place, problems)
        if number is not None:
            ids.append(number)
            labels.append(label_of[segment["category_id"]])
    try:
        pixels = read_ids(folder / record["file_name"], ids)
    except UnreadableError as error:
        problems.add(f"{where}.file_name", f"{error.path}: {error.reason}", "expects a PNG of segment numbers")
        return None
    if len(problems) > before:
        return None
    segments, unlisted, absent = number_segments(pixels, np.asarray(ids, dtype=np.int64))
    for number in unlisted:
        problems.add(f"{where}.segments_info", f"segment {number} is in the PNG only", "list every segment of the PNG")
    for number in absent:
        problems.add(f"{where}.segments_info", f"segment {number} is not in the PNG", "list what has pixels only")
    if segments.shape != truth.segments.shape:
        sizes = " instead of ".join(" x ".join(map(str, part.shape)) for part in (segments, truth.segments))
        problems.add(f"{where}.file_name", f"{record['file_name']} has {sizes} pixels", "expects the image's size")
    return None if len(problems) > before else Segmentation(segments=segments, labels=torch.tensor(labels).long())
