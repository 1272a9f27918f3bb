"""images -> their label files: `labels` in the place of `images`, or beside them; every folder is listed once."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from downstream.annotations.numbers import number_in
from downstream.annotations.problems import text_of
from ssldet.data.files import ENDINGS
from ssldet.errors import AnnotationError

ENDING = ".txt"
"""Ending of a label file; it is found in any case, as those of images are."""
ROW = 5
"""Words in the shortest row of a label file."""


def label_file(image: Path) -> Path:
    """Return where the labels of an image usually are: `labels` in the place of the last folder `images`, or beside it.

    Args:
        image: An image; it need not be there.
    """
    parts = list(image.parts)
    places = [place for place, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return Path(*parts).with_suffix(ENDING)


class LabelFiles:
    """Finds the label files of images.

    Attributes:
        files: The label file of each image; the usual name where it is not there.
        contradictions: Label files of one image, beside it and in `labels`, that say something else.
    """

    def __init__(self, images: Sequence[Path]) -> None:
        """Look for them.

        Args:
            images: The images of one split.
        """
        self._listed: dict[Path, list[str]] = {}
        self._labels: dict[Path, dict[str, str]] = {}
        self._folders: set[tuple[Path, Path]] = set()
        self._there: set[Path] = set()
        self.contradictions: list[tuple[Path, Path]] = []
        self.files = [self._file_of(image) for image in images]

    def __contains__(self, file: Path) -> bool:
        """Say whether a label file is there."""
        return file in self._there

    def shared(self) -> int:
        """Return how many images have a label file that another image has too, as their names differ by ending."""
        times = Counter(file for file in self.files if file in self._there)
        return sum(count for count in times.values() if count > 1)

    def strays(self) -> list[Path]:
        """Return the label files that hold rows, and belong to no image that can be decoded, of whichever split."""
        stems: dict[Path, set[str]] = {}
        for folder, home in self._folders:
            images = {_stem(name) for name in self._names(home) if name.lower().endswith(ENDINGS)}
            stems[folder] = stems.get(folder, set()) | images
        left = [
            folder / name
            for folder, taken in sorted(stems.items())
            for stem, name in sorted(self._texts(folder).items())
            if stem not in taken
        ]
        return [file for file in left if _holds_rows(file)]

    def _file_of(self, image: Path) -> Path:
        usual = label_file(image)
        folders = dict.fromkeys((image.parent, usual.parent))
        found = [folder / name for folder in folders if (name := self._texts(folder).get(image.stem))]
        if len(found) > 1 and _rows_in(found[0]) != _rows_in(found[1]):
            self.contradictions.append((found[0], found[1]))
        file = found[0] if found else usual
        self._there.update(found[:1])
        self._folders.add((file.parent, image.parent))
        return file

    def _texts(self, folder: Path) -> dict[str, str]:
        """Return name without ending -> name of the text files of a folder."""
        if folder not in self._labels:
            # Sorted, `.txt` comes after `.TXT` and wins.
            self._labels[folder] = {_stem(name): name for name in self._names(folder) if name.lower().endswith(ENDING)}
        return self._labels[folder]

    def _names(self, folder: Path) -> list[str]:
        if folder not in self._listed:
            try:
                self._listed[folder] = sorted(os.listdir(folder))  # noqa: PTH208  # names alone
            except OSError:
                self._listed[folder] = []
        return self._listed[folder]


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]  # noqa: PTH122  # of text


def _rows_in(file: Path) -> list[list[str]] | None:
    """Return the words of each line that holds any; `None` where there is no text."""
    try:
        return [line.split() for line in text_of(file).splitlines() if line.strip()]
    except AnnotationError:
        return None


def _holds_rows(file: Path) -> bool:
    """Say whether a text file is one of labels: lists of classes or images lie beside them too."""
    words = next(iter(_rows_in(file) or ()), [])
    return len(words) >= ROW and all(number_in(word) is not None for word in words)
