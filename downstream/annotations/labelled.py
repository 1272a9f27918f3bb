"""Labels, image folder -> Source: labelled images by number, checked against the files on disk before training."""

import logging
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from downstream.annotations.doubts import DOUBTS, looks_like_corners, looks_like_fractions, told, twin_boxes
from downstream.annotations.labels import Labels, assumed_sizes, ground_truth, results_of
from downstream.annotations.masks import RunLengths, encode
from downstream.annotations.outlines import mask_of, outline_fault
from downstream.annotations.problems import SHOWN, Problems, shown
from ssldet.boxes import to_normalised
from ssldet.classes import names_alike
from ssldet.data.images import ImageRules
from ssldet.data.places import FolderPlace, Place
from ssldet.errors import AnnotationError, UnreadableError
from ssldet.escapes import counted
from ssldet.source import GroundTruth, Measurable
from ssldet.types import Batch, Detections, Sample, Skipped, Targets

log = logging.getLogger(__name__)

Kind = TypeVar("Kind", bound="LabelledImages")

LEAVING = "many boxes leave their image; "
"""What is said of boxes that look misread, before what may be the reason in the format."""
CORNERS = "are they stored as x1 y1 x2 y2 instead of xywh?"
"""That reason where boxes are stored as x, y, width, height."""
TWINS = "each counts as an object of its own, so that a detector which finds it once misses it once"
"""What is said of boxes that stand in a set twice."""
ALIKE = "are different classes, whose names differ by case, spaces, hyphens or underscores alone; are they one class?"
"""What is said of class names that people take for one."""
FRACTIONS = "all boxes are smaller than one pixel; are they stored as fractions of their image? pixels are expected"
"""What is said of boxes that look like fractions."""


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """What annotations say of a set of images, before any of the images is looked at.

    Attributes:
        labels: The annotations.
        folder: Where the images lie.
        origin: The annotation file or folder, to name in messages.
        places: Where the annotations speak of each image, to name in messages.
        archives: Where the images lie instead, if it is no folder.
        misread: What to ask where many boxes leave their image.
    """

    labels: Labels
    folder: Path
    origin: Path
    places: Sequence[str]
    archives: Place | None = None
    misread: str = CORNERS

    @property
    def place(self) -> Place:
        """Where the images lie."""
        return self.archives or FolderPlace(self.folder)


