"""coco:ANN.json:IMAGES -> LabelledImages: COCO's instance annotations, read once into arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from posixpath import normpath
from typing import Any

from downstream.annotations.fields import (
    area_in,
    flag_in,
    how_stated,
    id_in,
    image_id_in,
    other_kind,
    require_one_kind,
    size_in,
)
from downstream.annotations.labelled import Annotated, LabelledImages
from downstream.annotations.labels import Labels, Rows, stays_inside
from downstream.annotations.numbers import LARGEST, finite_number
from downstream.annotations.outlines import ASIDE, MISSING, REACH, UNDRAWN, Outline, lies_aside, outline_of
from downstream.annotations.problems import SHOWN, Problems, json_of, records, shown
from ssldet.data.files import beside
from ssldet.data.images import ImageRules
from ssldet.data.places import place_of
from ssldet.errors import AnnotationError
from ssldet.escapes import is_text
from ssldet.source import with_paths


class Masks(Enum):
    """What is done with the segmentations of a file."""

    IGNORED = auto()
    CHECKED = auto()
    """Faults go to the problems, rows without a segmentation are kept without one and counted."""
    KEPT = auto()
    """Every row must have one."""


EXAMPLES = 20
"""Images that the folder of images is recognised by; some of them may be missing."""
TOO_FAR = "lies far outside its image; correct the polygon"
"""What is said of a point that no image reaches."""
UNMASKED = "boxes without segmentation; tasks with masks refuse them"
"""What is counted where segmentations are checked and not needed."""


@with_paths(0, 1, 2)
def open_coco(rest: str, rules: ImageRules, *, masks: bool = False) -> LabelledImages:
    """Open a COCO file with its images.

    Args:
        rest: `ANN.json:IMAGES`, a folder or `tar:SHARDS`; without `:IMAGES` the folder is looked for beside the file.
        rules: Which images are usable.
        masks: Give every target its mask; they are drawn when an image is read.

    Raises:
        AnnotationError: The file is not sound COCO, or images are missing; all problems at once.
    """
    problems = Problems(Path(rest.partition(":")[0]))
    annotated = gather_coco(rest, problems, rules, masks=Masks.KEPT if masks else Masks.IGNORED)
    return LabelledImages(annotated, problems, rules)


def read_coco(path: Path, *, masks: Masks = Masks.IGNORED) -> Labels:
    """Read a COCO file without touching any image.

    Boxes are kept as stated. Missing `area` and `iscrowd` are derived and counted, boxes without area or wholly
    outside their image are dropped and counted; everything else that is wrong stops the reading.

    Args:
        path: A file with `images`, `annotations` and `categories`.
        masks: What is done with the segmentations.

    Raises:
        AnnotationError: With a JSON pointer for each problem.
    """
    problems = Problems(path)
    labels, _ = _read(path, problems, masks, None)
    problems.stop()
    return labels


def gather_coco(
    rest: str, problems: Problems, rules: ImageRules, *, masks: Masks = Masks.IGNORED, lost: Problems | None = None
) -> Annotated:
    """Read what is sound of a COCO file, and find its images.

    Args:
        rest: `ANN.json:IMAGES`, `ANN.json:tar:SHARDS`, or `ANN.json`.
        problems: Takes what is wrong.
        rules: Which images are usable.
        masks: What is done with the segmentations.
        lost: Takes what is wrong with segmentations, in place of `problems`; such rows are kept without one then.

    Raises:
        AnnotationError: The file is no JSON object, or its images can't be found.
    """
    annotations, _, images = rest.partition(":")
    path = Path(annotations)
    labels, places = _read(path, problems, masks, lost)
    if not labels.files:
        problems.stop()
    if images.startswith("tar:") and not Path(images).exists():
        archives = place_of(images, rules)
        return Annotated(labels=labels, folder=Path(images), origin=path, places=places, archives=archives)
    folder = Path(images) if images else _guess_folder(path, labels.files[:EXAMPLES])
    if not folder.is_dir():
        raise AnnotationError(f"{folder}: no such folder of images{beside(folder)}; give coco:ANN.json:IMAGES")
    return Annotated(labels=labels, folder=folder, origin=path, places=places)


def _read(path: Path, problems: Problems, masks: Masks, lost: Problems | None) -> tuple[Labels, list[str]]:
    """Return what is sound of a file, and the JSON pointer of each image."""
    # Masks are packed or dropped while parsing to keep the memory small.
    hook = _without_masks if masks is Masks.IGNORED else _with_packed_masks
    document = json_of(path, dict, "an object with images, annotations, categories", hook=hook)
    categories = _categories(document, problems)
    images = _Images(document, problems)
    labelling = {key: label for label, key in enumerate(categories)}
    rows = _rows(document, labelling, images, problems, _Outlines(masks, problems, lost))
    if images.rewritten:
        rows.notes["file names with backslashes, read as folders"] = images.rewritten
    labels = rows.labels(
        classes=list(categories.values()),
        category_ids=list(categories),
        image_ids=list(images.index),  # type: ignore[arg-type]  # all numbers or all text, else there are problems
        files=images.files,
        sizes=images.sizes,
    )
    return labels, images.places


def _without_masks(record: dict[str, Any]) -> dict[str, Any]:
    record.pop("segmentation", None)
    return record


def _with_packed_masks(record: dict[str, Any]) -> dict[str, Any]:
    if "bbox" in record or "segmentation" in record:
        record["segmentation"] = outline_of(record.get("segmentation"))
    return record


def _categories(document: dict[str, Any], problems: Problems) -> dict[int, str]:
    """Return id -> name in the file's order, which becomes the order of the labels."""
    names: dict[int, str] = {}
    taken: set[str] = set()
    for where, record in records(document, "categories", problems):
        key, name = id_in(record, "id", where, problems), record.get("name")
        if not isinstance(name, str) or not name.strip() or not is_text(name):
            problems.add(f"{where}.name", how_stated(record, "name"), "expects the name of the class")
        elif name in taken:
            problems.add(f"{where}.name", f"{name!r} is the name of two categories", "rename or merge one of them")
        elif key is not None and key in names:
            problems.add(f"{where}.id", f"{key} is also the id of {names[key]!r}", "give every category its own id")
        elif key is not None:
            names[key] = name
            taken.add(name)
    return names


