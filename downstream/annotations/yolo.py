"""yolo:ROOT:SPLIT -> LabelledImages: a data.yaml, folders of images, and a text file of normalised rows per image."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import Float

from downstream.annotations.labelled import Annotated, LabelledImages
from downstream.annotations.labels import Rows
from downstream.annotations.numbers import number_in
from downstream.annotations.outlines import NO_MASK
from downstream.annotations.problems import Problems, shown, text_of
from downstream.annotations.yolo_files import LabelFiles
from ssldet.data.files import beside, list_files
from ssldet.data.images import ImageRules, image_sizes
from ssldet.documents import FAST_LOADER, OddDocumentError, parse_yaml
from ssldet.errors import AnnotationError, DataError, UnreadableError, suggest
from ssldet.escapes import is_text
from ssldet.source import with_paths

SPLITS = ("train", "val", "test")
"""Entries of data.yaml that name images."""
SLACK = 0.01
"""How far a coordinate may lie outside 0..1, since exporters round; it is cut back."""
TASKS = ("detect", "segment", "pose", "obb")
"""Values of the entry `task` of data.yaml whose rows hold boxes, or points of which the box is taken."""
KEYPOINT_SIGNS = ("flip_idx", "kpt_names")
"""Entries of data.yaml that only sets with keypoints have."""
MAX_KEYPOINTS = 10_000
"""Largest number of keypoints of one object that is taken seriously."""
BOXED = (
    "rows, all that are no boxes, were read as polygons, but their points lie in the box of their first four numbers; "
    "are they keypoints? state kpt_shape in data.yaml"
)
"""What is said of polygons that look like a box with keypoints."""
MISREAD = "are they stored as corners, or from the upper left one, instead of centre, width and height?"
"""What to ask where many boxes leave their image."""
POLYGON = 7
"""Words of the shortest polygon row: the class and three points."""


UNKNOWN = (640, 640)
"""Height and width assumed for an image that can't be opened, so that its objects count as missed."""


@with_paths(0)
def open_yolo(rest: str, rules: ImageRules, *, masks: bool = False) -> LabelledImages:
    """Open a YOLO data set.

    Args:
        rest: `ROOT` or `ROOT:SPLIT`. ROOT holds `data.yaml` (or is such a file); SPLIT is one of its entries `train`,
            `val` and `test`, by default `train`.
        rules: Which images are usable.
        masks: Give every target its mask; all rows must be polygons then.

    Raises:
        AnnotationError: The folder is not sound; all problems at once, with file and line.
    """
    problems = Problems(Path(rest.partition(":")[0]))
    annotated = gather_yolo(rest, problems, rules, masks=masks)
    return LabelledImages(annotated, problems, rules)


def gather_yolo(
    rest: str, problems: Problems, rules: ImageRules, *, masks: bool = False, lost: Problems | None = None
) -> Annotated:
    """Read what is sound of a YOLO split. Rows are fractions, so the sizes of the images are read as well.

    An image without a label file, or with an empty one, has no objects. Rows repeated word for word count once. Where
    data.yaml states `kpt_shape`, the numbers behind the box are keypoints and are not read. The box of a polygon, or of
    the four corners of an oriented box, is the smallest upright one around it.

    Args:
        rest: `ROOT` or `ROOT:SPLIT`.
        problems: Takes what is wrong.
        rules: Which images are usable.
        masks: Keep the polygons.
        lost: Takes the rows that are no polygons, in place of `problems`; they are kept without a mask then.

    Raises:
        AnnotationError: There is no such folder or split, or nothing in it.
    """
    place, _, split = rest.partition(":")
    path = _description(Path(place))
    description = _parse(path)
    classes = _classes(description, path.name, problems)
    keypoints = _keypoint_numbers(description, path.name, problems)
    folder, names = _images(description, split or "train", path)
    sizes = [UNKNOWN if isinstance(size, UnreadableError) else size for size in image_sizes(folder, names, rules)]
    rows = Rows()
    found = LabelFiles([folder / name for name in names])
    places = [_short(file, path.parent) for file in found.files]
    for beside_it, other in found.contradictions:
        what = f"another content than {shown(_short(other, path.parent))}, which labels the same image"
        problems.add(_short(beside_it, path.parent), what, "keep one of the two files")
    labelled, boxed = 0, list[bool]()
    for image, (file, size) in enumerate(zip(found.files, sizes, strict=True)):
        if file not in found:
            rows.count("images without a label file, taken as images without objects")
            continue
        labelled += 1
        reader = _Reader(places[image], image, size, classes, masks, keypoints, boxed, lost)
        reader.read(_lines(file, places[image], problems), rows, problems)
    if boxed and all(boxed):
        rows.notes[BOXED] = len(boxed)
    if not labelled:
        raise AnnotationError(f"{path}: none of {len(names)} images has a label file; {found.files[0]} is not there")
    _count_odd_files(found, rows, path.parent)
    labels = rows.labels(classes=classes, category_ids=range(len(classes)), image_ids=names, files=names, sizes=sizes)
    return Annotated(labels=labels, folder=folder, origin=path, places=places, misread=MISREAD)


