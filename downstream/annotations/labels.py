"""rows of boxes -> Labels: the annotations of a whole set as a few arrays, checked and counted, without images."""

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from posixpath import normpath
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from downstream.annotations.outlines import Outlines, gathered
from ssldet.boxes import xyxy_to_xywh
from ssldet.source import GroundTruth
from ssldet.types import Detections

OUTSIDE_SHARE = 0.05
"""Share of boxes beyond the border above which a file is suspected to hold [x1, y1, x2, y2]."""


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What an annotation file says, in its own ids and in pixels. Row r describes box r; rows are sorted by image.

    Attributes:
        classes: Class names in the order of `labels`.
        category_ids: Id of each class in the file.
        image_ids: Id of each image in the file: a number in COCO, the name without suffix in VOC.
        files: File of each image, relative to the image folder, inside which it stays.
        sizes: Height and width of each image as the file states them; 0 where it doesn't.
        first: Image i owns the rows from `first[i]` up to `first[i + 1]`.
        boxes: Absolute xywh exactly as stated; may reach beyond the image.
        labels: Class index, contiguous from 0.
        areas: Area in pixels: of the mask where COCO states it, else of the box.
        crowd: True for COCO's crowd regions, which are neither trained on nor counted as missed.
        difficult: True for VOC's difficult objects, which are trained on, but not counted as missed.
        outlines: Segmentations, where they were asked for.
        notes: What was derived, dropped or is remarkable -> how often.
    """

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_ids: tuple[int, ...] | tuple[str, ...]
    files: tuple[str, ...]
    sizes: Int[np.ndarray, "I 2"]
    first: Int[np.ndarray, " J"]
    boxes: Float[np.ndarray, "N 4"]
    labels: Int[np.ndarray, " N"]
    areas: Float[np.ndarray, " N"]
    crowd: Bool[np.ndarray, " N"]
    difficult: Bool[np.ndarray, " N"]
    outlines: Outlines | None = None
    notes: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.image_ids)

    @cached_property
    def fingerprint(self) -> str:
        """Short hash of images, classes and boxes and of their order."""
        digest = hashlib.blake2b(repr((self.classes, self.image_ids, self.files)).encode(), digest_size=6)
        for column in (self.first, self.boxes, self.labels, self.crowd):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()

    def rows(self, image: int) -> slice:
        """Return the rows of one image."""
        return slice(int(self.first[image]), int(self.first[image + 1]))

    def subset(self, keep: Bool[np.ndarray, " I"]) -> "Labels":
        """Return the labels of some of the images, in the same order."""
        images = np.flatnonzero(keep)
        counts = np.diff(self.first)
        rows = np.repeat(keep, counts)
        return replace(
            self,
            image_ids=tuple(self.image_ids[image] for image in images),  # type: ignore[arg-type]  # all of one kind
            files=tuple(self.files[image] for image in images),
            sizes=self.sizes[images],
            first=np.concatenate([[0], np.cumsum(counts[images])]),
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            areas=self.areas[rows],
            crowd=self.crowd[rows],
            difficult=self.difficult[rows],
            outlines=self.outlines and self.outlines.pick(np.flatnonzero(rows)),
        )

    def renumbered(self, classes: Sequence[str]) -> "Labels":
        """Return the same labels with the classes counted in another order.

        Args:
            classes: The same names in the wanted order.
        """
        place_of = {name: place for place, name in enumerate(self.classes)}
        places = [place_of[name] for name in classes]
        return replace(
            self,
            classes=tuple(classes),
            category_ids=tuple(self.category_ids[place] for place in places),
            labels=np.argsort(places)[self.labels],
        )


class Rows:
    """Gathers boxes one by one, in any order of images, at some 60 bytes each (and their outlines, where asked for).

    Attributes:
        notes: Counts to hand on to `Labels.notes`.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.notes: dict[str, int] = {}
        self._boxes, self._areas = array("d"), array("d")
        self._images, self._labels = array("q"), array("i")
        self._crowd, self._difficult = array("b"), array("b")
        self._outlines: list[bytes] = []

    def count(self, what: str) -> None:
        """Count something that was put right silently."""
        self.notes[what] = self.notes.get(what, 0) + 1

    def add(
        self,
        image: int,
        label: int,
        box: Sequence[float],
        *,
        area: float | None = None,
        crowd: bool = False,
        difficult: bool = False,
        outline: bytes | None = None,
    ) -> None:
        """Take in one box; one without area is dropped and counted.

        Args:
            image: Index of the image.
            label: Class index.
            box: Absolute xywh, finite and not negative.
            area: Area of the mask; none or an impossible one means that of the box.
            crowd: COCO's `iscrowd`.
            difficult: VOC's `difficult`.
            outline: The segmentation as JSON; of all boxes or of none.
        """
        x, y, width, height = box
        if not width * height > 0:
            self.count("boxes without area dropped")
            return
        if area is None or not 0 < area < np.inf:
            self.count("areas taken from the box")
            area = width * height
        self._boxes.extend((x, y, width, height))
        self._areas.append(area)
        self._images.append(image)
        self._labels.append(label)
        self._crowd.append(crowd)
        self._difficult.append(difficult)
        if outline is not None:
            self._outlines.append(outline)

    def labels(
        self,
        *,
        classes: Sequence[str],
        category_ids: Sequence[int],
        image_ids: Sequence[int] | Sequence[str],
        files: Sequence[str],
        sizes: Sequence[tuple[int, int]],
    ) -> Labels:
        """Sort the rows by image, keeping the order within each, and drop what lies wholly beyond the border."""
        images = np.frombuffer(self._images, dtype=np.int64)
        boxes = np.frombuffer(self._boxes, dtype=np.float64).reshape(-1, 4)
        extent = np.asarray(sizes, dtype=np.int64).reshape(-1, 2)
        visible = ~self._beyond(boxes, extent[images])
        order = np.argsort(images, kind="stable")
        order = order[visible[order]]
        return Labels(
            classes=tuple(classes),
            category_ids=tuple(category_ids),
            image_ids=tuple(image_ids),  # type: ignore[arg-type]  # all numbers or all names
            files=tuple(files),
            sizes=extent,
            first=np.searchsorted(images[order], np.arange(len(image_ids) + 1)),
            boxes=boxes[order],
            labels=np.frombuffer(self._labels, dtype=np.int32)[order],
            areas=np.frombuffer(self._areas, dtype=np.float64)[order],
            crowd=np.frombuffer(self._crowd, dtype=np.int8)[order].astype(bool),
            difficult=np.frombuffer(self._difficult, dtype=np.int8)[order].astype(bool),
            outlines=gathered(self._outlines[row] for row in order.tolist()) if self._outlines else None,
            notes=self.notes,
        )

    def _beyond(self, boxes: Float[np.ndarray, "N 4"], sizes: Int[np.ndarray, "N 2"]) -> Bool[np.ndarray, " N"]:
        """Return which boxes share no pixel with their image; count them and those that are cut by its border."""
        known = sizes.all(axis=1)
        low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
        limit = sizes[:, ::-1]
        outside: Bool[np.ndarray, " N"] = known & ((high <= 0) | (low >= limit)).any(axis=1)
        cut = known & ~outside & ((low < -1) | (high > limit + 1)).any(axis=1)
        for mask, what in ((outside, "boxes wholly outside their image dropped"), (cut, "boxes cut at the border")):
            if mask.any():
                self.notes[what] = int(mask.sum())
        return outside


