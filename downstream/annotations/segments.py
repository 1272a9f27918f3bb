"""ANN.json, PNGs -> Panoptic: COCO's panoptic annotations, read once into arrays; a PNG is read when it is needed.

A PNG holds the number of a segment in each pixel, R + 256 G + 65536 B, 0 for none; the JSON file says what each
segment is. No two segments overlap.
"""

import math
from abc import abstractmethod
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.ops import masks_to_boxes

from downstream.annotations.fields import other_kind
from downstream.annotations.labels import Labels, stays_inside
from downstream.annotations.pngs import read_ids
from downstream.annotations.problems import Problems, json_of, records, shown
from ssldet.errors import AnnotationError
from ssldet.escapes import is_text
from ssldet.source import Measurable
from ssldet.types import Segmentation

LARGEST = 256**3
"""Numbers of segments are below this."""


class EveryPixelLabelled(Measurable):
    """A source that says what each pixel is."""

    @property
    @abstractmethod
    def all_keys(self) -> tuple[str, ...]:
        """`Sample.key` of every image of `ground_truth`, in its order; of those that can't be opened too."""

    @abstractmethod
    def truth(self, key: str) -> Segmentation:
        """Return what each pixel of an image belongs to."""

    @abstractmethod
    def stated(self, key: str) -> tuple[Int[Tensor, " N"], Bool[Tensor, " N"], Float[Tensor, " N"]]:
        """Return class, crowd flag and area (NaN where not stated) of an image's segments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panoptic:
    """What a panoptic file says.

    Attributes:
        labels: Images, classes and segments; the rows are the segments, in the file's order.
        is_thing: Whether a class is one of countable things, by label.
        ids: Number of each segment in its PNG.
        folder: Where the PNGs lie.
        pngs: PNG of each image.
        places: JSON pointer of each image's entry.
    """

    labels: Labels
    is_thing: tuple[bool, ...]
    ids: Int[np.ndarray, " N"]
    folder: Path
    pngs: tuple[str, ...]
    places: tuple[str, ...]

    def truth(self, index: int) -> Segmentation:
        """Read one image's PNG.

        Raises:
            UnreadableError: The PNG can't be decoded.
            AnnotationError: It has another size than its image, or pixels of a segment that the file does not list.
        """
        rows = self.labels.rows(index)
        path = self.folder / self.pngs[index]
        segments, strangers, _ = number_segments(read_ids(path, self.ids[rows].tolist()), self.ids[rows])
        if strangers:
            raise AnnotationError(f"{path}: has pixels of segment {strangers[0]}, which segments_info does not list")
        stated = tuple(self.labels.sizes[index].tolist())
        if all(stated) and stated != tuple(segments.shape):
            raise AnnotationError(
                f"{path}: has {segments.shape[0]} x {segments.shape[1]} pixels (height x width), its image "
                f"{stated[0]} x {stated[1]}"
            )
        return Segmentation(
            segments=segments,
            labels=torch.from_numpy(self.labels.labels[rows]).long(),
            crowd=torch.from_numpy(self.labels.crowd[rows]),
        )

    def measured(self) -> "Panoptic":
        """Return the same with areas and boxes of all segments, from the PNGs where the file does not state them."""
        boxes, areas = self.labels.boxes.copy(), self.labels.areas.copy()
        lacking = np.isnan(boxes).any(axis=1) | np.isnan(areas)
        for index in range(len(self.labels)):
            rows = self.labels.rows(index)
            if lacking[rows].any():
                segments = self.truth(index).segments
                for number in range(1, rows.stop - rows.start + 1):
                    mask = segments == number
                    area = int(mask.sum())
                    left, top, right, bottom = tight_boxes(mask[None])[0].tolist() if area else [0.0] * 4
                    boxes[rows.start + number - 1] = left, top, right - left, bottom - top
                    areas[rows.start + number - 1] = area
        return replace(self, labels=replace(self.labels, boxes=boxes, areas=areas))


def split_spec(rest: str) -> tuple[Path, Path, Path | None]:
    """Return the annotation file, the folder of PNGs and that of images.

    Args:
        rest: `ANN.json`, `ANN.json:PNGS` or `ANN.json:PNGS:IMAGES`; without PNGS they lie in a folder beside the
            file, of the same name without `.json`.
    """
    path, _, folders = rest.partition(":")
    pngs, _, images = folders.partition(":")
    return Path(path), Path(pngs) if pngs else Path(path).with_suffix(""), Path(images) if images else None


def read_panoptic(rest: str) -> Panoptic:
    """Read a panoptic file without touching any image; a PNG only where the file leaves out areas or boxes.

    Images without an entry in `annotations` are left out and counted.

    Args:
        rest: See `split_spec`.

    Raises:
        AnnotationError: With a JSON pointer for each problem.
    """
    problems = Problems(split_spec(rest)[0])
    panoptic = gather_panoptic(rest, problems)
    problems.stop()
    return panoptic


def gather_panoptic(rest: str, problems: Problems) -> Panoptic:
    """Read what is sound of a panoptic file.

    Args:
        rest: See `split_spec`.
        problems: Takes what is wrong.

    Raises:
        AnnotationError: The file is no JSON object.
    """
    path, folder, _ = split_spec(rest)
    document = json_of(path, dict, "an object with images, annotations, categories")
    if not folder.is_dir():
        problems.add("PNGs", f"no folder {folder}", "give panoptic:ANN.json:PNGS:IMAGES")
    categories = _categories(document, problems)
    images = _images(document, problems)
    gathered = _Segments({key: label for label, key in enumerate(categories)}, images)
    for where, record in records(document, "annotations", problems):
        gathered.take(record, where, problems)
    if left_out := len(images) - len(set(gathered.image_ids)):
        gathered.notes["images without annotations left out"] = left_out
    return gathered.panoptic(categories, folder)


class _Segments:
    """Gathers the segments of `annotations`, image by image."""

    def __init__(self, labels: Mapping[int, int], images: Mapping[int, Any]) -> None:
        self.notes: dict[str, int] = {}
        self.image_ids: list[int] = []
        self._seen: set[int] = set()
        self._pngs: list[str] = []
        self._places: list[str] = []
        self._labels, self._images = labels, images
        self._ids, self._classes, self._crowd = array("q"), array("q"), array("b")
        self._boxes, self._areas = array("d"), array("d")
        self._first = [0]

    def take(self, record: dict[str, Any], where: str, problems: Problems) -> None:
        """Take in the entry of one image."""
        key, name = record.get("image_id"), record.get("file_name")
        if type(key) is not int or key not in self._images:
            what = shown(key) + other_kind(key, self._images)
            problems.add(f"{where}.image_id", what, "no image has this id; add it to $.images or drop the entry")
            return
        if key in self._seen:
            problems.add(f"{where}.image_id", f"{key} has two entries", "give every image one entry")
        if not isinstance(name, str) or not stays_inside(name):
            problems.add(f"{where}.file_name", shown(name), "expects the name of a PNG in the folder of PNGs")
            return
        self._seen.add(key)
        seen: set[int] = set()
        for place, segment in records(record, "segments_info", problems, where, may_be_empty=True):
            segment_id = sound_segment(segment, self._labels, seen, place, problems)
            if segment.get("iscrowd", 0) not in (0, 1):
                problems.add(f"{place}.iscrowd", shown(segment["iscrowd"]), "expects 0 or 1")
            if segment_id is not None:
                self._add(segment_id, segment, place, problems)
        self.image_ids.append(key)
        self._pngs.append(name)
        self._places.append(where)
        self._first.append(len(self._ids))

    def _add(self, segment_id: int, segment: Mapping[str, Any], place: str, problems: Problems) -> None:
        area, box = segment.get("area"), segment.get("bbox")
        if area is not None and not _pixels(area):
            problems.add(f"{place}.area", shown(area), "expects a number of pixels, or leave it out")
        elif box is not None and not (isinstance(box, list) and len(box) == 4 and all(map(_pixels, box))):
            problems.add(f"{place}.bbox", shown(box), "expects four numbers [x, y, width, height], or leave it out")
        else:
            self._ids.append(segment_id)
            self._classes.append(self._labels[segment["category_id"]])
            self._crowd.append(bool(segment.get("iscrowd", 0)))
            self._areas.append(math.nan if area is None else area)
            self._boxes.extend([math.nan] * 4 if box is None else box)

    def panoptic(self, categories: Mapping[int, dict[str, Any]], folder: Path) -> Panoptic:
        """Return everything taken in."""
        images = [self._images[key] for key in self.image_ids]
        sizes = [(record.get("height") or 0, record.get("width") or 0) for record in images]
        labels = Labels(
            classes=tuple(record["name"] for record in categories.values()),
            category_ids=tuple(categories),
            image_ids=tuple(self.image_ids),
            files=tuple(record["file_name"] for record in images),
            sizes=np.asarray(sizes, dtype=int).reshape(-1, 2),
            first=np.asarray(self._first),
            boxes=np.frombuffer(self._boxes, dtype=np.float64).reshape(-1, 4),
            labels=np.frombuffer(self._classes, dtype=np.int64),
            areas=np.frombuffer(self._areas, dtype=np.float64),
            crowd=np.frombuffer(self._crowd, dtype=np.int8).astype(bool),
            difficult=np.zeros(len(self._ids), dtype=bool),
            notes=self.notes,
        )
        return Panoptic(
            labels=labels,
            is_thing=tuple(bool(record["isthing"]) for record in categories.values()),
            ids=np.frombuffer(self._ids, dtype=np.int64),
            folder=folder,
            pngs=tuple(self._pngs),
            places=tuple(self._places),
        )


def _categories(document: dict[str, Any], problems: Problems) -> dict[int, dict[str, Any]]:
    """Return the sound categories by id, in the file's order, which becomes the order of the labels."""
    found: dict[int, dict[str, Any]] = {}
    names: set[str] = set()
    for where, record in records(document, "categories", problems):
        key, name = record.get("id"), record.get("name")
        if not isinstance(name, str) or not name.strip() or not is_text(name) or name in names:
            problems.add(f"{where}.name", shown(name), "expects the name of the class, which no other class has")
        elif type(key) is not int or key in found:
            problems.add(f"{where}.id", shown(key), "expects a whole number that no other class has")
        elif record.get("isthing") not in (0, 1):
            problems.add(f"{where}.isthing", shown(record.get("isthing")), "expects 1 for things and 0 for stuff")
        else:
            found[key] = record
            names.add(name)
    return found