class _Images:
    """The `images` list: id -> index, and file, size and place by index. Ids are all numbers or all text."""

    def __init__(self, document: dict[str, Any], problems: Problems) -> None:
        self.index: dict[int | str, int] = {}
        self.files: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self.places: list[str] = []
        self.rewritten = 0
        owners: dict[str, str] = {}
        for where, record in records(document, "images", problems):
            key, name = image_id_in(record, "id", where, problems), record.get("file_name")
            if not isinstance(name, str) or not name or not is_text(name):
                remedy = "expects a file name relative to the image folder"
                problems.add(f"{where}.file_name", how_stated(record, "file_name"), remedy)
                continue
            if not stays_inside(name):
                problems.add(f"{where}.file_name", shown(name), "must stay under the image folder; make it relative")
                continue
            if "\\" in name:
                name = name.replace("\\", "/")
                self.rewritten += 1
            if (first := owners.setdefault(normpath(name), where)) != where:
                remedy = "each of the two would miss the other's boxes; list every image once"
                problems.add(f"{where}.file_name", f"{name} is also the file of {first}", remedy)
            if key in self.index:
                twin = self.files[self.index[key]]
                problems.add(f"{where}.id", f"{key} of {name} is also the id of {twin}", "give every image its own id")
            elif key is not None:
                self.index[key] = len(self.files)
                self.files.append(name)
                self.sizes.append(size_in(record, where, problems))
                self.places.append(where)
        require_one_kind(self.index, [f"{where}.id" for where in self.places], problems)


@dataclass(frozen=True)
class _Outlines:
    """Reads the segmentations of rows; what is wrong with them goes to the problems or, if there is that, to `lost`."""

    masks: Masks
    problems: Problems
    lost: Problems | None

    def read(self, record: dict[str, Any], size: tuple[int, int], where: str) -> Outline | None:
        """Return the packed segmentation of a row; `None` where none is wanted or it is refused."""
        if self.masks is Masks.IGNORED:
            return None
        outline: Outline | str = record.get("segmentation", MISSING)
        if outline == MISSING and self.masks is Masks.CHECKED:
            return UNDRAWN
        faults = self.problems if self.lost is None else self.lost
        if isinstance(outline, str):
            remedy = "mend it, or train a task without masks, which does not read it"
            faults.add(f"{where}.segmentation", outline, remedy)
        elif outline.size is not None and all(size) and outline.size != size:
            remedy = f"must have the size of its image, {list(size)}"
            faults.add(f"{where}.segmentation.size", shown(list(outline.size)), remedy)
        elif all(size) and outline.reach > REACH * max(size):
            faults.add(f"{where}.segmentation", f"a point at {outline.reach:g}", TOO_FAR)
        else:
            return outline
        return None if self.lost is None else UNDRAWN


