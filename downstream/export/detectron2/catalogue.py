"""our data specifications -> detectron2's catalogue: dictionaries, class names and metadata for its evaluators."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from downstream.annotations.labelled import LabelledImages
from downstream.annotations.masks import encode
from downstream.annotations.panoptic import PanopticImages
from downstream.annotations.segments import split_spec as split_panoptic
from downstream.annotations.segments import tight_boxes
from downstream.one_shot import OneShot
from ssldet.boxes import to_absolute
from ssldet.data.images import ImageRules
from ssldet.data.sources import open_source, split_spec
from ssldet.errors import DataError
from ssldet.home import cache_folder
from ssldet.source import Source
from ssldet.task import Task

VOC_YEAR = 2007
"""Year of the metric that detectron2's VOC evaluator computes: the 11-point average precision."""
THINGS, VOID = 0, 255
"""Numbers in detectron2's images of stuff: all things together, and unlabelled pixels."""


def register(spec: str, name: str | None = None) -> str:
    """Register labelled images in detectron2's catalogue; a second call has no effect.

    Args:
        spec: `coco:ANN.json:IMAGES`, `coco:ANN.json:tar:SHARDS`, `voc:ROOT:SPLIT` or
            `panoptic:GT.json:PNGS:IMAGES`, or a name that is in the catalogue already.
        name: Name in the catalogue; `None` takes the specification.

    Returns:
        The name in the catalogue.

    Raises:
        DataError: The specification names nothing usable.
    """
    if spec in DatasetCatalog:
        return spec
    form, rest = split_spec(spec)
    if form not in {"coco", "voc", "panoptic"}:
        raise DataError(f"{spec}: none of coco:…, voc:…, panoptic:…, and no name in detectron2's catalogue")
    name = name or spec
    if name not in DatasetCatalog:
        source = opened(spec)
        DatasetCatalog.register(name, lambda: list(_rows(spec)))
        MetadataCatalog.get(name).set(**_metadata(form, rest, source))
    return name


def dataset(spec: str, task: Task, *, training: bool) -> list[dict[str, Any]]:
    """Return the dictionaries of a data set for detectron2's loaders; images without objects are kept, as in DETR.

    Args:
        spec: Labelled images, as for `register`.
        task: The task; if it pairs images with queries, there is one dictionary per pair.
        training: Whether the data set is for training.
    """
    if not isinstance(task, OneShot):
        rows: list[dict[str, Any]] = DatasetCatalog.get(register(spec))
        return rows
    pairs = prepared(spec, task, training=training)
    return [
        {"file_name": pairs.name_of(number), "image_id": number, "ssldet_place": (spec, number)}
        for number in range(len(pairs))
    ]


@cache
def opened(spec: str, *, masks: bool = False) -> LabelledImages:
    """Return our source of a specification, which a process opens only once.

    Args:
        spec: Labelled images.
        masks: Read the masks of the targets.
    """
    source = open_source([spec], ImageRules(), masks=masks)
    if not isinstance(source, LabelledImages):
        raise DataError(f"{spec}: carries no labels")
    return source


@cache
def prepared(spec: str, task: Task, *, training: bool) -> Source:
    """Return a source that the task has prepared.

    Args:
        spec: Labelled images.
        task: The task.
        training: Whether the source is for training.
    """
    return task.prepare(opened(spec, masks=task.needs.masks), training=training)