def _count_odd_files(found: LabelFiles, rows: Rows, home: Path) -> None:
    """Note what is odd about which label files there are."""
    if shared := found.shared():
        rows.notes["images share their label file with one of the same name and another ending"] = shared
    if strays := found.strays():
        first = f"the first is {shown(_short(strays[0], home))}"
        rows.notes[f"label files belong to no image that is there and can be decoded, not read; {first}"] = len(strays)


@dataclass(frozen=True)
class _Reader:
    """Reads the rows of one label file."""

    where: str
    image: int
    size: tuple[int, int]
    classes: Sequence[str]
    masks: bool
    keypoints: int
    boxed: list[bool]
    lost: Problems | None

    def read(self, lines: Sequence[str], rows: Rows, problems: Problems) -> None:
        """Take in the rows of the file; what is wrong with them goes to the problems."""
        seen: set[str] = set()
        for number, line in enumerate(lines, start=1):
            words = line.split()
            if words and (row := " ".join(words)) not in seen:
                seen.add(row)
                self._row(f"{self.where}:{number}", words, rows, problems)
            elif words:
                rows.count("repeated rows, taken once")

    def _row(self, place: str, words: list[str], rows: Rows, problems: Problems) -> None:
        if not self._is_length(len(words)):
            problems.add(place, f"{len(words)} words ({shown(' '.join(words))})", self._expected(len(words)))
            return
        if self.keypoints and len(words) > 5:
            rows.count("rows with keypoints, of which the box was read")
            words = words[:5]
        label, numbers = number_in(words[0]), [number_in(word) for word in words[1:]]
        if not self.classes:  # told at data.yaml, once
            return
        if label is None or label % 1 or not 0 <= label < len(self.classes):
            remedy = f"expects a class from 0 to {len(self.classes) - 1}, as data.yaml names them"
            problems.add(place, f"class {shown(words[0])}", remedy)
            return
        wrong = [word for word, value in zip(words[1:], numbers, strict=True) if not _is_fraction(value)]
        if wrong:
            remedy = "expects fractions of the image from 0 to 1, not pixels"
            problems.add(place, ", ".join(map(shown, wrong[:4])), remedy)
            return
        if min(number or 0 for number in numbers[2:4]) < 0 and len(words) == 5:
            problems.add(place, shown(" ".join(words)), "width and height can't be negative")
            return
        if self.masks and len(words) == 5:
            faults = problems if self.lost is None else self.lost
            faults.add(place, "a box", "has no mask; use polygons, or train a task that needs none")
            if self.lost is None:
                return
        self._add(int(label), np.asarray(numbers, dtype=np.float64), place, rows)

    def _is_length(self, count: int) -> bool:
        """Say whether a row may have this many words."""
        if self.keypoints:
            return count in {5, 5 + self.keypoints}
        return count == 5 or (count >= POLYGON and count % 2 == 1)

    def _expected(self, count: int) -> str:
        if self.keypoints:
            remedy = f"expects class, centre x, centre y, width, height and {self.keypoints} numbers of keypoints"
            return f"{remedy}, as kpt_shape in data.yaml states"
        remedy = "expects class, centre x, centre y, width, height, or a class and the points of a polygon"
        if count == 6:
            remedy += "; is the last number a confidence or an angle? these are labels of upright boxes"
        elif count > POLYGON:
            remedy += "; are there keypoints behind the box? state kpt_shape in data.yaml"
        return remedy

    def _add(self, label: int, fractions: Float[np.ndarray, " N"], place: str, rows: Rows) -> None:
        height, width = self.size
        if not width:
            # The image is reported as missing or unusable; without its size there are no pixels to count in.
            return
        outline = NO_MASK if self.masks else None
        if len(fractions) == 4:
            x, y, across, down = fractions
            corners = np.array([[x - across / 2, y - down / 2], [x + across / 2, y + down / 2]])
        else:
            self.boxed.append(_within_own_box(fractions))
            corners = fractions.reshape(-1, 2).clip(0, 1)
            if self.masks:
                outline = json.dumps([(corners * (width, height)).ravel().tolist()]).encode()
        low, high = corners.min(axis=0) * (width, height), corners.max(axis=0) * (width, height)
        box = (*low.tolist(), *(high - low).tolist())
        rows.add(self.image, label, box, place, area=box[2] * box[3], outline=outline)


