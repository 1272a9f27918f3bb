"""data specifications -> Source: images, or `format:…` by the name of a registered format, or several as one."""

import hashlib
import logging
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from glob import has_magic
from itertools import accumulate
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from ssldet import chance, registry
from ssldet.data.images import ImageRules, open_images
from ssldet.errors import DataError, suggest
from ssldet.source import Source, WrappedSource
from ssldet.types import Sample, Skipped, Targets

log = logging.getLogger(__name__)


def open_source(
    specs: Sequence[str],
    rules: ImageRules,
    *,
    masks: bool = False,
    classes: Sequence[str] = (),
    fraction: float = 1.0,
    fraction_seed: int = 0,
) -> Source:
    """Open what some specifications name.

    Args:
        specs: `format:rest` where `format` is registered under `ssldet.sources`; anything else names images, see
            `files.list_files`. All images together make one source, and several sources are joined in order.
        rules: Which images are usable.
        masks: Give every target its mask.
        classes: Count the classes in this order; the source must have the same ones.
        fraction: Share of the images to take, see `take_fraction`.
        fraction_seed: Which ones.

    Raises:
        DataError: A specification names nothing usable, the classes disagree, or there are no masks.
    """
    sources: list[Source] = []
    images: list[str] = []
    for spec in specs:
        name, rest = split_spec(spec)
        if name is None:
            images.append(rest)
        else:
            opened = registry.find("ssldet.sources", name)
            sources.append(opened(rest, rules, masks=masks))
    if images or not sources:
        sources.append(open_images(images, rules))
    order = classes or next((source.classes for source in sources if source.classes), ())
    sources = [_in_order(source, order) for source in sources]
    whole = sources[0] if len(sources) == 1 else ConcatSource(sources)
    return whole if fraction == 1 else take_fraction(whole, fraction, fraction_seed)


def _in_order(source: Source, classes: Sequence[str]) -> Source:
    """Return a source with its classes counted in this order, if it has the same ones and can."""
    if source.classes == tuple(classes) or sorted(source.classes) != sorted(classes):
        return source
    changed = source.with_classes(classes)
    if changed is None:
        return source
    log.info("the classes of one set are counted in the order of the other: %s", ", ".join(classes))
    return changed


def split_spec(spec: str) -> tuple[str | None, str]:
    """Return format and rest; no format for images. What exists on disk is a path, whatever it looks like.

    Args:
        spec: A data specification.

    Raises:
        DataError: It looks like a format, and is none.
    """
    name, colon, rest = spec.partition(":")
    if not colon or Path(spec).expanduser().exists():
        return None, spec
    known = registry.names("ssldet.sources")
    if name in known:
        return name, rest
    if suggest(name, known) or (len(name) > 1 and name.isidentifier() and not has_magic(spec)):
        formats = ", ".join(known) or "none"
        raise DataError(f"{spec}: no such path, and no data format {name!r}{suggest(name, known)}; formats: {formats}")
    return None, spec