def classes_of(metadata: Any) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return all class names of a data set in the order of our labels, and the labels of stuff.

    Args:
        metadata: Metadata of the data set in detectron2's catalogue. Data sets that we registered state both; in others
            things come first, then stuff if there are segments.
    """
    if hasattr(metadata, "ssldet_classes"):
        return tuple(metadata.ssldet_classes), tuple(metadata.ssldet_stuff)
    things = tuple(metadata.get("thing_classes", ()))
    stuff = tuple(metadata.get("stuff_classes", ())) if metadata.get("panoptic_json") else ()
    # In detectron2's separated panoptic sets the first class of stuff means all things.
    stuff = stuff[1:] if stuff[:1] == ("things",) else stuff
    return things + stuff, tuple(range(len(things), len(things) + len(stuff)))


def contiguous(classes: int, stuff: Sequence[int]) -> dict[int, tuple[bool, int]]:
    """Return whether each of our labels is a thing, and its number in detectron2, which counts each kind from 0.

    Args:
        classes: Number of classes.
        stuff: Labels of the classes without countable objects.
    """
    things = [label for label in range(classes) if label not in set(stuff)]
    numbers = {label: (True, number) for number, label in enumerate(things)}
    return numbers | {label: (False, number) for number, label in enumerate(sorted(stuff))}


def _rows(spec: str) -> Iterator[dict[str, Any]]:
    source = opened(spec)
    for index, (height, width) in enumerate(source.labels.sizes.tolist()):
        row = {
            "file_name": source.name_of(index),
            "image_id": source.image_ids[index],
            "height": height,
            "width": width,
            "ssldet_place": (spec, index),
        }
        yield row | (_segments(source, index) if isinstance(source, PanopticImages) else _objects(source, index))


def _objects(source: LabelledImages, index: int) -> dict[str, Any]:
    targets = source.targets_of(index)
    height, width = source.labels.sizes[index].tolist()
    boxes = to_absolute(targets.boxes, (height, width)).tolist()
    return {
        "annotations": [
            {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": label, "iscrowd": 0}
            for box, label in zip(boxes, targets.labels.tolist(), strict=True)
        ]
    }


def _segments(source: PanopticImages, index: int) -> dict[str, Any]:
    """Return things as annotations with masks, and the path of an image of the stuff for detectron2's evaluators."""
    key = source.keys[index]
    truth, (_, crowd, _) = source.truth(key), source.stated(key)
    numbers = contiguous(len(source.classes), _stuff(source))
    picture = np.full(truth.segments.shape, VOID, dtype=np.uint8)
    annotations = []
    for number, label in enumerate(truth.labels.tolist(), start=1):
        mask = truth.segments == number
        thing, category = numbers[label]
        picture[mask.numpy()] = THINGS if thing else 1 + category
        if thing and bool(mask.any()):
            (packed,) = encode(mask[None])
            annotations.append({
                "bbox": tight_boxes(mask[None])[0].tolist(),
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": category,
                "iscrowd": int(crowd[number - 1]),
                "segmentation": packed,
            })  # fmt: skip
    path = cache_folder() / "detectron2" / source.fingerprint / f"{key}.png"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    return {"annotations": annotations, "sem_seg_file_name": str(path)}


def _stuff(source: Source) -> tuple[int, ...]:
    return tuple(label for label, thing in enumerate(source.is_thing) if not thing)


def _metadata(form: str, rest: str, source: LabelledImages) -> dict[str, Any]:
    """Return the metadata that detectron2's evaluators read."""
    stuff = _stuff(source)
    numbers = contiguous(len(source.classes), stuff)
    named = [(numbers[label], name, source.category_ids[label]) for label, name in enumerate(source.classes)]
    things = sorted((number, name, key) for (thing, number), name, key in named if thing)
    metadata: dict[str, Any] = {
        "ssldet_classes": list(source.classes),
        "ssldet_stuff": list(stuff),
        "thing_classes": [name for _, name, _ in things],
        "thing_dataset_id_to_contiguous_id": {key: number for number, _, key in things},
        "evaluator_type": {"coco": "coco", "voc": "pascal_voc", "panoptic": "coco_panoptic_seg"}[form],
    }
    if form == "coco":
        return metadata | {"json_file": rest.partition(":")[0], "image_root": str(source.folder)}
    if form == "voc":
        root, _, split = rest.rpartition(":")
        return metadata | {"dirname": root, "split": split, "year": VOC_YEAR}
    path, pngs, _ = split_panoptic(rest)
    kinds = sorted((number, name, key) for (thing, number), name, key in named if not thing)
    return metadata | {
        "panoptic_json": str(path),
        "panoptic_root": str(pngs),
        "stuff_classes": ["things", *(name for _, name, _ in kinds)],
        "stuff_dataset_id_to_contiguous_id": {key: number for number, _, key in kinds},
        "ignore_label": VOID,
    }