def _rows(
    document: dict[str, Any], labels: dict[int, int], images: _Images, problems: Problems, outlines: _Outlines
) -> Rows:
    rows = Rows()
    seen: dict[object, str] = {}
    image_ids, category_ids = _stated_ids(document, "images"), _stated_ids(document, "categories")
    for where, record in records(document, "annotations", problems, may_be_empty=True):
        before = len(problems)
        key = record["id"] if isinstance(record.get("id"), str) else id_in(record, "id", where, problems)
        if key in seen:
            problems.add(
                f"{where}.id", f"{shown(key)} is also the id of {seen[key]}", "give every annotation its own id"
            )
        elif key is not None:
            seen[key] = where
        image = _reference(record, "image_id", images.index, image_ids, where, problems)
        label = _reference(record, "category_id", labels, category_ids, where, problems)
        box = _box(record, where, problems)
        crowd, difficult = (flag_in(record, name, where, problems) for name in ("iscrowd", "difficult"))
        area = area_in(record, where, problems)
        outline = None if image is None else outlines.read(record, images.sizes[image], where)
        if len(problems) == before and image is not None and label is not None:
            if "iscrowd" not in record:
                rows.count("iscrowd taken as 0")
            if difficult:
                rows.count("difficult objects, trained on and ignored by metrics")
            if outline == UNDRAWN and outlines.lost is None:
                rows.count(UNMASKED)
            if outline is not None and lies_aside(outline, box):
                rows.count(ASIDE, where)
            text = None if outline is None else outline.text
            rows.add(image, label, box, where, area=area, crowd=crowd, difficult=difficult, outline=text)
    return rows


def _stated_ids(document: dict[str, Any], owner: str) -> set[object]:
    """Return every id that the records of a list state, refused ones included."""
    stated = document.get(owner)
    entries = stated if isinstance(stated, list) else []
    keys = [record.get("id") for record in entries if isinstance(record, dict)]
    return {key for key in keys if isinstance(key, int | float | str)}


def _reference(
    record: dict[str, Any],
    name: str,
    accepted: Mapping[Any, int],
    stated: set[object],
    where: str,
    problems: Problems,
) -> int | None:
    """Return the index behind an id; what a refused record states is told once, at that record."""
    value = record.get(name)
    if not accepted or (isinstance(value, int | float | str) and value in stated and value not in accepted):
        return None
    key = (image_id_in if name == "image_id" else id_in)(record, name, where, problems)
    if key is None:
        return None
    if key in accepted:
        return accepted[key]
    kind, owner = ("image", "images") if name == "image_id" else ("category", "categories")
    # A look for near misses is slow; the first few show the pattern.
    alike = other_kind(key, accepted) if len(problems) < SHOWN else ""
    remedy = f"no {kind} has this id; add it to $.{owner} or drop the annotation"
    problems.add(f"{where}.{name}", shown(key) + alike, remedy)
    return None


def _box(record: dict[str, Any], where: str, problems: Problems) -> Sequence[float]:
    """Return xywh; what is wrong with it goes to the problems."""
    value = record.get("bbox")
    if not isinstance(value, list) or len(value) != 4:
        problems.add(
            f"{where}.bbox", how_stated(record, "bbox"), "expects four numbers [x, y, width, height] in pixels"
        )
        return (0.0, 0.0, 0.0, 0.0)
    box = []
    for place, item in enumerate(value):
        number = finite_number(item)
        if number is None or abs(number) > LARGEST:
            problems.add(f"{where}.bbox[{place}]", shown(item), "expects a finite number of pixels")
        elif place > 1 and number < 0:
            problems.add(f"{where}.bbox[{place}]", shown(item), "width and height can't be negative; bbox is xywh")
        box.append(number or 0.0)
    return box


def _guess_folder(annotations: Path, examples: Sequence[str]) -> Path:
    """Return the folder, beside the file or as in the official layout, that holds one of the first images."""
    split = annotations.stem.rpartition("_")[2]
    home = annotations.parent
    places = [home, home / "images", home / split, home.parent / "images", home.parent / split]
    places += [home.parent / "images" / split, home.parent]
    for place in places:
        if any((place / example).is_file() for example in examples):
            return place
    tried = ", ".join(str(place) for place in places)
    raise AnnotationError(
        f"{annotations}: no folder beside it holds {shown(examples[0])}; tried {tried}; add :IMAGES to the path"
    )
