"""The interface of data: what a source of images must have, what it may say, and how one is wrapped in another.

Source          images by number: five members are abstract; all others say "not known" until overridden
Measurable      a labelled source that knows the ids of its format, so that a metric can be computed on it
WrappedSource   another source with something changed; whatever is not overridden comes from the source inside
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ssldet import chance
from ssldet.regular import read_bytes
from ssldet.types import Batch, Detections, Sample, Skipped, Targets

Opener = TypeVar("Opener", bound=Callable[..., Any])

GroundTruth = dict[str, list[dict[str, Any]]]
"""Annotations in COCO's form, with original ids: `images`, `categories` and `annotations`."""


def with_paths(*places: int) -> Callable[[Opener], Opener]:
    """Say which parts of a specification are paths, for the function that opens it; without this, the first one is.

    A run records paths as absolute ones, so that it can be resumed from any folder.

    Args:
        places: Places among the parts between colons behind the format, counted from 0.
    """

    def mark(opener: Opener) -> Opener:
        opener.path_places = places  # type: ignore[attr-defined]
        return opener

    return mark


class Source(ABC):
    """Images by number, labelled or not: what a data specification opens into.

    Reading is random access and free of state, so that any worker may read any image in any order. It must
    pickle. `ssldet.testing.check_source` checks all that is promised here.
    """

    # What every source must have.

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of `Targets.labels`; empty where the images carry no labels."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Short hash of what is in the set and in which order; a run refuses to resume on another one."""

    @property
    @abstractmethod
    def skipped(self) -> tuple[Skipped, ...]:
        """Files that were listed but can't be used, known before training starts."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of usable images."""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Read one image whole, with its labels if there are any; the same index gives the same sample.

        Raises:
            IndexError: There is no such image; negative numbers count as such.
            UnreadableError: The file can't be decoded; the loader replaces it and counts it.
        """

    # What a source may know. The defaults say "not known".

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Original id of each class; empty where there are none."""
        return ()

    @property
    def is_thing(self) -> tuple[bool, ...]:
        """Whether each class is one of countable things; empty where the source does not tell things from stuff."""
        return ()

    def path_of(self, index: int) -> Path | None:
        """Return where an image lies, without reading it; `None` where it is no file of its own.

        Args:
            index: Number of the image, from zero.
        """
        return None

    def name_of(self, index: int) -> str | None:
        """Return what an image is called in messages: its path, or where it lies in a file with others.

        Args:
            index: Number of the image, from zero.
        """
        path = self.path_of(index)
        return None if path is None else str(path)

    def all_names(self) -> Iterator[str | None]:
        """Yield what each image is called, as `name_of` says; a source of many images may know a faster way."""
        return map(self.name_of, range(len(self)))

    def targets_of(self, index: int) -> Targets | None:
        """Return the boxes and labels of an image without reading it; `None` where that is not possible.

        Boxes are cxcywh, as shares of the upright image.

        Args:
            index: Number of the image, from zero.
        """
        return None

    def size_of(self, index: int) -> tuple[int, int] | None:
        """Return height and width in pixels of an image without reading it; `None` where that is not possible.

        Args:
            index: From 0 up to the length, exclusive.
        """
        return None

    def encoded(self, index: int) -> bytes | None:
        """Return the bytes of an image as they are stored, without decoding them; `None` where that is not possible.

        Args:
            index: From 0 up to the length, exclusive.

        Raises:
            OSError: The file can't be read.
        """
        path = self.path_of(index)
        return None if path is None else read_bytes(path)

    def with_classes(self, classes: Sequence[str]) -> "Source | None":
        """Return the same images with their classes counted in another order; `None` where that is not possible.

        Args:
            classes: The same names in the wanted order.
        """
        return None

    def drafted(self, short: int) -> "Source":
        """Return the same images without labels, JPEGs decoded at 1/8, 1/4 or 1/2 of their size where they can be.

        The smallest is taken whose short side has so many pixels. `Sample.original_size` stays that on disk. A source
        that can't do this returns itself.

        Args:
            short: Pixels of the short side.
        """
        return self

    # What a source may do in its own way.

    def draw(self, index: int, generator: torch.Generator) -> Sample:
        """Read one image for training; what the loader calls.

        A source whose items depend on chance overrides this: all chance must come from the generator, which is made
        from (seed, epoch, index) and goes on to the task's views.

        Args:
            index: Number of the image, from zero.
            generator: Where chance comes from.

        Raises:
            UnreadableError: The image can't be used; the loader notes it and takes another in its place.
        """
        return self[index]

    @property
    def has_own_order(self) -> bool:
        """Whether the images read best in the order that the source gives; it is kept where sets are joined."""
        return False

    def order(self, seed: int, epoch: int) -> Int[Tensor, " N"]:
        """Return in which order an epoch of training shows the images: a permutation, a function of seed and epoch.

        Args:
            seed: Seed of the run.
            epoch: Number of the epoch, from 0.
        """
        return shuffled(len(self), seed, epoch)

    def part_order(self, indices: Int[np.ndarray, " N"], seed: int, epoch: int) -> Int[Tensor, " N"]:
        """Return in which order an epoch of training shows some of the images.

        A source that reads best in an order of its own overrides this together with `order` and `has_own_order`.

        Args:
            indices: Numbers of the images.
            seed: Seed of the run.
            epoch: Number of the epoch, from 0.

        Returns:
            A permutation of the places in `indices`.
        """
        return shuffled(len(indices), seed, epoch)


