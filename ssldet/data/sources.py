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

from ssldet import chance, registry
from ssldet.data.images import ImageRules, open_images
from ssldet.errors import DataError, suggest
from ssldet.types import Sample, Skipped, Source, Targets

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
    """Return a source with its classes counted in this order, if it has the same ones."""
    if source.classes == tuple(classes) or sorted(source.classes) != sorted(classes):
        return source
    with_classes = getattr(source, "with_classes", None)
    if with_classes is None:
        return source
    log.info("the classes of one set are counted in the order of the other: %s", ", ".join(classes))
    changed: Source = with_classes(classes)
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


class ConcatSource:
    """Several sources, one after the other; a `Source`.

    Labelled and unlabelled images together count as unlabelled: an image without labels is not one without objects.

    Attributes:
        classes: The classes that all sources share; empty if any source has none.
        fingerprint: Short hash of the fingerprints in order.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        """Join sources.

        Args:
            sources: At least one.

        Raises:
            DataError: Two sources have classes, and not the same.
        """
        self._sources = list(sources)
        self._ends = list(accumulate(map(len, sources)))
        named = [source.classes for source in sources if source.classes]
        for other in named[1:]:
            if other != named[0]:
                raise DataError(_disagreement(named[0], other))
        self.classes: tuple[str, ...] = named[0] if len(named) == len(sources) else ()
        words = "\n".join(source.fingerprint for source in sources)
        self.fingerprint = hashlib.blake2b(words.encode(), digest_size=6).hexdigest()

    @property
    def is_thing(self) -> tuple[bool, ...]:
        """Whether a class is one of countable things, by label; empty where no source says so."""
        return next((told for source in self._sources if (told := tuple(getattr(source, "is_thing", ())))), ())

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Files of all sources that can't be used."""
        return tuple(entry for source in self._sources for entry in source.skipped)

    def __len__(self) -> int:
        """Number of usable images of all sources."""
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        """Read one image; its key says which source it is from.

        Raises:
            UnreadableError: The file can't be decoded.
        """
        part, place = self._find(index)
        sample = self._sources[part][place]
        targets = sample.targets
        if not self.classes:
            targets = Targets(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
        return replace(sample, key=f"{part}:{sample.key}", targets=targets)

    def path_of(self, index: int) -> str | Path:
        """Return where an image lies, if its source can tell."""
        part, place = self._find(index)
        path_of = getattr(self._sources[part], "path_of", None)
        path: str | Path = path_of(place) if path_of else f"image {place} of source {part}"
        return path

    def targets_of(self, index: int) -> Targets:
        """Return boxes and labels of an image without reading it, where its source can tell."""
        part, place = self._find(index)
        targets: Targets = self._sources[part].targets_of(place)  # type: ignore[attr-defined]
        return targets

    def _find(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect_right(self._ends, index)
        return part, index - (self._ends[part - 1] if part else 0)


class PartSource:
    """Some images of a source; a `Source` that keeps their order.

    Attributes:
        fingerprint: Short hash of the whole and of which images were chosen.
    """

    def __init__(self, whole: Source, indices: Sequence[int]) -> None:
        """Choose.

        Args:
            whole: All images.
            indices: Which to keep, in order.
        """
        self._whole, self._indices = whole, tuple(indices)
        words = f"{whole.fingerprint}\n{self._indices}"
        self.fingerprint = hashlib.blake2b(words.encode(), digest_size=6).hexdigest()

    @property
    def classes(self) -> tuple[str, ...]:
        """Those of the whole, whether they occur in this part or not."""
        return self._whole.classes

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Original id of each class."""
        return tuple(getattr(self._whole, "category_ids", ()))

    @property
    def is_thing(self) -> tuple[bool, ...]:
        """Whether a class is one of countable things, by label; empty where the whole does not say so."""
        return tuple(getattr(self._whole, "is_thing", ()))

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Those of the whole."""
        return self._whole.skipped

    def __len__(self) -> int:
        """Number of images in this part."""
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        """Read one image.

        Raises:
            UnreadableError: The file can't be decoded.
        """
        return self._whole[self._number(index)]

    def path_of(self, index: int) -> str | Path:
        """Return where an image lies, if its source can tell."""
        number = self._number(index)
        path_of = getattr(self._whole, "path_of", None)
        path: str | Path = path_of(number) if path_of else f"image {number}"
        return path

    def targets_of(self, index: int) -> Targets:
        """Return boxes and labels of an image without reading it, where the whole can tell."""
        targets: Targets = self._whole.targets_of(self._number(index))  # type: ignore[attr-defined]
        return targets

    def _number(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._indices[index]


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