def looks_like_corners(labels: Labels) -> bool:
    """Say whether so many boxes leave their image that x2, y2 may have been stored as width and height."""
    lost = sum(count for what, count in labels.notes.items() if "outside" in what or "border" in what)
    return lost > OUTSIDE_SHARE * max(len(labels.boxes), 1)


def looks_like_fractions(labels: Labels) -> bool:
    """Say whether no box is larger than a pixel, or none leaves the first: they may be fractions of their image."""
    return are_fractions(labels.boxes)


def are_fractions(boxes: Float[np.ndarray, "N 4"]) -> bool:
    """Say whether no box is larger than a pixel, or none leaves the first.

    Args:
        boxes: Absolute xywh, or what should be.
    """
    low, sides = boxes[:, :2], boxes[:, 2:]
    return len(boxes) > 0 and bool((sides <= 1).all() or (low + sides <= 1).all())


def are_corners(boxes: Float[np.ndarray, "N 4"], sizes: Int[np.ndarray, "N 2"]) -> bool:
    """Say whether what should be xywh reads better as x1, y1, x2, y2: as such it leaves no image, as xywh it does.

    Args:
        boxes: Of answers, which a detector may let leave their image a little.
        sizes: Height and width of the image of each box; 0 where they are not known.
    """
    known = sizes.all(axis=1)
    low, high, limit = boxes[known, :2], boxes[known, 2:], sizes[known, ::-1] + 1
    leaving = (low + high > limit).any(axis=1)
    ordered = ((high > low) & (high <= limit)).all(axis=1)
    return bool(leaving.sum() > OUTSIDE_SHARE * len(low) and (~ordered).sum() <= OUTSIDE_SHARE * len(low))