def _description(place: Path) -> Path:
    """Return the YAML file that describes a data set."""
    if place.is_file():
        return place
    if not place.is_dir():
        raise AnnotationError(f"{place}: no such folder{beside(place)}; give yolo:ROOT:SPLIT, with data.yaml in ROOT")
    for name in ("data.yaml", "data.yml", "dataset.yaml"):
        if (place / name).is_file():
            return place / name
    others = sorted(place.glob("*.y*ml"))
    if len(others) == 1:
        return others[0]
    inner = sorted(place.glob("*/data.y*ml"))
    remedy = f"did you mean yolo:{inner[0].parent}?" if inner else "it names the classes and the folders of images"
    raise AnnotationError(f"{place}: no data.yaml in it; {remedy}")


class _Loader(FAST_LOADER):  # type: ignore[misc]  # of a package without types
    """Reads plain values, and refuses a mapping that has a key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping.

        Raises:
            MarkedYAMLError: A key stands in it twice; the last would win in silence.
        """
        keys: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} stands twice", problem_mark=key.start_mark)
            keys.add(str(key.value))
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def _parse(path: Path) -> dict[Any, Any]:
    try:
        document = parse_yaml(text_of(path), _Loader, aliases=False)
    except AnnotationError as error:
        raise AnnotationError(f"{path}: {error}") from error
    except OddDocumentError as error:
        raise AnnotationError(f"{path}: not YAML that describes a data set: {error}") from error
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise AnnotationError(f"{path}: {line}not YAML ({error.problem})") from error
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise AnnotationError(f"{path}: not YAML ({str(error).splitlines()[0] if str(error) else error!r})") from error
    if not isinstance(document, dict):
        raise AnnotationError(f"{path}: {shown(document)}; expects entries such as names, train and val")
    return document


def _classes(description: dict[Any, Any], place: str, problems: Problems) -> list[str]:
    """Return the class names by number."""
    found, count = description.get("names"), description.get("nc")
    if isinstance(found, dict):
        if sorted(found, key=str) != sorted(range(len(found)), key=str):
            problems.add(f"{place}: names", shown(list(found)), "expects the numbers from 0 on, each once")
            return list(map(str, found.values()))
        found = [found[number] for number in range(len(found))]
    if not isinstance(found, list) or not found:
        problems.add(f"{place}: names", shown(found), "expects the names of the classes: a list, or number: name")
        return []
    for number, name in enumerate(found):
        if (
            isinstance(name, bool)
            or not isinstance(name, str | int | float)
            or not str(name).strip()
            or not is_text(str(name))
        ):
            remedy = "expects a name; YAML takes yes, no, on and off for truth values, so put such names in quotes"
            problems.add(f"{place}: names[{number}]", shown(name), remedy)
    names = list(map(str, found))
    for name in sorted(name for name, times in Counter(names).items() if times > 1):
        problems.add(f"{place}: names", f"{name!r} is the name of two classes", "rename or merge one of them")
    if count is not None and count != len(names):
        problems.add(f"{place}: nc", f"{shown(count)} with {len(names)} names", "take one of the two away")
    return names


