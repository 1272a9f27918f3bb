"""data specifications -> Source: images, or `format:…` by the name of a registered format, or several as one."""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from glob import has_magic
from itertools import accumulate
from pathlib import Path

import torch

from ssldet import registry
from ssldet.data.images import open_images
from ssldet.errors import DataError, suggest
from ssldet.types import Sample, Skipped, Source, Targets


def open_source(specs: Sequence[str], *, min_side: int, max_pixels: int) -> Source:
    """Open what some specifications name.

    Args:
        specs: `format:rest` where `format` is registered under `ssldet.sources`; anything else names images, see
            `files.list_files`. All images together make one source, and several sources are joined in order.
        min_side: Shortest usable image side in pixels.
        max_pixels: Largest usable image in pixels.

    Raises:
        DataError: A specification names nothing usable, or the classes of several disagree.
    """
    sources: list[Source] = []
    images: list[str] = []
    for spec in specs:
        name, rest = _split(spec)
        if name is None:
            images.append(rest)
        else:
            opened = registry.find("ssldet.sources", name)
            sources.append(opened(rest, min_side=min_side, max_pixels=max_pixels))
    if images or not sources:
        sources.append(open_images(images, min_side=min_side, max_pixels=max_pixels))
    return sources[0] if len(sources) == 1 else ConcatSource(sources)


def _split(spec: str) -> tuple[str | None, str]:
    """Return format and rest; no format for images. What exists on disk is a path, whatever it looks like."""
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

    def _find(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect_right(self._ends, index)
        return part, index - (self._ends[part - 1] if part else 0)


def _disagreement(ours: tuple[str, ...], theirs: tuple[str, ...]) -> str:
    what = f"{len(ours)} and {len(theirs)} classes"
    odd = next(((a, b) for a, b in zip(ours, theirs, strict=False) if a != b), None)
    if odd is not None:
        what += f", {odd[0]!r} against {odd[1]!r}"
    return f"data sets with different classes can't be joined ({what}); take one, or their image folders without labels"