def twin_boxes(labels: Labels) -> int:
    """Return how many boxes stand in their image before, with the same class and the same corners.

    Args:
        labels: What was read.
    """
    owner = np.repeat(np.arange(len(labels)), np.diff(labels.first))
    columns = (*labels.boxes.T, labels.labels, labels.crowd, owner)
    order = np.lexsort(columns)
    same = [column[order][1:] == column[order][:-1] for column in columns]
    return int(np.logical_and.reduce(same).sum())


def stays_inside(name: str) -> bool:
    """Say whether a relative file name, as text, stays under the folder it is joined to.

    Links that the user made on disk are the user's own and may point anywhere.

    Args:
        name: A file name from an annotation file.
    """
    clean = normpath(name.replace("\\", "/"))
    return not (clean.startswith(("/", "../")) or clean in {".", ".."} or "\0" in name or clean[1:2] == ":")


def assumed_sizes(labels: Labels) -> Int[np.ndarray, "I 2"]:
    """Return height and width of each image as far as the annotations tell: as stated, or else as its boxes need.

    Args:
        labels: What was read.
    """
    corners = np.ceil(labels.boxes[:, :2] + labels.boxes[:, 2:])[:, ::-1].clip(1, 2**31)
    needed = np.ones((len(labels), 2))
    np.maximum.at(needed, np.repeat(np.arange(len(labels)), np.diff(labels.first)), corners)
    return np.where(labels.sizes.all(axis=1, keepdims=True), labels.sizes, needed.astype(np.int64))


def results_of(found: Detections, image_id: object, category_ids: Iterable[object]) -> list[dict[str, Any]]:
    """Return the detections of one image as COCO results; boxes are absolute xywh.

    Args:
        found: Absolute xyxy in pixels of the image on disk.
        image_id: Original id of the image.
        category_ids: Original id of the class of each detection.
    """
    boxes = xyxy_to_xywh(found.boxes.double()).tolist()
    return [
        {"image_id": image_id, "category_id": category, "bbox": box, "score": score}
        for category, box, score in zip(category_ids, boxes, found.scores.tolist(), strict=True)
    ]


def ground_truth(labels: Labels) -> GroundTruth:
    """Return the annotations in COCO's form for a metric: original ids, boxes in absolute xywh as the file states them.

    Args:
        labels: What was read.

    Returns:
        `images`, `categories` and `annotations`, numbered from 1; `difficult` is VOC's flag, and there is a
        `segmentation` where outlines were kept.
    """
    owner = np.repeat(np.arange(len(labels)), np.diff(labels.first))
    rows = zip(
        owner.tolist(),
        labels.labels.tolist(),
        labels.boxes.tolist(),
        labels.areas.tolist(),
        labels.crowd.tolist(),
        labels.difficult.tolist(),
        strict=True,
    )
    return {
        "images": [
            {"id": key, "file_name": name, "height": height, "width": width}
            for key, name, (height, width) in zip(labels.image_ids, labels.files, labels.sizes.tolist(), strict=True)
        ],
        "categories": [
            {"id": key, "name": name} for key, name in zip(labels.category_ids, labels.classes, strict=True)
        ],
        "annotations": [
            {
                "id": number,
                "image_id": labels.image_ids[image],
                "category_id": labels.category_ids[label],
                "bbox": box,
                "area": area,
                "iscrowd": int(crowd),
                "difficult": int(difficult),
                **({} if labels.outlines is None else {"segmentation": labels.outlines[number - 1]}),
            }
            for number, (image, label, box, area, crowd, difficult) in enumerate(rows, start=1)
        ],
    }