class Measurable(Source):
    """A labelled source on which a metric can be computed: it knows the ids of its images and classes."""

    @property
    @abstractmethod
    def keys(self) -> tuple[str, ...]:
        """`Sample.key` of each image."""

    @property
    @abstractmethod
    def image_ids(self) -> tuple[int, ...] | tuple[str, ...]:
        """Original id of each image."""

    @abstractmethod
    def ground_truth(self) -> GroundTruth:
        """Return the annotations in COCO's form, with original ids."""

    @abstractmethod
    def to_results(self, detections: Sequence[Detections], batch: Batch) -> list[dict[str, Any]]:
        """Return detections as COCO results with original ids: boxes are absolute xywh, masks compressed run lengths.

        Args:
            detections: One entry per image, absolute xyxy in pixels of the image on disk.
            batch: Where they were found.
        """


class WrappedSource(Source):
    """A source around another one: image for image the same, until a subclass overrides something.

    A subclass with other images than the source inside overrides `inner`, `__len__`, `fingerprint` and `order`.

    Attributes:
        source: The source inside.
    """

    def __init__(self, source: Source) -> None:
        """Wrap.

        Args:
            source: The source inside.
        """
        self.source = source

    def inner(self, index: int) -> int:
        """Return the number, in the source inside, of the image that stands at an index.

        Args:
            index: Of the wrapper, from 0 up to its length, exclusive.

        Raises:
            IndexError: There is no such image.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        return index

    @property
    def classes(self) -> tuple[str, ...]:
        """Those of the source inside."""
        return self.source.classes

    @property
    def fingerprint(self) -> str:
        """That of the source inside."""
        return self.source.fingerprint

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Those of the source inside."""
        return self.source.skipped

    def __len__(self) -> int:
        """Number of images of the source inside."""
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        """Read one image.

        Raises:
            UnreadableError: The file can't be decoded.
        """
        return self.source[self.inner(index)]

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Those of the source inside."""
        return self.source.category_ids

    @property
    def is_thing(self) -> tuple[bool, ...]:
        """That of the source inside."""
        return self.source.is_thing

    def path_of(self, index: int) -> Path | None:
        """Return where an image lies, if the source inside knows."""
        return self.source.path_of(self.inner(index))

    def name_of(self, index: int) -> str | None:
        """Return what an image is called in messages, if the source inside knows."""
        return self.source.name_of(self.inner(index))

    def targets_of(self, index: int) -> Targets | None:
        """Return the boxes and labels of an image without reading it, if the source inside can."""
        return self.source.targets_of(self.inner(index))

    def size_of(self, index: int) -> tuple[int, int] | None:
        """Return height and width of an image without reading it, if the source inside can."""
        return self.source.size_of(self.inner(index))

    def encoded(self, index: int) -> bytes | None:
        """Return the bytes of an image as they are stored, if the source inside can."""
        return self.source.encoded(self.inner(index))

    def with_classes(self, classes: Sequence[str]) -> "WrappedSource | None":
        """Return the same wrapper around the source with its classes in another order, if the source inside can.

        Args:
            classes: The same names in the wanted order.
        """
        source = self.source.with_classes(classes)
        if source is None:
            return None
        other = copy(self)
        other.source = source
        return other

    def drafted(self, short: int) -> "WrappedSource":
        """Return the same wrapper around the source with its JPEGs decoded smaller, if the source inside can.

        Args:
            short: Pixels of the short side.
        """
        other = copy(self)
        other.source = self.source.drafted(short)
        return other

    def draw(self, index: int, generator: torch.Generator) -> Sample:
        """Read one image for training, as the source inside draws it."""
        return self.source.draw(self.inner(index), generator)

    @property
    def has_own_order(self) -> bool:
        """Whether the source inside reads best in its own order."""
        return self.source.has_own_order

    def order(self, seed: int, epoch: int) -> Int[Tensor, " N"]:
        """Return the order of the source inside."""
        return self.source.order(seed, epoch)

    def part_order(self, indices: Int[np.ndarray, " N"], seed: int, epoch: int) -> Int[Tensor, " N"]:
        """Return the order of the source inside."""
        return self.source.part_order(indices, seed, epoch)


def shuffled(count: int, seed: int, epoch: int) -> Int[Tensor, " N"]:
    """Return an order of images that has nothing to do with where they lie.

    Args:
        count: Number of images.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
    """
    # The same numbers in half of the memory.
    width = torch.int32 if count < 2**31 else torch.int64
    return torch.randperm(count, generator=chance.generator(seed, "order", epoch), dtype=width)


def objects_of(source: Source) -> list[int]:
    """Return the number of labelled objects of each image; no image is read.

    Args:
        source: Images with or without labels.
    """
    return [0 if targets is None else len(targets.boxes) for targets in map(source.targets_of, range(len(source)))]
