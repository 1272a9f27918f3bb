"""several sources -> one: images one after the other, told apart by set and id, trained on and measured together."""

import hashlib
import logging
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ssldet.errors import DataError
from ssldet.source import GroundTruth, Measurable, Source, shuffled
from ssldet.types import Batch, Detections, Sample, Skipped, Targets

log = logging.getLogger(__name__)


def joined(sources: Sequence[Source]) -> Source:
    """Join sources, or return the only one; a metric can be computed on them together if it can on each.

    Panoptic quality is a measure of one set: sources that tell things from stuff are joined for training only.

    Args:
        sources: At least one.

    Raises:
        DataError: They can't be joined; see `ConcatSource`.
    """
    if len(sources) == 1:
        return sources[0]
    measurable = [source for source in sources if isinstance(source, Measurable) and not source.is_thing]
    return MeasurableConcat(measurable) if len(measurable) == len(sources) else ConcatSource(sources)


class ConcatSource(Source):
    """Several sources, one after the other.

    Labelled and unlabelled images together count as unlabelled: an image without labels is not one without objects.
    An epoch shows the images of all sources in one random order. Where one of them has an order of its own, as archives
    do, each keeps its order, and chance decides which of them the next image is from.

    Classes are told apart by name. Where sets number the same classes differently, as COCO and YOLO do, the joined set
    has the ids of the first set that states any, whose order of classes it has as well.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        """Join sources.

        Args:
            sources: At least one.

        Raises:
            DataError: Two sources have classes, and not the same; or one counts as things what the other calls stuff.
        """
        self._sources = list(sources)
        self._ends = list(accumulate(map(len, sources)))
        named = [source.classes for source in sources if source.classes]
        for other in named[1:]:
            if other != named[0]:
                raise DataError(_disagreement(named[0], other))
        self._classes: tuple[str, ...] = named[0] if len(named) == len(sources) else ()
        stated = list(dict.fromkeys(source.category_ids for source in sources if source.category_ids))
        if self._classes and len(stated) > 1:
            log.warning(
                "the sets number their classes differently; those of the first are used, such as %s", stated[0][:5]
            )
        self._category_ids = stated[0] if self._classes and stated else ()
        kinds = list(dict.fromkeys(source.is_thing for source in sources if source.is_thing))
        if self._classes and len(kinds) > 1:
            raise DataError(_things_and_stuff(self._classes, kinds[0], kinds[1]))
        self._is_thing = kinds[0] if self._classes and kinds else ()

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that all sources share; empty if any source has none."""
        return self._classes

    @property
    def fingerprint(self) -> str:
        """Short hash of the fingerprints in order."""
        words = "\n".join(source.fingerprint for source in self._sources) + "\nin their orders" * self.has_own_order
        return hashlib.blake2b(words.encode(), digest_size=6).hexdigest()

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Files of all sources that can't be used."""
        return tuple(entry for source in self._sources for entry in source.skipped)

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Original id of each class in the first source that states any; empty without classes."""
        return self._category_ids

    @property
    def is_thing(self) -> tuple[bool, ...]:
        """Whether each class is one of countable things, as those sources say that say anything."""
        return self._is_thing

    def __len__(self) -> int:
        """Number of usable images of all sources."""
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        """Read one image; its key says which source it is from.

        Raises:
            UnreadableError: The file can't be decoded.
        """
        part, place = self._find(index)
        return self._joined(part, self._sources[part][place])

    def draw(self, index: int, generator: torch.Generator) -> Sample:
        """Read one image for training, as its source draws it."""
        part, place = self._find(index)
        return self._joined(part, self._sources[part].draw(place, generator))

    def path_of(self, index: int) -> Path | None:
        """Return where an image lies, if its source knows."""
        part, place = self._find(index)
        return self._sources[part].path_of(place)

    def name_of(self, index: int) -> str | None:
        """Return what an image is called in messages, if its source knows."""
        part, place = self._find(index)
        return self._sources[part].name_of(place)

    def all_names(self) -> Iterator[str | None]:
        """Yield what each image is called in messages, one source after the other."""
        return chain.from_iterable(source.all_names() for source in self._sources)

    def targets_of(self, index: int) -> Targets | None:
        """Return boxes and labels of an image without reading it, if its source can and all are labelled."""
        part, place = self._find(index)
        return self._sources[part].targets_of(place) if self._classes else None

    def size_of(self, index: int) -> tuple[int, int] | None:
        """Return height and width of an image without reading it, if its source can."""
        part, place = self._find(index)
        return self._sources[part].size_of(place)

    def encoded(self, index: int) -> bytes | None:
        """Return the bytes of an image as they are stored, if its source can."""
        part, place = self._find(index)
        return self._sources[part].encoded(place)

    def with_classes(self, classes: Sequence[str]) -> Source | None:
        """Return the same images with their classes counted in another order, if every source can do that.

        Args:
            classes: The same names in the wanted order.
        """
        changed = [source.with_classes(classes) for source in self._sources if self._classes]
        able = [source for source in changed if source is not None]
        return joined(able) if able and len(able) == len(changed) else None

    @property
    def has_own_order(self) -> bool:
        """Whether one of the sources has an order of its own."""
        return any(source.has_own_order for source in self._sources)

    def order(self, seed: int, epoch: int) -> Int[Tensor, " N"]:
        """Return one random order of all images, or the orders of all sources mixed."""
        if not self.has_own_order:
            return super().order(seed, epoch)
        orders = [source.order(seed, epoch) for source in self._sources]
        return mixed([order.long() + begin for order, begin in zip(orders, self._starts, strict=True)], seed, epoch)

    def part_order(self, indices: Int[np.ndarray, " N"], seed: int, epoch: int) -> Int[Tensor, " N"]:
        """Return the order of some of the images."""
        if not self.has_own_order:
            return super().part_order(indices, seed, epoch)
        part_of, orders = np.searchsorted(self._ends, indices, side="right"), []
        for part, (source, begin) in enumerate(zip(self._sources, self._starts, strict=True)):
            places = np.flatnonzero(part_of == part)
            order = source.part_order(indices[places] - begin, seed, epoch)
            orders.append(torch.from_numpy(places)[order])
        return mixed(orders, seed, epoch)

    @property
    def _starts(self) -> list[int]:
        return [0, *self._ends[:-1]]

    def drafted(self, short: int) -> Source:
        """Return the same images, JPEGs decoded smaller by every source that can.

        Args:
            short: Pixels of the short side.
        """
        return joined([source.drafted(short) for source in self._sources])

    def _joined(self, part: int, sample: Sample) -> Sample:
        sample = replace(sample, key=f"{part}:{sample.key}")
        return sample if self._classes else without_labels(sample)

    def _find(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect_right(self._ends, index)
        return part, index - (self._ends[part - 1] if part else 0)


class MeasurableConcat(ConcatSource, Measurable):
    """Several labelled sources on which one metric is computed.

    Images keep their ids if no two have the same one. Otherwise every id becomes text, the number of its set before it,
    as in `0:17` and `1:17`: two sets may number other images alike.
    """

    def __init__(self, sources: Sequence[Measurable]) -> None:
        """Join sources.

        Args:
            sources: At least one.

        Raises:
            DataError: They have not the same classes.
        """
        super().__init__(sources)
        self._labelled = list(sources)

    @property
    def keys(self) -> tuple[str, ...]:
        """`Sample.key` of each image."""
        return tuple(f"{part}:{key}" for part, source in enumerate(self._labelled) for key in source.keys)

    @property
    def image_ids(self) -> tuple[int, ...] | tuple[str, ...]:
        """Id of each image."""
        parts = zip(self._labelled, self._names, strict=True)
        return tuple(names[key] for source, names in parts for key in source.image_ids)  # type: ignore[return-value]

    def ground_truth(self) -> GroundTruth:
        """Return the annotations in COCO's form, with the ids of the joined set."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for source, names in zip(self._labelled, self._names, strict=True):
            truth, category = source.ground_truth(), dict(zip(source.category_ids, self.category_ids, strict=True))
            images += [row | {"id": names[row["id"]]} for row in truth["images"]]
            annotations += [
                row | {"id": number, "image_id": names[row["image_id"]], "category_id": category[row["category_id"]]}
                for number, row in enumerate(truth["annotations"], start=len(annotations) + 1)
            ]
        categories = [{"id": key, "name": name} for key, name in zip(self.category_ids, self.classes, strict=True)]
        return {"images": images, "categories": categories, "annotations": annotations}

    def to_results(self, detections: Sequence[Detections], batch: Batch) -> list[dict[str, Any]]:
        """Return detections as COCO results with the ids of the joined set.

        Args:
            detections: One entry per image, absolute xyxy in pixels of the image on disk.
            batch: Where they were found.
        """
        rows: list[dict[str, Any]] = []
        for found, key in zip(detections, batch.keys, strict=True):
            part, _, inner = key.partition(":")
            source, names = self._labelled[int(part)], self._names[int(part)]
            category = dict(zip(source.category_ids, self.category_ids, strict=True))
            rows += [
                row | {"image_id": names[row["image_id"]], "category_id": category[row["category_id"]]}
                for row in source.to_results([found], replace(batch, keys=[inner]))
            ]
        return rows

    @cached_property
    def _names(self) -> list[dict[int | str, int | str]]:
        """For each source: the id of an image there -> its id here."""
        ids = [[row["id"] for row in source.ground_truth()["images"]] for source in self._labelled]
        every = [key for part in ids for key in part]
        if len(set(every)) == len(every) and len(set(map(type, every))) == 1:
            return [{key: key for key in part} for part in ids]
        log.warning("images of several sets have the same ids; results call them by set and id, such as 0:%s", every[0])
        return [{key: f"{number}:{key}" for key in part} for number, part in enumerate(ids)]


