"""voc:ROOT:SPLIT -> LabelledImages: Pascal VOC's folder of XML files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree.ElementTree import ParseError
from xml.parsers.expat.errors import XML_ERROR_INVALID_TOKEN, codes

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import XMLParser

from downstream.annotations.labelled import Annotated, LabelledImages
from downstream.annotations.labels import Labels, Rows
from downstream.annotations.numbers import LARGEST, number_in
from downstream.annotations.problems import Problems, shown
from downstream.annotations.voc_layout import ImageFinder, Layout, find_layout, lines_of
from ssldet.data.images import ImageRules
from ssldet.documents import binary_kind
from ssldet.errors import AnnotationError, DataError, suggest
from ssldet.regular import read_bytes
from ssldet.source import with_paths

CLASSES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant "
    "sheep sofa train tvmonitor"
)
"""The twenty classes of the challenge, in its order."""
CLASS_LIST = "classes.txt"
"""File beside `Annotations` in which users may name the classes and their order, one a line."""
FLAGS = {"0": False, "1": True, "false": False, "true": True, "no": False, "yes": True}
"""Words of `<difficult>` in lower case -> whether the object is."""
UNSPECIFIED = "unspecified"
"""What some tools write into `<difficult>` as they do into `<pose>`."""
INVALID_TOKEN = codes[XML_ERROR_INVALID_TOKEN]
"""What the parser calls bytes that are no text of the file's encoding, among others."""
MISREAD = "are they those of images of another size?"
"""What to ask where many boxes leave their image."""
DEPTH = 32
"""Deepest nesting that is read; VOC needs five levels."""


@with_paths(0)
def open_voc(rest: str, rules: ImageRules, *, masks: bool = False) -> LabelledImages:
    """Open a VOC folder with its images.

    Args:
        rest: `ROOT` or `ROOT:SPLIT`. ROOT holds `Annotations`, `ImageSets/Main` and `JPEGImages`; SPLIT is a list in
            `ImageSets/Main`, several joined by `+`, by default `trainval`. For other layouts see `find_layout`.
        rules: Which images are usable.
        masks: Refused, since the format has boxes only.

    Raises:
        DataError: Masks were asked for.
        AnnotationError: The folder is not sound VOC, or images are missing; all problems at once.
    """
    if masks:
        raise DataError(f"voc:{rest}: voc carries no masks; give coco:… or yolo:… with polygons")
    problems = Problems(Path(rest.partition(":")[0]))
    return LabelledImages(gather_voc(rest, problems), problems, rules)


def read_voc(rest: str) -> Labels:
    """Read a VOC split without opening any image.

    VOC counts pixels from 1 and includes the last one; boxes here start at 0 and end after the last pixel, so
    (xmin, ymin, xmax, ymax) becomes xywh (xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1). Classes are those of
    `ROOT/classes.txt`, one a line, where there is such a file; without it they are the twenty of the challenge, in its
    order, if no other name occurs in the folder, else all names of the folder sorted: every split of one folder
    numbers them alike. Difficult objects are trained on, as most detectors do, and ignored by every metric: neither
    finding nor missing one counts.

    Args:
        rest: `ROOT` or `ROOT:SPLIT`.

    Raises:
        AnnotationError: With file and line of each problem.
    """
    problems = Problems(Path(rest.partition(":")[0]))
    annotated = gather_voc(rest, problems)
    problems.stop()
    return annotated.labels


def gather_voc(rest: str, problems: Problems) -> Annotated:
    """Read what is sound of a VOC split.

    Args:
        rest: `ROOT` or `ROOT:SPLIT`.
        problems: Takes what is wrong.

    Raises:
        AnnotationError: There is no such folder or split, or nothing in it.
    """
    root_text, _, split = rest.partition(":")
    root = Path(root_text)
    layout = find_layout(root, split, problems)
    if not layout.stems:
        problems.stop()
    rows = Rows()
    places = [layout.place_of(stem) for stem in layout.stems]
    files = [_read(layout.files[stem], place, problems) for stem, place in zip(layout.stems, places, strict=True)]
    listed = _listed_classes(root, problems)
    classes = listed or _found_classes(layout, files)
    index = {name: label for label, name in enumerate(classes)}
    for image, file in enumerate(files):
        _add_objects(rows, image, file, index, problems)
    finder = ImageFinder(layout.images)
    names = [
        finder.find(stem, file.name, place, problems)
        for stem, file, place in zip(layout.stems, files, places, strict=True)
    ]
    if finder.contradicted:
        rows.notes["XML files state another image of the folder than that of their name, which was read"] = (
            finder.contradicted
        )
    if not layout.listed and (bare := len(finder.files - set(names))):
        rows.notes["images without an XML file, not read"] = bare
    labels = rows.labels(
        classes=classes,
        category_ids=range(1, len(classes) + 1),
        image_ids=layout.stems,
        files=names,
        sizes=[file.size for file in files],
    )
    return Annotated(labels=labels, folder=layout.images, origin=root, places=places, misread=MISREAD)


