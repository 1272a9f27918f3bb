"""LabelledImages -> a COCO file: what was read of VOC or YOLO, written so that every evaluation stays the same."""

import json
import logging
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from downstream.annotations.coco import read_coco
from downstream.annotations.labelled import LabelledImages
from downstream.annotations.labels import Labels, ground_truth
from ssldet.data.files import unreadable
from ssldet.disk import naming
from ssldet.errors import AnnotationError, DataError
from ssldet.source import Source

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What was written.

    Attributes:
        spec: Data specification of the new file with its images, which stay where they are.
        counts: What it holds.
    """

    spec: str
    counts: dict[str, int]

    def __str__(self) -> str:
        """Say it in one line."""
        return f"{self.spec}  ({', '.join(f'{count} {what}' for what, count in self.counts.items())})"

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"spec": self.spec, "counts": self.counts}


def write_coco(source: Source, out: Path) -> Converted:
    """Write labelled images as a COCO file, and read it back before it gets its name.

    Images are named relative to their folder and stay where they are. Ids that are no numbers are counted from 1. The
    flag `difficult`, which COCO does not know, is written beside `iscrowd` and read by `coco:`; other programs take
    difficult objects for plain ones.

    Args:
        source: What `coco:`, `voc:` or `yolo:` opened into.
        out: File to create.

    Raises:
        DataError: The source carries no labels.
        AnnotationError: What was read back differs; nothing has been written then.
    """
    if not isinstance(source, LabelledImages):
        raise DataError("only one labelled set can be written as COCO; give one coco:…, voc:… or yolo:…")
    labels = source.labels
    if not all(isinstance(key, int) for key in labels.image_ids):
        labels = replace(labels, image_ids=tuple(range(1, len(labels) + 1)))
    out.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=out.name, suffix=".part", dir=out.parent)
    part = Path(name)
    try:
        with naming(out), os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(_document(labels), file, allow_nan=False)
        if difference := _difference(labels, read_coco(part)):
            raise AnnotationError(f"{out}: {difference} differ when the file is read back; nothing was written")
        part.chmod(0o644)
        # Unlike a rename, a link never takes the place of a file that appeared meanwhile.
        os.link(part, out)
    finally:
        part.unlink()
    counts = {"images": len(labels), "boxes": len(labels.boxes), "classes": len(labels.classes)}
    if source.skipped:
        log.warning("%s, and left out", unreadable({one.path: one.reason for one in source.skipped}))
        counts |= {
            "images left out": len(source.skipped),
            "boxes left out": len(source.all_labels.boxes) - len(labels.boxes),
        }
    return Converted(spec=f"coco:{out}:{source.place.spec}", counts=counts)


def _document(labels: Labels) -> dict[str, list[dict[str, Any]]]:
    document = ground_truth(labels)
    if labels.outlines is not None:
        for row, annotation in enumerate(document["annotations"]):
            annotation["segmentation"] = labels.outlines[row]
    return document


def _difference(ours: Labels, theirs: Labels) -> str:
    """Return which parts differ; empty where none does."""
    same = {
        name: getattr(ours, name) == getattr(theirs, name) for name in ("classes", "category_ids", "image_ids", "files")
    }
    for name in ("sizes", "first", "boxes", "labels", "areas", "crowd", "difficult"):
        same[name] = np.array_equal(getattr(ours, name), getattr(theirs, name))
    return ", ".join(name for name, equal in same.items() if not equal)
