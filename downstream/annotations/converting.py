"""LabelledImages -> a COCO file: what was read of VOC or YOLO, written so that every evaluation stays the same."""

import json
import logging
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from downstream.annotations.coco import Masks, gather_coco, read_coco
from downstream.annotations.doubts import told
from downstream.annotations.labelled import LabelledImages
from downstream.annotations.labels import FLAT, OUTSIDE, Labels, ground_truth
from downstream.annotations.outlines import MISSING
from downstream.annotations.panoptic import PanopticImages
from downstream.annotations.problems import Problems
from downstream.annotations.yolo import gather_yolo
from ssldet.data.files import unreadable
from ssldet.data.images import ImageRules
from ssldet.data.sources import open_source, split_spec
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


def write_coco(spec: str, out: Path, rules: ImageRules) -> Converted:
    """Write labelled images as a COCO file, and read it back before it gets its name.

    Images are named relative to their folder and stay where they are. Ids that are no numbers are counted from 1. The
    flag `difficult`, which COCO does not know, is written beside `iscrowd` and read by `coco:`; other programs take
    difficult objects for plain ones. Masks are kept where they are sound; what has none is counted.

    Args:
        spec: `coco:…`, `voc:…`, `yolo:…`, `hf:…` or `panoptic:…`.
        out: File to create.
        rules: Which images are usable.

    Raises:
        DataError: The source carries no labels.
        AnnotationError: What was read back differs; nothing has been written then.
    """
    lost = Problems(out)
    source = _opened(spec, rules, lost)
    if not isinstance(source, LabelledImages):
        raise DataError("only one labelled set can be written as COCO; give one coco:…, voc:… or yolo:…")
    labels = _writable(source)
    out.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=out.name, suffix=".part", dir=out.parent)
    part = Path(name)
    try:
        with naming(out), os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(_document(labels), file, allow_nan=False)
        if difference := _difference(labels, read_coco(part, masks=Masks.CHECKED)):
            raise AnnotationError(f"{out}: {difference} differ when the file is read back; nothing was written")
        part.chmod(0o644)
        # Unlike a rename, a link never takes the place of a file that appeared meanwhile.
        os.link(part, out)
    finally:
        part.unlink()
    return Converted(spec=f"coco:{out}:{source.place.spec}", counts=_told(spec, labels, source, lost))


def _opened(spec: str, rules: ImageRules, lost: Problems) -> Source:
    """Open a set with all masks that are sound; what is wrong with the others goes to `lost`."""
    form, rest = split_spec(spec)
    problems = Problems(Path(rest.partition(":")[0]))
    if form == "coco":
        annotated = gather_coco(rest, problems, rules, masks=Masks.KEPT, lost=lost)
    elif form == "yolo":
        annotated = gather_yolo(rest, problems, rules, masks=True, lost=lost)
    else:
        return open_source([spec], rules)
    return LabelledImages(annotated, problems, rules)


def _writable(source: LabelledImages) -> Labels:
    """Return what a COCO file can say: masks where there are any, numbers as ids, and boxes that its readers keep."""
    labels = source.labels
    if isinstance(source, PanopticImages):
        labels = replace(labels, outlines=source.outlines())
    if labels.outlines is not None and not labels.outlines.drawn().any():
        labels = replace(labels, outlines=None)
    if not all(isinstance(key, int) for key in labels.image_ids):
        labels = replace(labels, image_ids=tuple(range(1, len(labels) + 1)))
    flat = ~(labels.boxes[:, 2] * labels.boxes[:, 3] > 0)
    return labels.without(flat, FLAT).within(labels.sizes)


def _told(spec: str, labels: Labels, source: LabelledImages, lost: Problems) -> dict[str, int]:
    """Return what was written and what was not, and warn of the latter with the first place."""
    counts = {"images": len(labels), "boxes": len(labels.boxes), "classes": len(labels.classes)}
    lines = told(labels)
    for what in (FLAT, OUTSIDE):
        if what in labels.notes:
            counts[what] = labels.notes[what]
        if labels.notes.get(what) != source.labels.notes.get(what):  # else it was said when the set was opened
            log.warning("%s: %s", spec, lines[what])
    if stuff := [label for label, is_thing in enumerate(source.is_thing) if not is_thing]:
        counts["pieces of stuff written as objects"] = int(np.isin(labels.labels, stuff).sum())
    faults = lost.entries()
    if labels.outlines is not None or any(entry["what"] != MISSING for entry in faults):
        drawn = np.zeros(len(labels.boxes), dtype=bool) if labels.outlines is None else labels.outlines.drawn()
        counts["masks"] = int(drawn.sum())
        if not drawn.all():
            counts["masks left out"] = int((~drawn).sum())
            first = "; for one, {where}: {what}; {remedy}".format(**faults[0]) if faults else ""
            log.warning("%s: masks left out: %d of %d%s", spec, counts["masks left out"], len(drawn), first)
    if source.skipped:
        log.warning("%s, and left out", unreadable({one.path: one.reason for one in source.skipped}))
        counts["images left out"] = len(source.skipped)
        counts["boxes left out"] = len(source.all_labels.boxes) - len(source.labels.boxes)
    return counts


def _document(labels: Labels) -> dict[str, list[dict[str, Any]]]:
    document = ground_truth(labels)
    for annotation in document["annotations"]:
        if annotation.get("segmentation") == []:
            del annotation["segmentation"]
    return document


def _difference(ours: Labels, theirs: Labels) -> str:
    """Return which parts differ; empty where none does."""
    same = {
        name: getattr(ours, name) == getattr(theirs, name) for name in ("classes", "category_ids", "image_ids", "files")
    }
    for name in ("sizes", "first", "boxes", "labels", "areas", "crowd", "difficult"):
        same[name] = np.array_equal(getattr(ours, name), getattr(theirs, name))
    if ours.outlines is not None and same["boxes"]:
        same["masks"] = theirs.outlines is not None and all(
            ours.outlines[row] == theirs.outlines[row] for row in range(len(ours.boxes))
        )
    return ", ".join(name for name, equal in same.items() if not equal)
