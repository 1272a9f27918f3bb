"""a labelled source -> pairs of an image and a query patch: CoAE's one-shot protocol (Hsieh et al. 2019).

A model is shown one patch of an object and must find all objects of its class. Some classes are never asked for in
training; there, their objects lie in the images as background without a label.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from downstream.annotations.labels import results_of
from ssldet import chance
from ssldet.boxes import to_absolute
from ssldet.errors import DataError, suggest
from ssldet.patches import Patches
from ssldet.source import GroundTruth, Measurable, Source, WrappedSource
from ssldet.types import Batch, Detections, Pixels, Sample, Targets
from ssldet.weights.coco import coco_things

VOC_UNSEEN = ("aeroplane", "cat", "cow", "sheep")
"""The classes of VOC that are held out."""
MATCH = ("match",)
"""The one class of a one-shot detector: what it was shown."""


def coco_unseen(split: int) -> tuple[str, ...]:
    """Return the names of every fourth class of COCO, those that a split holds out.

    Args:
        split: From 1 to 4: the first class that is held out, counted from 1 (`person`).
    """
    return tuple(coco_things().values())[split - 1 :: 4]


class Pairs(WrappedSource):
    """What pairs for training and for evaluation have in common: images around which pairs with the one class are made.

    Attributes:
        seen: Whether each class of the images may be asked for in training, by their label.
    """

    classes = MATCH
    category_ids = ()
    is_thing = ()

    def __init__(self, images: Source, unseen: Sequence[str], patch_size: int, *words: object) -> None:
        """List all objects.

        Args:
            images: Labelled images.
            unseen: Names of the classes that are held out.
            patch_size: Side of the query patches in pixels.
            words: What else the fingerprint depends on.

        Raises:
            DataError: The images have no such classes, or two of one name, or don't say what they hold.
        """
        super().__init__(images)
        names = images.classes
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"two classes are called {twice!r}; one-shot classes are told apart by name, rename one")
        if missing := [name for name in unseen if name not in names]:
            there = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
            raise DataError(
                f"task.unseen: the data has no class {missing[0]!r}{suggest(missing[0], names)}; there are {there}; "
                "name the classes to hold out, such as --set task.unseen=cat,dog"
            )
        self.patch_size = patch_size
        self.seen = tuple(name not in unseen for name in names)
        targets = [_listed(images, index) for index in range(len(images))]
        self._first = np.concatenate([[0], np.cumsum([len(one) for one in targets])])
        self._boxes: Float[np.ndarray, "N 4"] = np.concatenate([one.boxes.numpy() for one in targets])
        self._labels: Int[np.ndarray, " N"] = np.concatenate([one.labels.numpy() for one in targets])
        self._words = words

    @property
    def fingerprint(self) -> str:
        """Short hash of the images and of how pairs are made."""
        said = repr((self.source.fingerprint, self.seen, self.patch_size, self._words))
        return hashlib.blake2b(said.encode(), digest_size=6).hexdigest()

    def targets_of(self, index: int) -> None:
        """Return `None`: what is to be found depends on what is asked for."""

    def with_classes(self, classes: Sequence[str]) -> None:
        """Return `None`: there is one class."""

    def order(self, seed: int, epoch: int) -> Int[Tensor, " N"]:
        """Return a permutation of the pairs, whatever the images do."""
        return Source.order(self, seed, epoch)

    def _labels_of(self, image: int) -> Int[np.ndarray, " K"]:
        """Return which classes an image holds, each once, in order."""
        found: Int[np.ndarray, " K"] = np.unique(self._labels[self._first[image] : self._first[image + 1]])
        return found

    def _objects_of(self, label: int) -> Int[np.ndarray, " K"]:
        """Return the numbers of all objects of a class."""
        return np.flatnonzero(self._labels == label)

    def _pair(self, image: int, label: int, query: int, *, mirrored: bool = False) -> Sample:
        """Read an image with the boxes of one class, and cut the query out of the image that it is in.

        Args:
            image: Number of the image.
            label: The class to be found.
            query: Number of the object that shows it.
            mirrored: Whether the query is mirrored.
        """
        sample = self.source[image]
        owner = int(np.searchsorted(self._first, query, side="right")) - 1
        shown = sample if owner == image else self.source[owner]
        corners = to_absolute(torch.from_numpy(self._boxes[query]), shown.original_size)
        boxes = sample.targets.boxes[sample.targets.labels == label]
        targets = Targets(boxes=boxes, labels=torch.zeros(len(boxes), dtype=torch.int64))
        patch = cut_query(shown.image, corners, self.patch_size)
        patch = patch.flip(-1) if mirrored else patch
        return replace(sample, targets=targets, problem=Patches(pixels=patch[None]))


class TrainingPairs(Pairs):
    """Every image with a seen class; class and query are drawn anew each time.

    A class of the image is drawn with a chance inverse to the number of its objects in the whole set, so rare classes
    are asked for more often; the query is any object of that class in the whole set, mirrored half of the time. A share
    of the pairs may ask for a seen class that the image does not hold: the right answer is nothing then.
    """

    def __init__(
        self, images: Source, unseen: Sequence[str], *, patch_size: int, query_flip: float, absent_share: float = 0.0
    ) -> None:
        """Choose the images.

        Args:
            images: Labelled images.
            unseen: Names of the classes that are held out.
            patch_size: Side of the query patches in pixels.
            query_flip: Chance that a query is mirrored.
            absent_share: Chance to ask for a class that the image does not hold, wherever there is one.

        Raises:
            DataError: The classes do not fit, or no image holds a seen one.
        """
        super().__init__(images, unseen, patch_size, "training", query_flip, absent_share)
        self._query_flip, self._absent_share = query_flip, absent_share
        counts = np.bincount(self._labels, minlength=len(self.seen))
        self._weights = torch.tensor([float(seen) for seen in self.seen]) / torch.from_numpy(counts.clip(1))
        self._pools = {label: self._objects_of(label) for label, seen in enumerate(self.seen) if seen}
        with_seen = [any(self.seen[label] for label in self._labels_of(image)) for image in range(len(images))]
        self._kept = np.flatnonzero(with_seen)
        if not len(self._kept):
            raise DataError("no image holds an object of a class that is not in task.unseen; hold out fewer classes")

    def __len__(self) -> int:
        """Number of images with a seen class."""
        return len(self._kept)

    def __getitem__(self, index: int) -> Sample:
        """Make one pair, always the same.

        Raises:
            UnreadableError: A file can't be decoded.
        """
        return self.draw(index, chance.generator("one-shot pair", index))

    def draw(self, index: int, generator: torch.Generator) -> Sample:
        """Make one pair: an image with the boxes of one of its seen classes, and a query of that class.

        Args:
            index: Number of the image among those with a seen class.
            generator: Source of all chance.

        Raises:
            UnreadableError: The image, or the one that the query is in, can't be decoded.
        """
        image = self.inner(index)
        asked = self._asked(image, generator)
        label = int(asked[torch.multinomial(self._weights[asked], 1, generator=generator)])
        pool = self._pools[label]
        query = int(pool[int(torch.randint(len(pool), (), generator=generator))])
        mirrored = float(torch.rand((), generator=generator)) < self._query_flip
        return self._pair(image, label, query, mirrored=mirrored)

    def inner(self, index: int) -> int:
        """Return the number of an image among all images.

        Raises:
            IndexError: There is no such image.
        """
        return int(self._kept[super().inner(index)])

    def _asked(self, image: int, generator: torch.Generator) -> Int[Tensor, " K"]:
        """Return the labels one of which is asked for: those of the image or, for a share of the pairs, all others."""
        present = torch.from_numpy(self._labels_of(image))
        if not self._absent_share or float(torch.rand((), generator=generator)) >= self._absent_share:
            return present
        absent = sorted({label for label, pool in self._pools.items() if len(pool)} - set(present.tolist()))
        return torch.tensor(absent) if absent else present


class EvaluationPairs(Pairs, Measurable):
    """Every image with every class that occurs in it, in order; with `absent`, with every class of the set.

    The query is an object of that class from the same set: all of them are shuffled by a seed made of the image's key
    and the class's name, and the one at a position is taken. It depends on neither order nor machine.

    Attributes:
        pairs: Image and class of each pair, by number.
    """

    source: Measurable

    def __init__(
        self, images: Measurable, unseen: Sequence[str], *, patch_size: int, position: int = 0, absent: bool = False
    ) -> None:
        """List the pairs.

        Args:
            images: Labelled images.
            unseen: Names of the classes that are held out.
            patch_size: Side of the query patches in pixels.
            position: Which of the shuffled queries to take; counted around their end.
            absent: Ask for classes that are not in the image too, so that finding them there is a mistake.

        Raises:
            DataError: The classes do not fit, or there is no object at all.
        """
        super().__init__(images, unseen, patch_size, "evaluation", position, absent)
        self._position = position
        pools = {label: self._objects_of(label) for label in range(len(self.seen))}
        self._pools = {label: pool for label, pool in pools.items() if len(pool)}
        if not self._pools:
            raise DataError("the data to evaluate on holds no object at all; is it the right split?")
        self.pairs: tuple[tuple[int, int], ...] = tuple(
            (image, int(label))
            for image in range(len(images))
            for label in (self._pools if absent else self._labels_of(image))
        )
        self._keys = tuple(f"{images.keys[image]}:{images.classes[label]}" for image, label in self.pairs)
        self._numbers = {key: number for number, key in enumerate(self._keys)}

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        """Make one pair; where an absent class is asked for, there are no targets.

        Raises:
            UnreadableError: The image, or the one that the query is in, can't be decoded.
        """
        image = self.inner(index)
        return replace(self._pair(image, self.pairs[index][1], self.query_of(index)), key=self._keys[index])

    def draw(self, index: int, generator: torch.Generator) -> Sample:
        """Make one pair; nothing is left to chance."""
        return self[index]

    def inner(self, index: int) -> int:
        """Return the number of the image of a pair.

        Raises:
            IndexError: There is no such pair.
        """
        return self.pairs[super().inner(index)][0]

    @property
    def keys(self) -> tuple[str, ...]:
        """`Sample.key` of each pair: `IMAGE:CLASS`."""
        return self._keys

    @property
    def image_ids(self) -> tuple[int, ...] | tuple[str, ...]:
        """Original id of the image of each pair."""
        return tuple(self.source.image_ids[image] for image, _ in self.pairs)  # type: ignore[return-value]  # of one kind

    def query_of(self, index: int) -> int:
        """Return the number of the object that a pair is asked with, counted through all objects of the set."""
        image, label = self.pairs[index]
        pool = self._pools[label]
        seeded = chance.generator("one-shot query", self.source.keys[image], self.source.classes[label])
        return int(pool[int(torch.randperm(len(pool), generator=seeded)[self._position % len(pool)])])

    def number_of(self, key: str) -> int:
        """Return the number of the pair with a key."""
        return self._numbers[key]

    def ground_truth(self) -> GroundTruth:
        """Return the annotations in COCO's form, with original ids."""
        return self.source.ground_truth()

    def to_results(self, detections: Sequence[Detections], batch: Batch) -> list[dict[str, Any]]:
        """Return detections as COCO results with original ids; each is of the class that was asked for.

        Args:
            detections: One entry per pair, absolute xyxy in pixels of the image on disk.
            batch: Where they were found.
        """
        rows: list[dict[str, Any]] = []
        for found, key in zip(detections, batch.keys, strict=True):
            image, label = self.pairs[self._numbers[key]]
            category = self.source.category_ids[label]
            rows += results_of(found, self.source.image_ids[image], [category] * len(found))
        return rows


