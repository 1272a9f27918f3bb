"""coco:…, voc:…, yolo:…, hf:… or panoptic:… -> Inspection: all that is wrong with labelled data, and what it holds."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from downstream.annotations.coco import Masks, gather_coco
from downstream.annotations.doubts import told
from downstream.annotations.labelled import Annotated, check_files, suspicions
from downstream.annotations.labels import Labels
from downstream.annotations.panoptic import inspect_panoptic
from downstream.annotations.problems import Problems
from downstream.annotations.tables import OBJECTS, gather
from downstream.annotations.voc import gather_voc
from downstream.annotations.yolo import gather_yolo
from ssldet.data.files import tally
from ssldet.data.images import ImageRules
from ssldet.data.inspection import Inspection, not_opened
from ssldet.data.object_sizes import ObjectSizes
from ssldet.data.table_images import TableSource
from ssldet.data.tables import open_table
from ssldet.errors import AnnotationError, DataError

NAMED = 40
"""Classes without a box that a warning names."""


def check_labels(spec: str, rules: ImageRules) -> Inspection:
    """Read annotations to the end, whatever is wrong with them, and compare them with the images on disk.

    Args:
        spec: `coco:ANN.json:IMAGES`, `voc:ROOT:SPLIT`, `yolo:ROOT:SPLIT` or `panoptic:ANN.json:PNGS:IMAGES`.
        rules: Which images are usable.
    """
    form, _, rest = spec.partition(":")
    readers: dict[str, Callable[[str, Problems], Annotated]] = {
        "coco": partial(gather_coco, rules=rules, masks=Masks.CHECKED),
        "voc": gather_voc,
        "panoptic": inspect_panoptic,
        "yolo": partial(gather_yolo, rules=rules),
    }
    return _inspected(spec, Path(rest.partition(":")[0]), partial(readers[form], rest), rules)


def check_table(spec: str, rules: ImageRules) -> Inspection:
    """Check a dataset of Hugging Face in the same way; where it has no labels, only its images.

    Args:
        spec: `hf:PATH:SPLIT`.
        rules: Which images are usable.
    """
    try:
        table = open_table(spec.partition(":")[2])
        if OBJECTS not in table.rows.features:
            source = TableSource(table, rules)
            return Inspection(spec=spec, skipped=source.skipped, counts={"images": len(source)})
        return _inspected(spec, Path(table.spec), partial(gather, table), rules)
    except DataError as error:
        return not_opened(spec, error)


def _inspected(spec: str, path: Path, read: Callable[[Problems], Annotated], rules: ImageRules) -> Inspection:
    problems = Problems(path)
    try:
        annotated = read(problems)
        sizes, skipped = check_files(annotated, problems, rules)
    except AnnotationError as error:
        if str(error) != problems.message():
            problems.add(spec, str(error), "")
        return Inspection(spec=spec, problems=tuple(problems.entries()), problem_count=len(problems))
    labels = annotated.labels.measured(sizes)
    usable = labels.subset(sizes[:, 0] > 0)
    if not len(usable) and not len(problems):
        problems.add(
            spec, f"none of {len(labels)} images can be used ({tally(skipped)})", "give images that can be read"
        )
    return Inspection(
        spec=spec,
        problems=tuple(problems.entries()),
        problem_count=len(problems),
        warnings=_warnings(labels, annotated.misread, usable),
        skipped=skipped,
        counts=_counts(usable),
        boxes_per_class=_per_class(usable),
        object_sizes=_object_sizes(usable),
    )


def _warnings(labels: Labels, misread: str, usable: Labels) -> tuple[str, ...]:
    warnings = [*told(labels).values(), *suspicions(labels, misread)]
    empty = [name for name, count in _per_class(usable).items() if not count]
    if empty:
        named = ", ".join(empty[:NAMED]) + (", …" if len(empty) > NAMED else "")
        warnings.append(f"{len(empty)} of {len(usable.classes)} classes have no box: {named}")
    return tuple(warnings)


def _counts(labels: Labels) -> dict[str, int]:
    return {
        "images": len(labels),
        "images without objects": int((np.diff(labels.first) == 0).sum()),
        "boxes": len(labels.boxes),
        "crowd regions": int(labels.crowd.sum()),
        "difficult objects": int(labels.difficult.sum()),
        "classes": len(labels.classes),
    }


def _object_sizes(labels: Labels) -> ObjectSizes:
    images = np.repeat(labels.sizes, np.diff(labels.first), axis=0)
    return ObjectSizes(boxes=labels.boxes[~labels.crowd, 2:], images=images[~labels.crowd])


def _per_class(labels: Labels) -> dict[str, int]:
    found = np.bincount(labels.labels[~labels.crowd], minlength=len(labels.classes))
    return dict(zip(labels.classes, found.tolist(), strict=True))
