"""coco:ANN.json:IMAGES -> LabelledImages: COCO's instance annotations, read once into arrays."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from downstream.annotations.labelled import LabelledImages
from downstream.annotations.labels import Labels, Rows, stays_inside
from downstream.annotations.problems import Problems, shown
from ssldet.errors import AnnotationError


def open_coco(rest: str, *, min_side: int, max_pixels: int) -> LabelledImages:
    """Open a COCO file with its images.

    Args:
        rest: `ANN.json:IMAGES`; without `:IMAGES` the folder is looked for beside the file.
        min_side: Shortest usable image side in pixels.
        max_pixels: Largest usable image in pixels.

    Raises:
        AnnotationError: The file is not sound COCO, or images are missing; all problems at once.
    """
    annotations, _, images = rest.partition(":")
    labels = read_coco(Path(annotations))
    folder = Path(images) if images else _guess_folder(Path(annotations), labels.files[0])
    return LabelledImages(
        labels,
        folder=folder,
        origin=Path(annotations),
        places=[f"$.images[{number}]" for number in range(len(labels))],
        min_side=min_side,
        max_pixels=max_pixels,
    )


def read_coco(path: Path) -> Labels:
    """Read a COCO file without touching any image.

    Boxes are kept as stated. Missing `area` and `iscrowd` are derived and counted, boxes without area or wholly
    outside their image are dropped and counted; everything else that is wrong stops the reading.

    Args:
        path: A file with `images`, `annotations` and `categories`.

    Raises:
        AnnotationError: With a JSON pointer for each problem.
    """
    document = _parse(path)
    problems = Problems(path)
    categories = _categories(document, problems)
    images = _Images(document, problems)
    rows = _rows(document, {key: label for label, key in enumerate(categories)}, images.index, problems)
    problems.stop()
    return rows.labels(
        classes=list(categories.values()),
        category_ids=list(categories),
        image_ids=list(images.index),
        files=images.files,
        sizes=images.sizes,
    )


def _parse(path: Path) -> dict[str, Any]:
    """Return the document without its masks, which are dropped while parsing to keep the memory small."""
    try:
        document = json.loads(path.read_bytes(), object_hook=_without_masks)
    except OSError as error:
        raise AnnotationError(f"{path}: can't be read ({error.strerror}); give coco:ANN.json:IMAGES") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno} (offset {error.pos})"
        raise AnnotationError(f"{path}: not JSON at {place}: {error.msg}; the file may be cut off") from error
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: not UTF-8 text at offset {error.start}; save it as UTF-8") from error
    except RecursionError as error:
        raise AnnotationError(f"{path}: nested too deeply to be COCO annotations; is it the right file?") from error
    except ValueError as error:
        raise AnnotationError(f"{path}: holds a number that can't be read ({error})") from error
    if not isinstance(document, dict):
        raise AnnotationError(f"{path}: $: {shown(document)}; expects an object with images, annotations, categories")
    return document


def _without_masks(record: dict[str, Any]) -> dict[str, Any]:
    record.pop("segmentation", None)
    return record


def _categories(document: dict[str, Any], problems: Problems) -> dict[int, str]:
    """Return id -> name in the file's order, which becomes the order of the labels."""
    names: dict[int, str] = {}
    for where, record in _records(document, "categories", problems):
        key, name = _id(record, "id", where, problems), record.get("name")
        if not isinstance(name, str) or not name:
            problems.add(f"{where}.name", shown(name), "expects the name of the class")
        elif name in names.values():
            problems.add(f"{where}.name", f"{name!r} is the name of two categories", "rename or merge one of them")
        elif key is not None and key in names:
            problems.add(f"{where}.id", f"{key} is also the id of {names[key]!r}", "give every category its own id")
        elif key is not None:
            names[key] = name
    return names


class _Images:
    """The `images` list: id -> index, and file and size by index."""

    def __init__(self, document: dict[str, Any], problems: Problems) -> None:
        self.index: dict[int, int] = {}
        self.files: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        for where, record in _records(document, "images", problems):
            key, name = _id(record, "id", where, problems), record.get("file_name")
            if not isinstance(name, str) or not name:
                problems.add(f"{where}.file_name", shown(name), "expects a file name relative to the image folder")
                continue
            if not stays_inside(name):
                problems.add(f"{where}.file_name", shown(name), "must stay under the image folder; make it relative")
            if key in self.index:
                twin = self.files[self.index[key]]
                problems.add(f"{where}.id", f"{key} of {name} is also the id of {twin}", "give every image its own id")
            elif key is not None:
                self.index[key] = len(self.files)
                self.files.append(name)
                self.sizes.append(_size(record, where, problems))


