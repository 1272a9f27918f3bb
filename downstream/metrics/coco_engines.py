"""Objects, detections as columns -> precision, recall: COCO's evaluation by hotcoco or by pycocotools.

Both give the same arrays, to the last bit in every case of the tests. hotcoco is compiled and over fifty times faster;
pycocotools is the reference, and takes over on a machine for which there is no hotcoco.
"""

import io
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any, Literal, TypeAlias

import numpy as np
import pycocotools.mask as coco_mask
from jaxtyping import Float, Int

from ssldet.source import GroundTruth

log = logging.getLogger(__name__)

Kind: TypeAlias = Literal["bbox", "segm"]
"""What overlaps: boxes or masks."""

IGNORED_AREA = -1.0
"""An area outside every range of sizes: both libraries ignore such an object, as they do in their own size classes.

They have no other way to ignore an object that is no crowd, whose overlap would be computed differently.
"""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Objects or detections of a whole set, one entry per row.

    Attributes:
        images: Number of the image, from 1.
        categories: Number of the class, from 1.
        boxes: Absolute xywh.
        areas: What decides the size class, in pixels.
        masks: Compressed run lengths; `None` where boxes are compared.
        scores: Confidence of a detection; zeros for objects.
        crowd: 1 where an object stands for many; zeros for detections.
    """

    images: Int[np.ndarray, " N"]
    categories: Int[np.ndarray, " N"]
    boxes: Float[np.ndarray, "N 4"]
    areas: Float[np.ndarray, " N"]
    masks: list[Any] | None
    scores: Float[np.ndarray, " N"]
    crowd: Int[np.ndarray, " N"]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.images)


@dataclass(frozen=True, eq=False)
class Results(Sequence[Mapping[str, Any]]):
    """COCO results of a whole set as one table; a row becomes a mapping when it is read.

    Attributes:
        image_ids: Original id of each image.
        category_ids: Original id of each class.
        image: Index of each row's image in `image_ids`.
        table: Absolute xywh, score and label of each row; a label is an index in `category_ids`.
    """

    image_ids: Sequence[Any]
    category_ids: Sequence[int]
    image: Int[np.ndarray, " N"]
    table: Float[np.ndarray, "N 6"]

    def __len__(self) -> int:
        """Number of detections."""
        return len(self.table)

    def __getitem__(self, index: Any) -> Any:
        """Return one detection as a COCO result, or several."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        *box, score, label = self.table[index].tolist()
        ids = {"image_id": self.image_ids[self.image[index]], "category_id": self.category_ids[int(label)]}
        return {**ids, "bbox": box, "score": score}


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Original ids -> numbers from 1, in sorted order, as both libraries sort them; the order decides between ties.

    Attributes:
        images: Id of an image -> its number.
        categories: Id of a class -> its number.
        sizes: Height and width of each image, 0 where they are not known.
    """

    images: Mapping[Any, int]
    categories: Mapping[Any, int]
    sizes: Sequence[tuple[int, int]]

    @classmethod
    def of(cls, truth: GroundTruth) -> "Numbers":
        """Number the images and the classes of a set."""
        sizes = {row["id"]: (int(row.get("height") or 0), int(row.get("width") or 0)) for row in truth["images"]}
        images = {key: number for number, key in enumerate(sorted(sizes), start=1)}
        ids = sorted({row["id"] for row in truth["categories"]})
        categories = {key: number for number, key in enumerate(ids, start=1)}
        return cls(images=images, categories=categories, sizes=[sizes[key] for key in images])


def columns_of(rows: Sequence[Mapping[str, Any]], numbers: Numbers, kind: Kind) -> Columns:
    """Return annotations or results as columns.

    Args:
        rows: Annotations or results with original ids; without a `bbox`, box and area are those of the mask.
        numbers: The numbers of images and classes.
        kind: Whether masks are needed.
    """
    if isinstance(rows, Results):
        return _columns_of_table(rows, numbers)
    masks = [row["segmentation"] for row in rows] if kind == "segm" else None
    boxes, areas = _extents(rows)
    stated = np.fromiter((row.get("area", np.nan) for row in rows), np.float64, len(rows))
    areas = np.where(np.isnan(stated), areas, stated)
    difficult = np.fromiter((bool(row.get("difficult")) for row in rows), np.bool_, len(rows))
    return Columns(
        images=np.fromiter((numbers.images[row["image_id"]] for row in rows), np.int64, len(rows)),
        categories=np.fromiter((numbers.categories[row["category_id"]] for row in rows), np.int64, len(rows)),
        boxes=boxes,
        areas=np.where(difficult, IGNORED_AREA, areas),
        masks=masks,
        scores=np.fromiter((row.get("score", 0.0) for row in rows), np.float64, len(rows)),
        crowd=np.fromiter((bool(row.get("iscrowd")) for row in rows), np.int64, len(rows)),
    )


def _columns_of_table(rows: Results, numbers: Numbers) -> Columns:
    images = np.array([numbers.images[key] for key in rows.image_ids], np.int64)
    # Numbers begin at 1. A source may know classes that are not measured, such as stuff, of which there are no rows.
    known = np.array([numbers.categories.get(key, 0) for key in rows.category_ids], np.int64)
    categories = known[rows.table[:, 5].astype(np.int64)]
    assert categories.all(), "a row is of a class that is not measured"
    return Columns(
        images=images[rows.image],
        categories=categories,
        boxes=rows.table[:, :4],
        areas=rows.table[:, 2] * rows.table[:, 3],
        masks=None,
        scores=rows.table[:, 4],
        crowd=np.zeros(len(rows), np.int64),
    )


def _extents(rows: Sequence[Mapping[str, Any]]) -> tuple[Float[np.ndarray, "N 4"], Float[np.ndarray, " N"]]:
    """Return box and area of each row: the area of the box or, without a box, of the mask."""
    boxed = np.fromiter(("bbox" in row for row in rows), np.bool_, len(rows))
    boxes, areas = np.empty((len(rows), 4)), np.empty(len(rows))
    sides = chain.from_iterable(row["bbox"] for row in rows if "bbox" in row)
    boxes[boxed] = np.fromiter(sides, np.float64, 4 * int(boxed.sum())).reshape(-1, 4)
    areas[boxed] = boxes[boxed, 2] * boxes[boxed, 3]
    if masks := [row["segmentation"] for row in rows if "bbox" not in row]:
        boxes[~boxed] = coco_mask.toBbox(masks)
        # One by one, because pycocotools returns the areas of a list as 8-bit numbers.
        areas[~boxed] = [coco_mask.area(mask) for mask in masks]
    return boxes, areas


Curves: TypeAlias = tuple[Float[np.ndarray, "T R C A M"], Float[np.ndarray, "T C A M"]]
"""Precision and recall by overlap threshold, level of recall, class, object size and detections per image."""


def by_hotcoco(numbers: Numbers, objects: Columns, found: Columns, kind: Kind, limits: Sequence[int]) -> Curves:
    """Return COCO's precision and recall, by hotcoco.

    Args:
        numbers: The images and classes.
        objects: The truth.
        found: The detections.
        kind: What overlaps.
        limits: Numbers of detections per image and class that count, ascending.

    Raises:
        ImportError: hotcoco is not installed.
    """
    import hotcoco  # it may be missing

    truth = hotcoco.COCO.from_arrays(
        _images(numbers),
        _categories(numbers),
        objects.images,
        objects.categories,
        objects.boxes,
        area=objects.areas,
        iscrowd=objects.crowd,
        segmentation=objects.masks,
    )
    table = np.column_stack([found.images, found.boxes, found.scores, found.categories])
    results = truth.load_res(table.astype(np.float64), segmentation=found.masks)
    if not np.array_equal(found.areas, found.boxes[:, 2] * found.boxes[:, 3]):
        results.update_anns(ids=np.arange(1, len(found) + 1), area=found.areas)
    evaluation = hotcoco.COCOeval(truth, results, kind)
    evaluation.params.max_dets = list(limits)
    with redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    curves = evaluation.eval
    assert curves is not None, "accumulate has run"
    return np.asarray(curves["precision"]), np.asarray(curves["recall"])


def by_pycocotools(numbers: Numbers, objects: Columns, found: Columns, kind: Kind, limits: Sequence[int]) -> Curves:
    """Return COCO's precision and recall, by pycocotools; arguments as for `by_hotcoco`."""
    from pycocotools.cocoeval import COCOeval  # it loads matplotlib

    with redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_indexed(numbers, objects), _indexed(numbers, found), kind)
        evaluation.params.maxDets = list(limits)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


