"""results file, coco:… or voc:… -> AP: score detections that any program wrote, without a model and without images."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from downstream.annotations.coco import read_coco
from downstream.annotations.labels import Labels, ground_truth
from downstream.annotations.problems import SHOWN, Problems, shown
from downstream.annotations.voc import read_voc
from downstream.metrics.average_precision import box_ap
from ssldet.errors import AnnotationError, ConfigError, suggest

READERS: dict[str, Callable[[str], Labels]] = {
    "coco": lambda rest: read_coco(Path(rest.partition(":")[0])),
    "voc": read_voc,
}
"""Prefix of a data specification -> what reads its annotations."""


def score_predictions(predictions: Path, spec: str) -> dict[str, float | dict[str, float]]:
    """Score a COCO results file.

    Args:
        predictions: A JSON list of `{"image_id", "category_id", "bbox", "score"}` with boxes in absolute xywh. Against
            VOC, `image_id` is the image's name without suffix and pixels count from 0; there `category_id` may be
            the class's name or its number from 1.
        spec: `coco:ANN.json` or `voc:ROOT:SPLIT`; image folders may be left out.

    Returns:
        What `box_ap` computes.

    Raises:
        AnnotationError: The file or the annotations are not sound; all problems at once, with JSON pointers.
        ConfigError: The specification is not labelled data.
    """
    form, _, rest = spec.partition(":")
    if form not in READERS or not rest:
        raise ConfigError(f"{spec}: labels are needed to score against; give coco:ANN.json or voc:ROOT:SPLIT")
    labels = READERS[form](rest)
    return box_ap(ground_truth(labels), read_predictions(predictions, labels))


def read_predictions(path: Path, labels: Labels) -> list[dict[str, Any]]:
    """Read and check a COCO results file.

    Args:
        path: See `score_predictions`.
        labels: What it will be scored against.

    Returns:
        The results with original ids, every number finite.

    Raises:
        AnnotationError: With a JSON pointer for each problem.
    """
    try:
        records = json.loads(path.read_bytes())
    except OSError as error:
        raise AnnotationError(f"{path}: can't be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{path}: not a JSON file ({error}); expects a list of results") from error
    if not isinstance(records, list):
        raise AnnotationError(f"{path}: $: {shown(records)}; expects a list of results, one object a box")
    problems = Problems(path)
    images = {key: key for key in labels.image_ids}
    categories: dict[object, object] = dict(zip(labels.category_ids, labels.category_ids, strict=True))
    categories |= dict(zip(labels.classes, labels.category_ids, strict=True))
    rows = []
    for number, record in enumerate(records):
        where = f"$[{number}]"
        if not isinstance(record, dict):
            problems.add(where, shown(record), "expects an object with image_id, category_id, bbox and score")
            continue
        image = _known(record, "image_id", images, where, problems)
        category = _known(record, "category_id", categories, where, problems)
        rows.append({"image_id": image, "category_id": category, **_numbers(record, where, problems)})
    problems.stop()
    return rows


def _known(record: Mapping[str, Any], name: str, known: Mapping[Any, Any], where: str, problems: Problems) -> object:
    """Return the original id behind an entry."""
    value = record.get(name)
    if isinstance(value, int | str) and not isinstance(value, bool) and value in known:
        return known[value]
    # Looking for near misses is slow; the first few faults show the pattern.
    nearest = suggest(value, map(str, known)) if isinstance(value, str) and len(problems) < SHOWN else ""
    example = next(iter(known))
    remedy = f"no such {name.removesuffix('_id')} in the annotations, whose first is {example!r}"
    problems.add(f"{where}.{name}", (shown(value) if name in record else "missing") + nearest, remedy)
    return None


def _numbers(record: Mapping[str, Any], where: str, problems: Problems) -> dict[str, Any]:
    """Return box and score, checked."""
    box, score = record.get("bbox"), record.get("score")
    if not isinstance(box, list) or len(box) != 4:
        found = shown(box) if "bbox" in record else "missing"
        problems.add(f"{where}.bbox", found, "expects four numbers [x, y, width, height] in pixels")
    elif not all(map(_finite, box)):
        problems.add(f"{where}.bbox", shown(box), "expects finite numbers; a diverged model is not scored")
    elif box[2] < 0 or box[3] < 0:
        problems.add(f"{where}.bbox", shown(box), "width and height can't be negative; bbox is xywh, not xyxy")
    if not _finite(score):
        found = shown(score) if "score" in record else "missing"
        problems.add(f"{where}.score", found, "expects a finite number; a diverged model is not scored")
    return {"bbox": box, "score": score}


def _finite(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