def _add_objects(rows: Rows, image: int, file: "_File", index: dict[str, int], problems: Problems) -> None:
    """Take in the objects of one image; classes that are not listed go to the problems."""
    for item in file.objects:
        if item.name not in index:
            remedy = f"is not in {CLASS_LIST}{suggest(item.name, index)}; correct the name or add it there"
            problems.add(item.where, f"<name> {shown(item.name)}", remedy)
            continue
        if item.difficult:
            rows.count("difficult objects, trained on and ignored by metrics")
        if item.unspecified:
            rows.count("objects whose <difficult> is Unspecified, taken as not difficult")
        left, top, width, height = item.box
        if min(left, top) < 0:
            rows.count("boxes that begin before pixel 1, where VOC begins")
        rows.add(image, index[item.name], item.box, item.where, area=width * height, difficult=item.difficult)


@dataclass(frozen=True, slots=True)
class _Object:
    name: str
    where: str
    box: Sequence[float]
    difficult: bool
    unspecified: bool


@dataclass(slots=True)
class _File:
    size: tuple[int, int] = (0, 0)
    name: str | None = None
    objects: list[_Object] = field(default_factory=list)


@dataclass(slots=True)
class _Node:
    """An XML element with the line it starts on."""

    tag: str
    line: int
    text: str = ""
    children: list["_Node"] = field(default_factory=list)

    def child(self, tag: str) -> "_Node | None":
        return next((child for child in self.children if child.tag == tag), None)

    def word(self, tag: str) -> str | None:
        node = self.child(tag)
        return node.text.strip() if node else None


class _Collector:
    """What the parser calls: builds nodes and refuses to go deep."""

    def __init__(self) -> None:
        self.parser = XMLParser(target=self, forbid_dtd=True)
        self.open: list[_Node] = [_Node("", 0)]

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if len(self.open) > DEPTH:
            raise AnnotationError(f"line {self.parser.parser.CurrentLineNumber}: nested more than {DEPTH} levels deep")
        node = _Node(tag, self.parser.parser.CurrentLineNumber)
        self.open[-1].children.append(node)
        self.open.append(node)

    def end(self, tag: str) -> None:
        self.open.pop()

    def data(self, text: str) -> None:
        self.open[-1].text += text


def _tree(path: Path) -> _Node:
    """Parse one file.

    Raises:
        AnnotationError: Where and why it can't be parsed.
    """
    collector = _Collector()
    try:
        content = read_bytes(path)
    except OSError as error:
        raise AnnotationError(f"can't be read ({error.strerror})") from error
    if not content.strip():
        raise AnnotationError("line 1: not XML (the file is empty)")
    if kind := binary_kind(content):
        raise AnnotationError(kind)
    try:
        collector.parser.feed(content)
        collector.parser.close()
    except ParseError as error:
        where = f"line {error.position[0]}"
        if error.code == INVALID_TOKEN and not _is_utf8(content):
            raise AnnotationError(f"{where}: not UTF-8, and names no other encoding; save it as UTF-8") from error
        raise AnnotationError(f"{where}: not XML ({error})") from error
    except DefusedXmlException as error:
        raise AnnotationError("holds a document type or entity, which could fetch files or fill the memory") from error
    except (ValueError, LookupError) as error:
        raise AnnotationError(f"not readable text ({error}); save it as UTF-8") from error
    return collector.open[0].children[0]


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _read(path: Path, name: str, problems: Problems) -> _File:
    """Read one XML file, which messages call by this name; what is wrong with it goes to the problems."""
    file = _File()
    try:
        root = _tree(path)
    except AnnotationError as error:
        problems.add(name, str(error), "expects a plain VOC annotation file; repair it or take it out of the split")
        return file
    if root.tag != "annotation":
        problems.add(f"{name}:{root.line}", f"<{root.tag}>", "expects <annotation>")
    file.name = root.word("filename")
    size = root.child("size")
    if size is not None:
        height, width = (number_in(size.word(side) or "0") for side in ("height", "width"))
        if (
            height is None
            or width is None
            or not all(0 <= side < LARGEST and side % 1 == 0 for side in (height, width))
        ):
            problems.add(f"{name}:{size.line}", "<size>", "expects width and height in pixels, or leave it out")
        else:
            file.size = (int(height), int(width)) if height and width else (0, 0)
    for node in root.children:
        if node.tag != "object":
            _require_no_object(node, name, problems)
        elif (item := _object(node, name, problems)) is not None:
            file.objects.append(item)
    return file