def _size(record: dict[str, Any], where: str, problems: Problems) -> tuple[int, int]:
    """Return the stated height and width; zeros where the file states none, to be read from the image."""
    if record.get("height") is None and record.get("width") is None:
        return 0, 0
    sides = []
    for side in ("height", "width"):
        value = record.get(side)
        number = _number(value)
        if number is None or number < 1 or number != int(number):
            problems.add(f"{where}.{side}", shown(value), "expects the number of pixels, or leave both sides out")
        else:
            sides.append(int(number))
    return (sides[0], sides[1]) if len(sides) == 2 else (0, 0)


def _rows(document: dict[str, Any], labels: dict[int, int], images: dict[int, int], problems: Problems) -> Rows:
    rows = Rows()
    seen: dict[int, str] = {}
    for where, record in _records(document, "annotations", problems):
        before = len(problems)
        key = _id(record, "id", where, problems)
        if key in seen:
            problems.add(f"{where}.id", f"{key} is also the id of {seen[key]}", "give every annotation its own id")
        elif key is not None:
            seen[key] = where
        image = _reference(record, "image_id", images, where, problems)
        label = _reference(record, "category_id", labels, where, problems)
        box = _box(record, where, problems)
        crowd = record.get("iscrowd", 0)
        if crowd not in (0, 1):
            problems.add(f"{where}.iscrowd", shown(crowd), "expects 0 or 1")
        if not isinstance(record.get("area"), int | float | None):
            problems.add(f"{where}.area", shown(record["area"]), "expects a number, or leave it out")
        if len(problems) == before and image is not None and label is not None:
            if "iscrowd" not in record:
                rows.count("iscrowd taken as 0")
            if crowd:
                rows.count("crowd regions, not trained on")
            rows.add(image, label, box, area=_number(record.get("area")), crowd=bool(crowd))
    return rows


def _records(document: dict[str, Any], name: str, problems: Problems) -> Iterator[tuple[str, dict[str, Any]]]:
    """Walk a list of objects with the JSON pointer of each."""
    records = document.get(name)
    if not isinstance(records, list):
        problems.add(f"$.{name}", "missing" if name not in document else shown(records), "expects a list of objects")
        return
    if not records and name != "annotations":
        problems.add(f"$.{name}", "empty", "expects at least one entry")
    for number, record in enumerate(records):
        if isinstance(record, dict):
            yield f"$.{name}[{number}]", record
        else:
            problems.add(f"$.{name}[{number}]", shown(record), "expects an object")


def _id(record: dict[str, Any], name: str, where: str, problems: Problems) -> int | None:
    value = record.get(name)
    if type(value) is int:
        return value
    problems.add(f"{where}.{name}", shown(value) if name in record else "missing", "expects a whole number")
    return None


def _reference(record: dict[str, Any], name: str, known: dict[int, int], where: str, problems: Problems) -> int | None:
    """Return the index behind an id."""
    key = _id(record, name, where, problems)
    if key is None:
        return None
    if key in known:
        return known[key]
    kind, owner = ("image", "images") if name == "image_id" else ("category", "categories")
    remedy = f"no {kind} has this id; add it to $.{owner} or drop the annotation"
    problems.add(f"{where}.{name}", shown(key), remedy)
    return None


def _box(record: dict[str, Any], where: str, problems: Problems) -> Sequence[float]:
    """Return xywh; what is wrong with it goes to the problems."""
    value = record.get("bbox")
    if not isinstance(value, list) or len(value) != 4:
        found = shown(value) if "bbox" in record else "missing"
        problems.add(f"{where}.bbox", found, "expects four numbers [x, y, width, height] in pixels")
        return (0.0, 0.0, 0.0, 0.0)
    box = []
    for place, item in enumerate(value):
        number = _number(item)
        if number is None:
            problems.add(f"{where}.bbox[{place}]", shown(item), "expects a finite number of pixels")
        elif place > 1 and number < 0:
            problems.add(f"{where}.bbox[{place}]", shown(item), "width and height can't be negative; bbox is xywh")
        box.append(number or 0.0)
    return box


def _number(value: object) -> float | None:
    """Return a finite number, or None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _guess_folder(annotations: Path, example: str) -> Path:
    """Return the folder, beside the file or as in the official layout, that holds the first image."""
    split = annotations.stem.rpartition("_")[2]
    home = annotations.parent
    places = [home, home / "images", home / split, home.parent / "images", home.parent / split]
    places += [home.parent / "images" / split, home.parent]
    for place in places:
        if (place / example).is_file():
            return place
    tried = ", ".join(str(place) for place in places)
    raise AnnotationError(f"{annotations}: no folder beside it holds {example}; tried {tried}; add :IMAGES to the path")