def mixed(orders: Sequence[Int[Tensor, " _"]], seed: int, epoch: int) -> Int[Tensor, " N"]:
    """Return several orders as one in which each is kept; chance decides whose image is next.

    Args:
        orders: Different numbers, in order.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
    """
    ends = np.cumsum([len(order) for order in orders])
    # A random permutation of all places, of which only matters whose place each is.
    turns = np.searchsorted(ends, shuffled(int(ends[-1]), seed, epoch).numpy(), side="right")
    whole = np.empty(len(turns), dtype=np.int32 if len(turns) < 2**31 else np.int64)
    for number, order in enumerate(orders):
        whole[turns == number] = order.numpy()
    return torch.from_numpy(whole)


def without_labels(sample: Sample) -> Sample:
    """Return a sample without its targets.

    Args:
        sample: One image, labelled or not.
    """
    return replace(sample, targets=Targets.none())


def _disagreement(ours: tuple[str, ...], theirs: tuple[str, ...]) -> str:
    what = f"{len(ours)} and {len(theirs)} classes"
    odd = next(((a, b) for a, b in zip(ours, theirs, strict=False) if a != b), None)
    if odd is not None:
        what += f", {odd[0]!r} against {odd[1]!r}"
    return f"data sets with different classes can't be joined ({what}); take one, or their image folders without labels"


def _things_and_stuff(classes: tuple[str, ...], ours: tuple[bool, ...], theirs: tuple[bool, ...]) -> str:
    name = next(name for name, one, other in zip(classes, ours, theirs, strict=True) if one != other)
    return f"data sets can't be joined: {name!r} is a countable thing in one and stuff in another; take one of them"
