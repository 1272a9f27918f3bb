"""VOC's folders -> which XML file describes which image: the official layout, without lists of splits, or flat."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from downstream.annotations.labels import stays_inside
from downstream.annotations.problems import SHOWN, Problems, shown, text_of
from ssldet.data.files import ENDINGS, beside
from ssldet.errors import AnnotationError, suggest

XML = "*.[xX][mM][lL]"
"""Glob of the annotation files: the case of the ending makes no difference, as in those of images."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the files of one split lie.

    Attributes:
        root: The folder that the user named; messages name files as seen from it.
        annotations: The folder of the XML files.
        images: The folder of the images.
        stems: Name of each image: its path below `images` without suffix, and below `annotations` that of its XML.
        files: Name -> XML file, of all that are there.
        others: XML files of the other splits, which share the classes.
        listed: Whether lists say which images there are; else all of the folder are meant.
    """

    root: Path
    annotations: Path
    images: Path
    stems: Sequence[str]
    files: Mapping[str, Path]
    others: Sequence[Path]
    listed: bool

    def place_of(self, stem: str) -> str:
        """Return how messages name the XML file of an image."""
        return self.files[stem].relative_to(self.root).as_posix()


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
        every = {_stem(path, annotations): path for path in _xml_below(annotations)}
        stems = _listed(lists, split, every, problems)
        others = [path for stem, path in every.items() if stem not in set(stems)]
        return Layout(
            root=root,
            annotations=annotations,
            images=root / "JPEGImages",
            stems=stems,
            files=every,
            others=others,
            listed=True,
        )
    if annotations.is_dir() and not split:
        folder, images = annotations, root / "JPEGImages"
    else:
        folder = images = root / split
    found = _xml_below(folder) if folder == annotations else sorted(folder.glob(XML))
    files = {_stem(path, folder): path for path in found}
    if not files:
        raise AnnotationError(_nothing_found(root, split))
    others = [path for path in root.glob(f"*/{XML}") if path.parent != folder] if split else []
    return Layout(
        root=root, annotations=folder, images=images, stems=list(files), files=files, others=others, listed=False
    )


def lines_of(path: Path, problems: Problems) -> list[str]:
    """Return the stripped lines of a list; a list that can't be read goes to the problems."""
    try:
        return [line.strip() for line in text_of(path).splitlines()]
    except AnnotationError as error:
        problems.add(str(path.relative_to(problems.path)), str(error), "expects one name a line")
        return []


class ImageFinder:
    """Finds the image of an XML file: of its name, with any ending that is decoded, in any case.

    Attributes:
        files: All images that are there.
        contradicted: How many XML files were found to have an image of their name and to state another one.
    """

    def __init__(self, images: Path) -> None:
        """List the images.

        Args:
            images: The folder of the images; it need not exist where no image is opened.
        """
        self._of_stem: dict[str, list[str]] = {}
        self.contradicted = 0
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
        self.contradicted += named in self.files
        if len(present) > 1:
            remedy = "are images of one name; state one of them in <filename>"
            problems.add(where, " and ".join(map(shown, sorted(present))), remedy)
        return present[0] if present else named or f"{stem}.jpg"


def _beside(stem: str, stated: str) -> str | None:
    """Return the file that `<filename>` names, in the folder of the XML file; tools write other folders before it."""
    name = PurePosixPath(stated.replace("\\", "/")).name
    file = (PurePosixPath(stem).parent / name).as_posix()
    return file if name and stays_inside(file) else None


def _listed(lists: Path, split: str, every: Mapping[str, Path], problems: Problems) -> list[str]:
    """Return the image names of the split that have an XML file, each once, in order; others go to the problems."""
    known = sorted(path.stem for path in lists.glob("*.txt"))
    stems: dict[str, str] = {}
    unknown: dict[str, str] = {}
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
                if stem not in every:
                    unknown.setdefault(stem, where)
    for number, (stem, where) in enumerate(unknown.items()):
        # A look for near misses is slow; the first few show the pattern.
        hint = _meant(stem, every) if number < SHOWN else ""
        remedy = "expects the name of an XML file below Annotations, without ending; restore the file or drop the line"
        problems.add(where, f"{shown(stem)} has no XML file{hint}", remedy)
        del stems[stem]
    if not stems and not len(problems):
        problems.add("ImageSets/Main", f"the split {split or 'trainval'} is empty", "expects one image name a line")
    return list(stems)


def _meant(listed: str, every: Mapping[str, Path]) -> str:
    """Say which name a list probably means: tools write endings, folders and flags of classes beside it."""
    bare = PurePosixPath(listed.split()[0])
    tried = (bare.as_posix(), bare.with_suffix("").as_posix(), bare.name, bare.stem)
    meant = next((stem for stem in tried if stem in every), None)
    return f" (did you mean {meant!r}?)" if meant else suggest(listed, every)


def _xml_below(folder: Path) -> list[Path]:
    return sorted(folder.rglob(XML))


def _stem(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _nothing_found(root: Path, split: str) -> str:
    """Say which layout lies in a folder, and what to type for it."""
    if not root.is_dir():
        return f"{root}: no such folder{beside(root)}; give voc:ROOT:SPLIT"
    inner = sorted({path.parent for path in root.glob("*/Annotations")})
    flat = sorted({path.parent.name for path in root.glob(f"*/{XML}")} - {"Annotations"})
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