Engine: TypeAlias = Callable[[Numbers, Columns, Columns, Kind, Sequence[int]], Curves]


@cache
def fastest() -> Engine:
    """Return `by_hotcoco`, or `by_pycocotools` where hotcoco is missing, which is said once."""
    try:
        import hotcoco  # noqa: F401  # it may be missing
    except ImportError:
        log.warning("hotcoco is not installed: AP is computed by pycocotools, the same but slowly; pip install hotcoco")
        return by_pycocotools
    return by_hotcoco


def _images(numbers: Numbers) -> list[dict[str, Any]]:
    return [{"id": n, "height": size[0], "width": size[1]} for n, size in enumerate(numbers.sizes, start=1)]


def _categories(numbers: Numbers) -> list[dict[str, Any]]:
    return [{"id": number, "name": str(number)} for number in numbers.categories.values()]


def _indexed(numbers: Numbers, columns: Columns) -> Any:
    """Return pycocotools' index; annotations are numbered from 1, because it takes number 0 for "unmatched"."""
    from pycocotools.coco import COCO  # it loads matplotlib

    names = ("image_id", "category_id", "bbox", "area", "score", "iscrowd")
    values: Iterable[tuple[Any, ...]] = zip(
        columns.images.tolist(),
        columns.categories.tolist(),
        columns.boxes.tolist(),
        columns.areas.tolist(),
        columns.scores.tolist(),
        columns.crowd.tolist(),
        strict=True,
    )
    annotations = [dict(zip(names, row, strict=True), id=n) for n, row in enumerate(values, start=1)]
    for row, mask in zip(annotations, columns.masks or (), strict=False):
        row["segmentation"] = mask
    index = COCO()
    index.dataset = {"images": _images(numbers), "categories": _categories(numbers), "annotations": annotations}
    index.createIndex()
    return index