def _images(document: dict[str, Any], problems: Problems) -> dict[int, dict[str, Any]]:
    """Return the sound images by id."""
    found: dict[int, dict[str, Any]] = {}
    for where, record in records(document, "images", problems):
        key, name = record.get("id"), record.get("file_name")
        sides = (record.get("height"), record.get("width"))
        if type(key) is not int or key in found:
            problems.add(f"{where}.id", shown(key), "expects a whole number that no other image has")
        elif not isinstance(name, str) or not stays_inside(name):
            problems.add(f"{where}.file_name", shown(name), "expects a file name under the image folder")
        elif sides != (None, None) and not all(type(side) is int and 0 < side < 2**31 for side in sides):
            problems.add(where, f"height and width {shown(sides)}", "expects numbers of pixels, or leave both out")
        else:
            found[key] = record
    return found


def sound_segment(
    segment: Mapping[str, Any], categories: Mapping[int, int], seen: set[int], where: str, problems: Problems
) -> int | None:
    """Return the number of a segment whose number and class are sound.

    Args:
        segment: An entry of `segments_info`.
        categories: The known ids of classes.
        seen: Numbers of the same image so far; takes in this one.
        where: JSON pointer of the entry.
        problems: Where faults are noted.
    """
    number, category = segment.get("id"), segment.get("category_id")
    if type(number) is not int or not 0 < number < LARGEST:
        problems.add(f"{where}.id", shown(number), f"expects a whole number from 1 to {LARGEST - 1}; 0 is void")
    elif number in seen:
        problems.add(f"{where}.id", f"{number} is listed twice", "give every segment of an image its own number")
    elif type(category) is not int or category not in categories:
        what = shown(category) + other_kind(category, categories)
        problems.add(f"{where}.category_id", what, "no category of the annotations has this id")
    else:
        seen.add(number)
        return number
    return None