def _require_no_object(node: _Node, file: str, problems: Problems) -> None:
    """Note an object that stands deeper than VOC's do, or is spelled otherwise: it would be missed in silence."""
    if node.tag.lower() == "object":
        problems.add(f"{file}:{node.line}", f"<{node.tag}>", "is spelled <object> in VOC's files; rename it")
    elif (inner := _object_below(node)) is not None:
        remedy = "stands directly below <annotation> in VOC's files; move it there"
        problems.add(f"{file}:{inner.line}", f"<{inner.tag}> below <{node.tag}>", remedy)


def _object_below(node: _Node) -> _Node | None:
    """Return the first object at any depth below a node."""
    for child in node.children:
        if child.tag.lower() == "object":
            return child
        if (found := _object_below(child)) is not None:
            return found
    return None


def _object(node: _Node, file: str, problems: Problems) -> _Object | None:
    before = len(problems)
    tags = [child.tag for child in node.children]
    for tag in ("name", "bndbox", "difficult"):
        if tags.count(tag) > 1:
            problems.add(f"{file}:{node.line}", f"<object> with {tags.count(tag)} <{tag}>", "keep one of them")
    name = node.word("name")
    if not name:
        problems.add(f"{file}:{node.line}", "<object> without <name>", "expects the name of the class")
    difficult = (node.word("difficult") or "0").lower()
    if difficult not in {*FLAGS, UNSPECIFIED}:
        problems.add(f"{file}:{node.line}", f"<difficult> {shown(node.word('difficult'))}", "expects 0 or 1")
    corners = node.child("bndbox")
    if corners is None:
        problems.add(f"{file}:{node.line}", "<object> without <bndbox>", "expects xmin, ymin, xmax, ymax")
        return None
    numbers = []
    for side in ("xmin", "ymin", "xmax", "ymax"):
        word = corners.word(side)
        number = None if word is None else number_in(word)
        if number is None or abs(number) > LARGEST:
            found = f"<{side}> {shown(word)}" if word is not None else f"<bndbox> without <{side}>"
            problems.add(f"{file}:{corners.line}", found, "expects a finite number of pixels")
        numbers.append(number or 0.0)
    left, top, right, bottom = numbers
    if len(problems) == before and (right < left - 1 or bottom < top - 1):
        problems.add(
            f"{file}:{corners.line}",
            f"<bndbox> ({left:g}, {top:g}, {right:g}, {bottom:g})",
            "xmax and ymax can't lie before xmin and ymin; are they width and height?",
        )
    if len(problems) > before or name is None:
        return None
    return _Object(
        name,
        f"{file}:{node.line}",
        (left - 1, top - 1, right - left + 1, bottom - top + 1),
        FLAGS.get(difficult, False),
        difficult == UNSPECIFIED,
    )


def _listed_classes(root: Path, problems: Problems) -> tuple[str, ...]:
    """Return the class names that the user listed, in the listed order; empty where there is no list."""
    path = root / CLASS_LIST
    if not path.exists():
        return ()
    names: dict[str, int] = {}
    for number, name in enumerate(lines_of(path, problems), start=1):
        if name in names:
            problems.add(f"{CLASS_LIST}:{number}", f"{name} stands in line {names[name]} too", "list every class once")
        elif name:
            names[name] = number
    if not names:
        problems.add(CLASS_LIST, "no class", "list one class a line, or take the file away")
    return tuple(names)


def _found_classes(layout: Layout, files: list[_File]) -> tuple[str, ...]:
    """Return the class names that every split of this folder shares."""
    names = {item.name for file in files for item in file.objects}
    ignored = Problems(layout.root)
    for path in layout.others:
        names |= {item.name for item in _read(path, path.name, ignored).objects}
    standard = tuple(CLASSES.split())
    return standard if names <= set(standard) else tuple(sorted(names))