def _keypoint_numbers(description: dict[Any, Any], place: str, problems: Problems) -> int:
    """Return how many numbers of keypoints follow the box of each row; 0 where there are no keypoints."""
    shape, task = description.get("kpt_shape"), description.get("task")
    if task is not None and task not in TASKS:
        problems.add(f"{place}: task", shown(task), f"expects labels of objects: {', '.join(TASKS)}")
    if shape is None:
        sign = next((name for name in KEYPOINT_SIGNS if description.get(name)), None)
        if task == "pose" or sign is not None:
            what = f"{sign} without kpt_shape" if sign else "pose without kpt_shape"
            problems.add(
                f"{place}: {sign or 'task'}", what, "state kpt_shape: [points, 2 or 3], else rows are ambiguous"
            )
        return 0
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(number) is int for number in shape):
        sound = False
    else:
        sound = 0 < shape[0] <= MAX_KEYPOINTS and shape[1] in {2, 3}
    if not sound:
        problems.add(f"{place}: kpt_shape", shown(shape), "expects [points, 2] or [points, 3]")
        return 0
    return int(shape[0] * shape[1])


def _images(description: dict[Any, Any], split: str, path: Path) -> tuple[Path, list[str]]:
    """Return the images of a split: the folder that all lie in, and their names in it."""
    entry = description.get(split)
    if entry is None:
        there = [name for name in SPLITS if description.get(name)]
        listed = ", ".join(there) or "none of train, val, test"
        raise AnnotationError(f"{path}: no split {split!r}{suggest(split, there)}; there is {listed}")
    entries = entry if isinstance(entry, list) else [entry]
    if not entries or not all(isinstance(part, str) and part and "\0" not in part for part in entries):
        raise AnnotationError(f"{path}: {split}: {shown(entry)}; expects a folder of images, a list file, or several")
    try:
        listing = list_files([_found(part, description.get("path"), path) for part in entries])
    except (DataError, OSError, ValueError) as error:
        raise AnnotationError(f"{path}: {split}: {error}") from error
    return Path(listing.root), list(listing.names)


def _found(entry: str, base: object, path: Path) -> Path:
    """Return where an entry points: from `path` of the file, from the file's own folder, or below that folder."""
    home = path.parent
    # Many exporters write ../train/images beside a folder train.
    inside = Path(*[part for part in Path(entry).parts if part != ".."])
    tries = [home / base / entry] if isinstance(base, str) else []
    tries += [home / entry, home / inside]
    return next((place for place in tries if place.exists()), tries[0])


def _lines(path: Path, place: str, problems: Problems) -> list[str]:
    try:
        return text_of(path).splitlines()
    except AnnotationError as error:
        problems.add(place, str(error), "expects one row of numbers an object")
        return []


def _short(path: Path, home: Path) -> str:
    """Return a path as seen from a folder, to name in messages."""
    absolute, home = path.absolute(), home.absolute()
    return str(absolute.relative_to(home) if absolute.is_relative_to(home) else absolute)


def _within_own_box(fractions: Float[np.ndarray, " N"]) -> bool:
    """Say whether the first four numbers, read as a box, hold all following points: as a box holds its keypoints."""
    points = fractions[4:].reshape(-1, 2)
    points = points[points.any(axis=1)]
    return bool((np.abs(points - fractions[:2]) <= fractions[2:4] / 2 + SLACK).all())


def _is_fraction(value: float | None) -> bool:
    return value is not None and -SLACK <= value <= 1 + SLACK