def _pixels(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**40


def number_segments(
    pixels: Int[np.ndarray, "H W"], ids: Int[np.ndarray, " N"]
) -> tuple[Int[Tensor, "H W"], list[int], list[int]]:
    """Number segments from 1 in the order of a list.

    Args:
        pixels: Id of each pixel's segment, 0 for none.
        ids: The listed segments.

    Returns:
        The numbers; the ids that are not listed (numbered 0); the listed ids that have no pixel.
    """
    present, places = np.unique(pixels, return_inverse=True)
    number_of = {segment: number for number, segment in enumerate(ids.tolist(), start=1)}
    numbers = np.asarray([number_of.get(segment, 0) for segment in present.tolist()], dtype=np.int32)
    strangers = [segment for segment in present.tolist() if segment and segment not in number_of]
    absent = sorted(set(number_of) - set(present.tolist()))
    return torch.from_numpy(numbers[places.reshape(pixels.shape)]), strangers, absent


def other_areas(segments: Int[Tensor, "H W"], stated: Float[np.ndarray, " N"]) -> int:
    """Return how many segments that have pixels have another number of them than is stated.

    Args:
        segments: Number of each pixel's segment, from 1; 0 for none.
        stated: Area of each segment; NaN where none is stated.
    """
    counted = np.bincount(segments.numpy().ravel(), minlength=len(stated) + 1)[1:]
    return int(((counted != stated) & ~np.isnan(stated) & (counted > 0)).sum())


def tight_boxes(masks: Bool[Tensor, "N H W"]) -> Float[Tensor, "N 4"]:
    """Return the absolute xyxy boxes of masks, which end after the last pixel.

    Args:
        masks: At least one pixel each.
    """
    if not len(masks):
        return torch.zeros(0, 4)
    last: Float[Tensor, "N 4"] = masks_to_boxes(masks)
    return last + torch.tensor([0.0, 0.0, 1.0, 1.0])