class LabelledImages(Measurable):
    """A labelled set: what `coco:`, `voc:` and `yolo:` open into.

    Attributes:
        labels: The annotations of the usable images.
        all_labels: Those of every image that is there: one that can't be opened is measured like one whose pixels can't
            be decoded, so that its objects count as missed.
        place: Where the images lie.
    """

    def __init__(self, annotated: Annotated, problems: Problems, rules: ImageRules) -> None:
        """Check every file: it is there, its header can be read, and it has the stated size.

        Args:
            annotated: What the annotations say.
            problems: What is wrong with them.
            rules: Which images are usable.

        Raises:
            AnnotationError: There were problems, images are missing, or their size is not the stated one; all at once.
        """
        labels, origin = annotated.labels, annotated.origin
        self.folder, self.place, self._rules = annotated.folder, annotated.place, rules
        sizes, self._skipped = check_files(annotated, problems, rules)
        problems.stop()
        labels = labels.measured(sizes)
        self.labels = labels.subset(sizes[:, 0] > 0)
        self.all_labels = replace(labels, sizes=np.where(sizes > 0, sizes, assumed_sizes(labels)))
        if not len(self.labels):
            raise AnnotationError(f"{origin}: none of {len(labels)} images can be used ({self._skipped[0].reason})")
        for what, line in told(labels).items():
            log.log(logging.WARNING if what in DOUBTS else logging.INFO, "%s: %s", origin, line)
        for warning in suspicions(labels, annotated.misread):
            log.warning("%s: %s", origin, warning)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of `Targets.labels`."""
        return self.labels.classes

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Original id of each class."""
        return self.labels.category_ids

    @property
    def image_ids(self) -> tuple[int, ...] | tuple[str, ...]:
        """Original id of each image."""
        return self.labels.image_ids

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """`Sample.key` of each image: its original id as text."""
        return tuple(map(str, self.image_ids))

    @property
    def fingerprint(self) -> str:
        """Short hash of images, classes and boxes and of their order."""
        return self.labels.fingerprint

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Images that can't be used."""
        return self._skipped

    def __len__(self) -> int:
        """Number of usable images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        """Read one image with its targets: boxes are cut at the border, crowds are left out.

        Raises:
            UnreadableError: The file can't be decoded.
        """
        image = self.place.read(self._file(index), self._rules)
        height, width = image.shape[-2:]
        targets, rows = self._targets(index, (height, width))
        targets = replace(targets, masks=self._draw_masks(index, rows, (height, width)))
        return Sample(image=image, targets=targets, key=self.keys[index], original_size=(height, width))

    def targets_of(self, index: int) -> Targets:
        """Return the boxes and labels of one image without reading it."""
        return self._targets(index, self.size_of(index))[0]

    def size_of(self, index: int) -> tuple[int, int]:
        """Return height and width of an image without reading it."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        height, width = self.labels.sizes[index].tolist()
        return height, width

    def _targets(self, index: int, size: tuple[int, int]) -> tuple[Targets, Int[np.ndarray, " N"]]:
        """Return the targets of an image of this size, without masks, and the rows that they stand in."""
        height, width = size
        rows = self.labels.rows(index)
        boxes = self.labels.boxes[rows].copy()
        boxes[:, 2:] += boxes[:, :2]
        boxes = boxes.clip(0, (width, height, width, height))
        keep = ~self.labels.crowd[rows] & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        targets = Targets(
            boxes=to_normalised(torch.from_numpy(boxes[keep]).float(), size),
            labels=torch.from_numpy(self.labels.labels[rows][keep]).long(),
        )
        return targets, np.arange(rows.start, rows.stop)[keep]

    def with_classes(self: Kind, classes: Sequence[str]) -> Kind:
        """Return the same images with their classes counted in another order.

        Args:
            classes: The same names in the wanted order.
        """
        other = copy(self)
        other.labels, other.all_labels = (labels.renumbered(classes) for labels in (self.labels, self.all_labels))
        return other

    def path_of(self, index: int) -> Path | None:
        """Return where an image lies; `None` in an archive."""
        return self.place.path_of(self._file(index))

    def encoded(self, index: int) -> bytes:
        """Return the bytes of an image as they are stored."""
        return self.place.encoded(self._file(index))

    def name_of(self, index: int) -> str:
        """Return what an image is called in messages."""
        return self.place.name_of(self._file(index))

    @property
    def has_own_order(self) -> bool:
        """Whether the images lie where they read best in an order of their own."""
        return self.place.has_own_order

    def order(self, seed: int, epoch: int) -> Int[Tensor, " N"]:
        """Return the order in which images that lie here are read."""
        return self.part_order(np.arange(len(self)), seed, epoch)

    def part_order(self, indices: Int[np.ndarray, " N"], seed: int, epoch: int) -> Int[Tensor, " N"]:
        """Return the order in which some of the images are read."""
        return self._order(indices, seed, epoch)

    @cached_property
    def _order(self) -> Callable[[Int[np.ndarray, " N"], int, int], Int[Tensor, " N"]]:
        return self.place.order(self.labels.files)

    def _file(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.labels.files[index]

    def ground_truth(self) -> GroundTruth:
        """Return the annotations in COCO's form, with original ids; those of images that can't be opened too."""
        return ground_truth(self.all_labels)

    def to_results(self, detections: Sequence[Detections], batch: Batch) -> list[dict[str, Any]]:
        """Return detections as COCO results with original ids; boxes are absolute xywh, masks compressed run lengths.

        Args:
            detections: One entry per image, absolute xyxy in pixels of the image on disk.
            batch: Where they were found.
        """
        rows = []
        for found, key in zip(detections, batch.keys, strict=True):
            masks = [{}] * len(found) if found.masks is None else [_as_text(mask) for mask in encode(found.masks)]
            categories = (self.category_ids[label] for label in found.labels.tolist())
            boxes = results_of(found, self._id_of[key], categories)
            rows += [row | mask for row, mask in zip(boxes, masks, strict=True)]
        return rows

    def _draw_masks(
        self, index: int, rows: Int[np.ndarray, " N"], size: tuple[int, int]
    ) -> Bool[Tensor, "N H W"] | None:
        """Draw the masks of some rows of an image, if masks were asked for."""
        outlines = self.labels.outlines
        if outlines is None:
            return None
        masks = torch.zeros(len(rows), *size, dtype=torch.bool)
        for mask, row in zip(masks, rows.tolist(), strict=True):
            mask.copy_(torch.from_numpy(mask_of(outlines[row], size, self.labels.files[index])))
        return masks

    @cached_property
    def _id_of(self) -> dict[str, int | str]:
        return dict(zip(self.keys, self.image_ids, strict=True))


def _as_text(mask: RunLengths) -> dict[str, Any]:
    return {"segmentation": {**mask, "counts": mask["counts"].decode()}}


def suspicions(labels: Labels, misread: str) -> tuple[str, ...]:
    """Return what may be wrong with labels that can all the same be read.

    Args:
        labels: What was read, with the sizes of images.
        misread: What to ask where many boxes leave their image.
    """
    found = [LEAVING + misread] if looks_like_corners(labels) else []
    if looks_like_fractions(labels):
        found.append(FRACTIONS)
    if twins := twin_boxes(labels):
        again = "repeats another one" if twins == 1 else "repeat others"
        found.append(f"{counted(twins, 'box', 'boxes')} {again} of the same image and class exactly; {TWINS}")
    found += [f"{' and '.join(map(shown, names))} {ALIKE}" for names in names_alike(labels.classes)]
    return tuple(found)


def check_files(
    annotated: Annotated, problems: Problems, rules: ImageRules
) -> tuple[Int[np.ndarray, "I 2"], tuple[Skipped, ...]]:
    """Compare annotations with the images on disk, by their headers.

    Args:
        annotated: What the annotations say.
        problems: Takes what is wrong: images that are missing or of another size than stated.
        rules: Which images are usable.

    Returns:
        The true height and width of each image, zeros where it can't be used; and why those can't.
    """
    labels = annotated.labels
    skipped, missing = [], 0
    where_they_lie = annotated.place
    if fault := where_they_lie.fault():
        problems.add(str(annotated.folder), fault, "name the folder in which the images lie")
        return np.zeros((len(labels), 2), dtype=np.int64), ()
    sizes = np.zeros((len(labels), 2), dtype=np.int64)
    found = where_they_lie.sizes(labels.files, rules)
    for place, (size, stated) in enumerate(zip(found, labels.sizes.tolist(), strict=True)):
        if not isinstance(size, UnreadableError):
            sizes[place] = size
            if not any(stated):
                _report_outlines(problems, annotated, place, size)
            elif tuple(stated) != size:
                turned = where_they_lie.is_turned(labels.files[place], rules)
                _report_size(problems, annotated.places[place], tuple(stated), size, turned=turned)
        elif size.reason == "missing":
            where, remedy = annotated.places[place], "restore the image or take it out of the set"
            missing += 1
            # A look for near misses is slow; the first few show the pattern.
            near = where_they_lie.nearest(labels.files[place]) if missing <= SHOWN else None
            hint = f" (did you mean {shown(near)}?)" if near else ""
            problems.add(where, f"{size.path} is missing{hint}", remedy)
        else:
            skipped.append(Skipped(path=size.path, reason=size.reason))
    return sizes, tuple(skipped)


def _report_outlines(problems: Problems, annotated: Annotated, image: int, size: tuple[int, int]) -> None:
    """Check the segmentations of an image whose size the annotations do not state."""
    outlines, rows = annotated.labels.outlines, annotated.labels.rows(image)
    if outlines is None:
        return
    for row in range(rows.start, rows.stop):
        if outlines[row] and (fault := outline_fault(outlines[row], size)):
            problems.add(
                annotated.places[image], f"a segmentation of {annotated.labels.files[image]} {fault}", "mend it"
            )


def _report_size(
    problems: Problems, place: str, stated: tuple[int, ...], size: tuple[int, int], *, turned: bool
) -> None:
    height, width = stated
    if (width, height) != size:
        remedy = "must be the size of the image that was labelled, else all boxes are off; use the original files"
    elif turned:
        remedy = "was labelled before the EXIF rotation of the file was applied; label it again as it is shown"
    else:
        remedy = (
            "height and width are exchanged, and the file has no EXIF rotation; exchange them in the annotations if "
            "the boxes fit the image as it is shown"
        )
    problems.add(place, f"states {height} x {width} (height x width), the image has {size[0]} x {size[1]}", remedy)
