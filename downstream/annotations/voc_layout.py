"""VOC's folders -> which XML file describes which image: the official layout, without lists of splits, or flat."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from downstream.annotations.labels import stays_inside
from downstream.annotations.problems import Problems, shown, text_of
from ssldet.data.files import ENDINGS
from ssldet.errors import AnnotationError, suggest


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the files of one split lie.

    Attributes:
        root: The folder that the user named; messages name files as seen from it.
        annotations: The folder of the XML files.
        images: The folder of the images.
        stems: Name of each image: its path below `images` without suffix, and below `annotations` that of its XML.
        others: XML files of the other splits, which share the classes.
    """

    root: Path
    annotations: Path
    images: Path
    stems: Sequence[str]
    others: Sequence[Path]

    def xml_of(self, stem: str) -> Path:
        """Return the XML file of an image."""
        return self.annotations / f"{stem}.xml"

    def place_of(self, stem: str) -> str:
        """Return how messages name the XML file of an image."""
        return self.xml_of(stem).relative_to(self.root).as_posix()


def find_layout(root: Path, split: str, problems: Problems) -> Layout:
    """Return where the files of a split lie.

    There may be `Annotations`, `JPEGImages` and lists in `ImageSets/Main`; or no lists, and then every XML file counts;
    or XML files beside their images, in ROOT itself or, for a split, in a folder of its name.

    Args:
        root: The folder that the user named.
        split: Lists joined by `+`, or the folder of a flat layout; empty for `trainval`, or for all where no lists are.
        problems: Takes what is wrong with the lists.

    Raises:
        AnnotationError: There is no such split, or no XML file where one could be.
    """
    annotations, lists = root / "Annotations", root / "ImageSets" / "Main"
    if annotations.is_dir() and lists.is_dir():
        stems = _listed(lists, split, problems)
        every = {_stem(path, annotations): path for path in _xml_below(annotations)}
        others = [path for stem, path in every.items() if stem not in set(stems)]
        return Layout(root=root, annotations=annotations, images=root / "JPEGImages", stems=stems, others=others)
    if annotations.is_dir() and not split:
        folder, images = annotations, root / "JPEGImages"
    else:
        folder = images = root / split
    found = list(_xml_below(folder)) if folder == annotations else sorted(folder.glob("*.xml"))
    if not found:
        raise AnnotationError(_nothing_found(root, split))
    others = [path for path in root.glob("*/*.xml") if path.parent != folder] if split else []
    return Layout(
        root=root, annotations=folder, images=images, stems=[_stem(path, folder) for path in found], others=others
    )


def lines_of(path: Path, problems: Problems) -> list[str]:
    """Return the stripped lines of a list; a list that can't be read goes to the problems."""
    try:
        return [line.strip() for line in text_of(path).splitlines()]
    except AnnotationError as error:
        problems.add(str(path.relative_to(problems.path)), str(error), "expects one name a line")
        return []


class ImageFinder:
    """Finds the image of an XML file: of its name, with any ending that is decoded, in any case."""

    def __init__(self, images: Path) -> None:
        """List the images.

        Args:
            images: The folder of the images; it need not exist where no image is opened.
        """
        self._of_stem: dict[str, list[str]] = {}
        self.files: set[str] = set()
        for folder, _, names in os.walk(images, followlinks=True):
            above = Path(folder).relative_to(images)
            for name in names:
                if name.lower().endswith(ENDINGS):
                    file = (above / name).as_posix()
                    self.files.add(file)
                    self._of_stem.setdefault(os.path.splitext(file)[0], []).append(file)  # noqa: PTH122  # of text

    def find(self, stem: str, stated: str | None, where: str, problems: Problems) -> str:
        """Return the image of an XML file, relative to the folder of images.

        Args:
            stem: Path of the XML file below its folder, without suffix.
            stated: The `<filename>` of the XML file, where it has one.
            where: How messages name the XML file.
            problems: Takes an ambiguity.

        Returns:
            The file; where there is none, the stated or the usual name, which is then reported as missing.
        """
        named = _beside(stem, stated) if stated else None
        present = self._of_stem.get(stem, [])
        if named in self.files and (not present or named in present):
            return str(named)
        if len(present) > 1:
            remedy = "are images of one name; state one of them in <filename>"
            problems.add(where, " and ".join(map(shown, sorted(present))), remedy)
        return present[0] if present else named or f"{stem}.jpg"


def _beside(stem: str, stated: str) -> str | None:
    """Return the file that `<filename>` names, in the folder of the XML file; tools write other folders before it."""
    name = PurePosixPath(stated.replace("\\", "/")).name
    file = (PurePosixPath(stem).parent / name).as_posix()
    return file if name and stays_inside(file) else None


def _listed(lists: Path, split: str, problems: Problems) -> list[str]:
    """Return the image names of the split, each once, in order."""
    known = sorted(path.stem for path in lists.glob("*.txt"))
    stems: dict[str, str] = {}
    for name in (split or "trainval").split("+"):
        if name not in known:
            there = ", ".join(known[:12]) + (", …" if len(known) > 12 else "") if known else "none"
            raise AnnotationError(f"{lists}: no split {name!r}{suggest(name, known)}; there are {there}")
        for number, line in enumerate(lines_of(lists / f"{name}.txt", problems), start=1):
            stem = line.replace("\\", "/")
            if not stem:
                continue
            where = f"ImageSets/Main/{name}.txt:{number}"
            if not stays_inside(stem):
                problems.add(where, shown(stem), "must be the name of an image below JPEGImages, without suffix")
            elif stems.get(stem) == name:
                problems.add(where, f"{stem} is listed twice", "list every image once")
            else:
                stems.setdefault(stem, name)
    if not stems and not len(problems):
        problems.add("ImageSets/Main", f"the split {split or 'trainval'} is empty", "expects one image name a line")
    return list(stems)


def _xml_below(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.rglob("*.xml"))


def _stem(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _nothing_found(root: Path, split: str) -> str:
    """Say which layout lies in a folder, and what to type for it."""
    inner = sorted({path.parent for path in root.glob("*/Annotations")})
    flat = sorted({path.parent.name for path in root.glob("*/*.xml")} - {"Annotations"})
    if inner:
        remedy = f"did you mean voc:{inner[0]}?"
    elif flat and not split:
        remedy = f"XML files lie beside images in {', '.join(flat[:12])}; give voc:{root}:{flat[0]}"
    elif split and (root / "Annotations").is_dir():
        return f"{root}: no ImageSets/Main in it, hence no split {shown(split)}; give voc:{root} for all of it"
    elif split:
        remedy = f"give voc:ROOT:SPLIT{suggest(split, flat)}" + (f"; there are {', '.join(flat[:12])}" if flat else "")
        return f"{root}: no folders Annotations and ImageSets/Main in it, and no XML files in {split}; {remedy}"
    else:
        remedy = "give voc:ROOT:SPLIT"
    return f"{root}: no folders Annotations and ImageSets/Main in it; {remedy}"
