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
from downstream.annotations.problems import shown
from ssldet.boxes import xyxy_to_xywh
from ssldet.escapes import printable
from ssldet.source import GroundTruth
from ssldet.types import Detections

ROUNDED = 2
"""Pixels by which a mask that was drawn may be wider or higher than the box around its outline."""
LARGE_AREA = "stated areas are larger than their box; COCO's metric takes the objects for larger than they are"
NO_AREA = "stated areas are not above 0, and those of the boxes are taken"
FLAT = "boxes without area dropped"
OUTSIDE = "boxes wholly outside their image dropped"
CUT = "boxes cut at the border"


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
        firsts: Some of these notes -> where that was found first.
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
    firsts: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.image_ids)

    @cached_property
    def fingerprint(self) -> str:
        """Short hash of images, classes and boxes and of their order; of masks and flags too where masks are read."""
        digest = hashlib.blake2b(repr((self.classes, self.image_ids, self.files)).encode(), digest_size=6)
        for column in (self.first, self.boxes, self.labels, self.crowd):
            digest.update(np.ascontiguousarray(column).tobytes())
        # Sets without masks keep the hash by which older runs know them.
        if self.outlines is not None:
            digest.update(self.outlines.text)
            digest.update(np.ascontiguousarray(self.difficult).tobytes())
        return digest.hexdigest()

    def rows(self, image: int) -> slice:
        """Return the rows of one image."""
        return slice(int(self.first[image]), int(self.first[image + 1]))

    def owners(self) -> Int[np.ndarray, " N"]:
        """Return which image each row belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.first))

    def subset(self, keep: Bool[np.ndarray, " I"]) -> "Labels":
        """Return the labels of some of the images, in the same order."""
        images = np.flatnonzero(keep)
        counts = np.diff(self.first)
        return replace(
            self._picked(np.repeat(keep, counts)),
            image_ids=tuple(self.image_ids[image] for image in images),  # type: ignore[arg-type]  # all of one kind
            files=tuple(self.files[image] for image in images),
            sizes=self.sizes[images],
            first=np.concatenate([[0], np.cumsum(counts[images])]),
        )

    def _picked(self, rows: Bool[np.ndarray, " N"]) -> "Labels":
        """Return the labels with some of the rows, and `first` as it was."""
        return replace(
            self,
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            areas=self.areas[rows],
            crowd=self.crowd[rows],
            difficult=self.difficult[rows],
            outlines=self.outlines and self.outlines.pick(np.flatnonzero(rows)),
        )

    def measured(self, sizes: Int[np.ndarray, "I 2"]) -> "Labels":
        """Return the labels as they are once all sizes are known: boxes that lie wholly outside are dropped.

        Args:
            sizes: True height and width of each image; zeros where they are not known.
        """
        news = np.where(self.sizes.all(axis=1, keepdims=True), 0, sizes)
        return replace(self.within(news), sizes=np.where(sizes > 0, sizes, self.sizes))

    def within(self, sizes: Int[np.ndarray, "I 2"]) -> "Labels":
        """Return the labels without boxes that share no pixel with their image; count them, and those that are cut.

        Args:
            sizes: Height and width of each image; zeros where nothing is to be looked at.
        """
        owner = self.owners()
        known, limit = sizes[owner].all(axis=1), sizes[owner, ::-1]
        low, high = self.boxes[:, :2], self.boxes[:, :2] + self.boxes[:, 2:]
        outside: Bool[np.ndarray, " N"] = known & ((high <= 0) | (low >= limit)).any(axis=1)
        cut: Bool[np.ndarray, " N"] = known & ~outside & ((low < -1) | (high > limit + 1)).any(axis=1)
        return self._noting(cut, CUT).without(outside, OUTSIDE)

    def without(self, rows: Bool[np.ndarray, " N"], what: str) -> "Labels":
        """Return the labels without some rows, and with a note that says so.

        Args:
            rows: Which to leave out.
            what: The note.
        """
        if not rows.any():
            return self
        there = ~rows
        noted = self._noting(rows, what)
        counts = np.bincount(self.owners()[there], minlength=len(self))
        return replace(noted._picked(there), first=np.concatenate([[0], np.cumsum(counts)]))

    def _noting(self, rows: Bool[np.ndarray, " N"], what: str) -> "Labels":
        """Return the same labels with a note on some rows, which names the first."""
        if not rows.any():
            return self
        row = int(rows.argmax())
        first = f"{shown(self.boxes[row].tolist())} of {printable(self.files[self.owners()[row]])}"
        notes = self.notes | {what: self.notes.get(what, 0) + int(rows.sum())}
        return replace(self, notes=notes, firsts={what: first} | self.firsts)

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
        firsts: Places to hand on to `Labels.firsts`.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.notes: dict[str, int] = {}
        self.firsts: dict[str, str] = {}
        self._boxes, self._areas = array("d"), array("d")
        self._images, self._labels = array("q"), array("i")
        self._crowd, self._difficult = array("b"), array("b")
        self._outlines: list[bytes] = []

    def count(self, what: str, where: str = "") -> None:
        """Count something that was put right silently, or may be wrong; remember the first place, if one is given."""
        self.notes[what] = self.notes.get(what, 0) + 1
        if where:
            self.firsts.setdefault(what, where)

    def add(
        self,
        image: int,
        label: int,
        box: Sequence[float],
        where: str,
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
            where: Where it stands, to name in messages.
            area: Area of the mask; none or an impossible one means that of the box.
            crowd: COCO's `iscrowd`.
            difficult: VOC's `difficult`.
            outline: The segmentation as JSON; of all boxes or of none.
        """
        x, y, width, height = box
        if not width * height > 0:
            self.count(FLAT, where)
            return
        if area is not None and area <= 0:
            self.count(NO_AREA, where)
        if area is None or not 0 < area < np.inf:
            self.count("areas taken from the box")
            area = width * height
        elif area > (width + ROUNDED) * (height + ROUNDED):
            self.count(LARGE_AREA, where)
        if crowd:
            self.count("crowd regions, not trained on")
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
        extent = np.asarray(sizes, dtype=np.int64).reshape(-1, 2)
        order = np.argsort(images, kind="stable")
        found = Labels(
            classes=tuple(classes),
            category_ids=tuple(category_ids),
            image_ids=tuple(image_ids),  # type: ignore[arg-type]  # all numbers or all names
            files=tuple(files),
            sizes=extent,
            first=np.searchsorted(images[order], np.arange(len(image_ids) + 1)),
            boxes=np.frombuffer(self._boxes, dtype=np.float64).reshape(-1, 4)[order],
            labels=np.frombuffer(self._labels, dtype=np.int32)[order],
            areas=np.frombuffer(self._areas, dtype=np.float64)[order],
            crowd=np.frombuffer(self._crowd, dtype=np.int8)[order].astype(bool),
            difficult=np.frombuffer(self._difficult, dtype=np.int8)[order].astype(bool),
            outlines=gathered(self._outlines[row] for row in order.tolist()) if self._outlines else None,
            notes=self.notes,
            firsts=self.firsts,
        )
        return found.within(extent)


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
    np.maximum.at(needed, labels.owners(), corners)
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
    owner = labels.owners()
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
