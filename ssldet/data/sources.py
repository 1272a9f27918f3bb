"""data specifications -> Source: images, or `format:…` by the name of a registered format, or several as one."""

import hashlib
import logging
from collections.abc import Sequence
from functools import cached_property
from glob import has_magic
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ssldet import chance, registry
from ssldet.data.files import absolute
from ssldet.data.images import ImageRules, open_images
from ssldet.data.joining import joined, without_labels
from ssldet.data.shard_files import is_there
from ssldet.errors import DataError, SsldetError, suggest
from ssldet.source import Source, WrappedSource
from ssldet.types import Sample

log = logging.getLogger(__name__)

AT_ONCE = 65_536
"""Numbers that are hashed together."""
HUB = "hub"
"""Begins what is no path, but a name on the Hugging Face hub, as in hf:hub:USER/NAME."""


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
        pictures = open_images(images, rules)
        if pictures.usable.unread:
            log.warning("%s", pictures.usable.unread)
        sources.append(pictures)
    order = classes or next((source.classes for source in sources if source.classes), ())
    sources = [_in_order(source, order) for source in sources]
    whole = joined(sources)
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


def absolute_spec(spec: str) -> str:
    """Return a specification that names the same data whatever the working folder is.

    Args:
        spec: A data specification.
    """
    try:
        name, rest = split_spec(spec)
        places = () if name is None else getattr(registry.find("ssldet.sources", name), "path_places", (0,))
    except SsldetError:
        return spec  # opening it says what is wrong
    if name is None:
        return str(absolute(Path(rest)))
    parts = rest.split(":")
    formats = registry.names("ssldet.sources")
    for place in places:
        # A format inside a format, as in coco:ANN.json:tar:SHARDS.
        if parts[place : place + 1] and parts[place] in (*formats, HUB) and parts[place + 1 :]:
            continue
        # What is not there may be no path at all, such as a number in a format of somebody else's.
        if parts[place : place + 1] not in ([], [""]) and is_there(parts[place]):
            parts[place] = str(absolute(Path(parts[place])))
    return ":".join([name, *parts])


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


class PartSource(WrappedSource):
    """Some images of a source, in the given order; in training, in the order that the whole gives to parts of it."""

    def __init__(self, whole: Source, indices: Sequence[int] | Int[np.ndarray, " N"]) -> None:
        """Choose.

        Args:
            whole: All images.
            indices: Which to keep, in order.
        """
        super().__init__(whole)
        # An array, because nothing counts references in it: loader workers share it.
        width = np.int32 if len(whole) < 2**31 else np.int64
        self._indices = np.array(indices, dtype=width).reshape(-1)

    @cached_property
    def fingerprint(self) -> str:
        """Short hash of the whole and of which images were chosen."""
        digest = hashlib.blake2b(f"{self.source.fingerprint}\n(".encode(), digest_size=6)
        for first in range(0, len(self), AT_ONCE):
            numbers = ", ".join(map(str, self._indices[first : first + AT_ONCE].tolist()))
            digest.update(f"{', ' if first else ''}{numbers}".encode())
        digest.update(b",)" if len(self) == 1 else b")")
        return digest.hexdigest()

    def __len__(self) -> int:
        """Number of images in this part."""
        return len(self._indices)

    def inner(self, index: int) -> int:
        """Return the number of an image in the whole.

        Raises:
            IndexError: There is no such image.
        """
        return int(self._indices[super().inner(index)])

    def order(self, seed: int, epoch: int) -> Int[Tensor, " N"]:
        """Return a permutation of this part; one of the whole would have other numbers."""
        return self.source.part_order(self._indices, seed, epoch)

    def part_order(self, indices: Int[np.ndarray, " N"], seed: int, epoch: int) -> Int[Tensor, " N"]:
        """Return the order of a part of this part."""
        return self.source.part_order(self._indices[indices], seed, epoch)


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
        return without_labels(super().__getitem__(index))

    def draw(self, index: int, generator: torch.Generator) -> Sample:
        """Read one image for training, without targets."""
        return without_labels(super().draw(index, generator))

    def targets_of(self, index: int) -> None:
        """Return `None`: nothing is known of what an image holds."""

    def with_classes(self, classes: Sequence[str]) -> None:
        """Return `None`: there are no classes."""


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