def _listed(images: Source, index: int) -> Targets:
    targets = images.targets_of(index)
    if targets is None:
        raise DataError("the images don't say what they hold without being read; use coco:…, voc:… or yolo:…")
    return targets


def cut_query(image: Pixels, box_xyxy: Float[Tensor, "4"], size: int) -> Tensor:
    """Cut an object out as a query: every pixel that its box touches, in the middle of a black square.

    Args:
        image: Pixels.
        box_xyxy: Absolute corners.
        size: Side of the square in pixels.
    """
    height, width = image.shape[1:]
    left, top = (int(side) for side in box_xyxy[:2].floor().clamp(min=0).tolist())
    right, bottom = (int(side) for side in box_xyxy[2:].ceil().tolist())
    left, top = min(left, width - 1), min(top, height - 1)
    return square(image[:, top : max(bottom, top + 1), left : max(right, left + 1)], size)


def square(patch: Pixels, size: int) -> Tensor:
    """Put a patch of any proportions in the middle of a black square and resize that.

    Args:
        patch: Pixels.
        size: Side in pixels.
    """
    height, width = patch.shape[1:]
    longest = max(height, width)
    left, top = (longest - width) // 2, (longest - height) // 2
    padded = functional.pad(patch, [left, top, longest - width - left, longest - height - top])
    resized: Tensor = functional.resize(padded, [size, size], interpolation=InterpolationMode.BILINEAR, antialias=True)
    return resized
