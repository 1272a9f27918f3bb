"""`folders:ROOT` -> images with the class of the whole: each folder in ROOT is a class, whatever lies in it."""

import logging
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ssldet.data.image_index import usable_images
from ssldet.data.images import ImageRules, ImageSource
from ssldet.errors import DataError
from ssldet.escapes import shown
from ssldet.source import WrappedSource
from ssldet.types import Sample, Targets

log = logging.getLogger(__name__)

WHOLE = (0.5, 0.5, 1.0, 1.0)
"""The box around a whole image."""


class FolderSource(WrappedSource):
    """Images whose folder names their class; the one object of an image is the whole of it."""

    def __init__(self, images: ImageSource, classes: Sequence[str], labels: Tensor) -> None:
        """Label images.

        Args:
            images: The images.
            classes: Names of the classes.
            labels: Class of each image.
        """
        super().__init__(images)
        self._classes, self._labels = tuple(classes), labels

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the folders."""
        return self._classes

    def __getitem__(self, index: int) -> Sample:
        """Read one image with its class.

        Raises:
            UnreadableError: The file can't be decoded.
        """
        return replace(super().__getitem__(index), targets=self.targets_of(index))

    def draw(self, index: int, generator: torch.Generator) -> Sample:
        """Read one image for training, with its class."""
        return replace(super().draw(index, generator), targets=self.targets_of(index))

    def targets_of(self, index: int) -> Targets:
        """Return the class of an image, and the box around the whole of it."""
        label = self._labels[self.inner(index)]
        return Targets(boxes=torch.tensor([WHOLE]), labels=label.long().view(1))

    def with_classes(self, classes: Sequence[str]) -> "FolderSource":
        """Return the same images with their classes counted in another order.

        Args:
            classes: The same names in the wanted order.
        """
        other, place = copy(self), {name: number for number, name in enumerate(classes)}
        other._classes = tuple(classes)
        other._labels = torch.tensor([place[name] for name in self._classes], dtype=torch.int32)[self._labels.long()]
        return other


def open_folders(rest: str, rules: ImageRules, *, masks: bool = False) -> FolderSource:
    """Open a folder that holds one folder of images per class, as ImageNet lies on disk.

    Args:
        rest: The folder.
        rules: Which images are usable.
        masks: Refused: a class of a whole image has none.

    Raises:
        DataError: There is no such folder, nothing usable in it, or an image that lies in no class.
    """
    spec = f"folders:{shown(rest)}"
    if masks:
        raise DataError(f"{spec}: holds classes of whole images and no masks; use coco:… or panoptic:…")
    if not Path(rest).expanduser().is_dir():
        raise DataError(f"{spec}: no such folder; name one that holds a folder of images for each class")
    usable = usable_images([rest], rules)
    if usable.unread:
        log.warning("%s", usable.unread)
    images = ImageSource(usable, rules)
    if not len(images):
        raise DataError(f"{spec}: 0 of {usable.listed} images usable; {images.skipped[-1].path} is one")
    places = [name.partition("/") for name in usable.names]
    if loose := [name for name, slash, _ in places if not slash]:
        raise DataError(
            f"{spec}: {len(loose)} images lie in no folder of it, such as {shown(loose[0])}, and so have no class; "
            "move them into the folder of their class"
        )
    shown_as = {name: shown(name) for name, _, _ in places}
    classes = sorted(set(shown_as.values()))
    number = {name: label for label, name in enumerate(classes)}
    labels = torch.tensor([number[shown_as[name]] for name, _, _ in places], dtype=torch.int32)
    return FolderSource(images, classes, labels)