class ConcatSource(Source):
    """Several sources, one after the other.

    Labelled and unlabelled images together count as unlabelled: an image without labels is not one without objects.
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
            log.warning("the sets number their classes differently; those of the first are used: %s", stated[0])
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
        words = "\n".join(source.fingerprint for source in self._sources)
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

    def targets_of(self, index: int) -> Targets | None:
        """Return boxes and labels of an image without reading it, if its source can and all are labelled."""
        part, place = self._find(index)
        return self._sources[part].targets_of(place) if self._classes else None

    def with_classes(self, classes: Sequence[str]) -> "ConcatSource | None":
        """Return the same images with their classes counted in another order, if every source can do that.

        Args:
            classes: The same names in the wanted order.
        """
        changed = [source.with_classes(classes) for source in self._sources if self._classes]
        able = [source for source in changed if source is not None]
        return ConcatSource(able) if able and len(able) == len(changed) else None

    def _joined(self, part: int, sample: Sample) -> Sample:
        sample = replace(sample, key=f"{part}:{sample.key}")
        return sample if self._classes else _without_labels(sample)

    def _find(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect_right(self._ends, index)
        return part, index - (self._ends[part - 1] if part else 0)


class PartSource(WrappedSource):
    """Some images of a source, in the given order; in training their order is drawn anew, whatever the whole does."""

    def __init__(self, whole: Source, indices: Sequence[int]) -> None:
        """Choose.

        Args:
            whole: All images.
            indices: Which to keep, in order.
        """
        super().__init__(whole)
        self._indices = tuple(indices)

    @property
    def fingerprint(self) -> str:
        """Short hash of the whole and of which images were chosen."""
        words = f"{self.source.fingerprint}\n{self._indices}"
        return hashlib.blake2b(words.encode(), digest_size=6).hexdigest()

    def __len__(self) -> int:
        """Number of images in this part."""
        return len(self._indices)

    def inner(self, index: int) -> int:
        """Return the number of an image in the whole.

        Raises:
            IndexError: There is no such image.
        """
        return self._indices[super().inner(index)]

    def order(self, seed: int, epoch: int) -> Int[Tensor, " N"]:
        """Return a permutation of this part; one of the whole would have other numbers."""
        return Source.order(self, seed, epoch)


class Unlabelled(WrappedSource):
    """The images of a source without their labels: what a task sees that reads none."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Empty."""
        return ()

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Empty."""
        return ()

    @property
    def is_thing(self) -> tuple[bool, ...]:
        """Empty."""
        return ()

    def __getitem__(self, index: int) -> Sample:
        """Read one image, without targets.

        Raises:
            UnreadableError: The file can't be decoded.
        """
        return _without_labels(super().__getitem__(index))

    def draw(self, index: int, generator: torch.Generator) -> Sample:
        """Read one image for training, without targets."""
        return _without_labels(super().draw(index, generator))

    def targets_of(self, index: int) -> None:
        """Return `None`: nothing is known of what an image holds."""

    def with_classes(self, classes: Sequence[str]) -> None:
        """Return `None`: there are no classes."""


def _without_labels(sample: Sample) -> Sample:
    return replace(sample, targets=Targets(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64)))


def take_fraction(whole: Source, fraction: float, seed: int) -> PartSource:
    """Return a share of the images, at least one; with one seed a smaller share lies within every larger one.

    Args:
        whole: All images.
        fraction: Share to take, between 0 and 1.
        seed: Which ones: images are shuffled once, and the first of them taken.
    """
    places = chosen_places(len(whole), fraction, seed)
    log.info("%d of %d images taken (fraction %g, seed %d)", len(places), len(whole), fraction, seed)
    return PartSource(whole, places)


def chosen_places(count: int, fraction: float, seed: int) -> list[int]:
    """Return which of some images make up a share of them, in order; see `take_fraction`.

    Args:
        count: Number of all images.
        fraction: Share to take, between 0 and 1.
        seed: Which ones.
    """
    shuffled = torch.randperm(count, generator=chance.generator(seed, "fraction"))
    return sorted(shuffled[: max(1, round(fraction * count))].tolist())


def _disagreement(ours: tuple[str, ...], theirs: tuple[str, ...]) -> str:
    what = f"{len(ours)} and {len(theirs)} classes"
    odd = next(((a, b) for a, b in zip(ours, theirs, strict=False) if a != b), None)
    if odd is not None:
        what += f", {odd[0]!r} against {odd[1]!r}"
    return f"data sets with different classes can't be joined ({what}); take one, or their image folders without labels"


def _things_and_stuff(classes: tuple[str, ...], ours: tuple[bool, ...], theirs: tuple[bool, ...]) -> str:
    name = next(name for name, one, other in zip(classes, ours, theirs, strict=True) if one != other)
    return f"data sets can't be joined: {name!r} is a countable thing in one and stuff in another; take one of them"
