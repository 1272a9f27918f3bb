"""Source, views -> batches: one endless stream of images in which every draw is a function of its place.

Position p of the stream lies in epoch p // n and shows image order(seed, epoch)[p % n], as the source orders them; step
k takes the positions from k·B to (k+1)·B. Epochs have no edge and no image is dropped. What a sample looks like depends
on (seed, epoch, image) alone, so the stream is the same for any number of workers, ranks and accumulated parts, and it
continues from any step without saved state.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch.utils.data import Dataset

from ssldet import chance
from ssldet.data.collate import collate
from ssldet.data.files import tally
from ssldet.data.sharing import ReadingRecord
from ssldet.data.workers import ResumableSampler, SteadyLoader, WorkerResult
from ssldet.errors import ConfigError, DataError, SsldetError, UnreadableError
from ssldet.escapes import shown
from ssldet.source import Source
from ssldet.types import Sample, Skipped, Views

ATTEMPTS = 50
"""Images tried for one place of the stream. With half of all files bad, one place in 10¹⁵ finds none."""


def require_equal_shares(batch_size: int, devices: int, parts: int, group: int = 1) -> None:
    """Let a batch pass that all devices can share.

    Args:
        batch_size: Images of one optimiser step.
        devices: Devices that share them.
        parts: Parts into which each device splits its share.
        group: Images that stay together.

    Raises:
        ConfigError: They can't.
    """
    shares = devices * parts * group
    if batch_size % shares:
        among = [f"among {devices} devices"] * (devices > 1) + [f"into {parts} parts"] * (parts > 1)
        groups = f" in groups of {group}" if group > 1 else ""
        raise ConfigError(
            f"data.batch_size: {batch_size} images can't be split equally {' and '.join(among)}".rstrip()
            + f"{groups}; choose a multiple of {shares}"
        )


def training_batches(
    source: Source,
    views: Views,
    *,
    seed: int,
    batch_size: int,
    total_steps: int,
    start_step: int = 0,
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
    workers: int = 0,
    canvas_multiple: int = 1,
    views_per_image: int = 0,
) -> SteadyLoader:
    """Return the batches of one rank, `accumulate` of them per step.

    An image that can't be read is replaced by another one, the same on every run, and named in `Batch.skipped`.

    Args:
        source: Images.
        views: What makes a sample out of an image; all of its chance comes from the generator it is given.
        seed: Seed of the run.
        batch_size: Images of one step, over all ranks and parts together.
        total_steps: Where the stream ends.
        start_step: Where it starts.
        rank: Number of this process.
        world: Number of processes.
        accumulate: Parts of one step.
        workers: Reading processes; zero reads in this process.
        canvas_multiple: As in `DataConfig`.
        views_per_image: Likewise.

    Raises:
        ConfigError: The batch can't be split equally over ranks and parts.
        DataError: The source is empty, or (while iterating) nothing of it can be read any more.
    """
    require_equal_shares(batch_size, world, accumulate)
    if not len(source):
        raise DataError("the training set holds no image; check data.train")
    places = Stream(
        source=source,
        seed=seed,
        batch_size=batch_size,
        steps=range(start_step, total_steps),
        rank=rank,
        world=world,
        accumulate=accumulate,
    )
    reading = ReadingRecord(workers)
    reader = Reader(source, views, reading, seed=seed, replace_bad=True, repeats=views_per_image)
    return SteadyLoader(reader, places, partial(_gather, canvas_multiple), reading, workers, reader.name)


def evaluation_batches(
    source: Source,
    views: Views,
    *,
    batch_size: int,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    seed: int = 0,
    by_size: bool = False,
) -> SteadyLoader:
    """Return every image of this rank once; over all ranks, every image exactly once.

    An image that can't be read is left out, since another one in its place would count twice, and is named in
    `Batch.skipped`.

    Args:
        source: Images.
        views: What makes a sample out of an image.
        batch_size: Images of one batch; the last one may be smaller.
        workers: Reading processes; zero reads in this process.
        rank: Number of this process.
        world: Number of processes.
        seed: Seed of what chance the views may use.
        by_size: Put images of one size into one batch, as far as their source knows sizes, because those that lie on
            one canvas without padding are looked at together. Otherwise, the images come in order.
    """
    places = Once(
        count=len(source), batch_size=batch_size, rank=rank, world=world, size_of=source.size_of if by_size else None
    )
    reading = ReadingRecord(workers)
    reader = Reader(source, views, reading, seed=seed, replace_bad=False)
    return SteadyLoader(reader, places, partial(_gather, 1), reading, workers, reader.name)


@dataclass(kw_only=True, eq=False)
class Stream(ResumableSampler):
    """Places (epoch, image) of each batch of one rank, for ever, cut to a range of steps.

    A step is split into parts first and each part over ranks, so that the parts of a step, each with its ranks side by
    side, are the whole batch in order.
    """

    source: Source
    seed: int
    batch_size: int
    steps: range
    rank: int
    world: int
    accumulate: int
    start: int = 0

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.steps) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield the places of one batch after the other, from `start` on."""
        size = self.batch_size // (self.world * self.accumulate)
        known, images = -1, torch.empty(0)
        for number in range(self.start, len(self)):
            step, part = self.steps[number // self.accumulate], number % self.accumulate
            first = step * self.batch_size + (part * self.world + self.rank) * size
            places = []
            for position in range(first, first + size):
                epoch, place = divmod(position, len(self.source))
                if epoch != known:
                    known, images = epoch, self.source.order(self.seed, epoch)
                places.append((epoch, int(images[place])))
            yield places


@dataclass(kw_only=True, eq=False)
class Once(ResumableSampler):
    """Places of each batch of one rank, where every image is shown once; the epoch is always 0.

    With sizes, batches of one size come first; what is left over of all sizes is gathered in order of size.
    """

    count: int
    batch_size: int
    rank: int
    world: int
    size_of: Callable[[int], tuple[int, int] | None] | None = None
    start: int = 0

    def __len__(self) -> int:
        """Number of batches."""
        return math.ceil(len(range(self.rank, self.count, self.world)) / self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield the places of one batch after the other, from `start` on."""
        mine = self._ordered
        for first in range(self.start * self.batch_size, len(mine), self.batch_size):
            yield [(0, index) for index in mine[first : first + self.batch_size]]

    @cached_property
    def _ordered(self) -> Sequence[int]:
        """Images of this rank in the order in which they are shown."""
        mine = range(self.rank, self.count, self.world)
        if self.size_of is None or self.batch_size == 1:
            return mine
        alike: dict[tuple[int, int], list[int]] = {}
        for index in mine:
            alike.setdefault(self.size_of(index) or (0, 0), []).append(index)
        if len(alike) == 1:
            return mine
        whole, rest = [], []
        for _, images in sorted(alike.items()):
            full = len(images) - len(images) % self.batch_size
            whole += images[:full]
            rest += images[full:]
        return whole + rest


class Reader(Dataset[Sample | Skipped | SsldetError]):
    """Place -> sample, in a worker: read, make views with the place's own generator, go round bad files."""

    def __init__(
        self,
        source: Source,
        views: Views,
        reading: ReadingRecord,
        *,
        seed: int,
        replace_bad: bool,
        repeats: int = 0,
    ) -> None:
        """Take what every worker needs a copy of.

        Args:
            source: Images.
            views: What makes a sample out of an image.
            reading: Where to note which image is being read.
            seed: Seed of the run.
            replace_bad: Read another image in place of a bad one, instead of only naming it.
            repeats: Epochs after which the views of an image come again; 0 draws new ones for ever.
        """
        self.source, self.views, self.reading = source, views, reading
        self.seed, self.replace_bad, self.repeats = seed, replace_bad, repeats

    def __getitem__(self, place: tuple[int, int]) -> Sample | Skipped | SsldetError:
        """Return the sample of a place; what can't be had is returned, not raised, to leave the worker whole."""
        epoch, index = place
        epoch = epoch % self.repeats if self.repeats else epoch
        skipped: list[Skipped] = []
        for attempt in range(ATTEMPTS if self.replace_bad else 1):
            number = index
            if attempt:
                number = chance.seed_of(self.seed, "substitute", epoch, index, attempt) % len(self.source)
            generator = chance.generator(self.seed, "views", epoch, index, *([attempt] if attempt else []))
            try:
                sample = self._read(number, generator)
                return replace(sample, skipped=tuple(skipped)) if skipped else sample
            except UnreadableError as error:
                skipped.append(Skipped(path=error.path, reason=error.reason))
            except SsldetError as error:
                return error
        if not self.replace_bad:
            return skipped[0]
        return DataError(f"none of {ATTEMPTS} images tried in a row can be read ({tally(skipped)}); is the data there?")

    def _read(self, index: int, generator: torch.Generator) -> Sample:
        if index in self.reading.left_out:
            raise UnreadableError(self.name(index), "kills-its-reader")
        self.reading.begin(index)
        try:
            return self.views(self.source.draw(index, generator), generator)
        except SsldetError:
            raise
        except Exception as error:
            error.add_note(f"while reading and making views of image {index}: {self.name(index)}")
            raise
        finally:
            self.reading.end()

    def name(self, index: int) -> str:
        """Say which file an image is, without reading it, where its source can tell."""
        name = self.source.name_of(index)
        return f"image {index}" if name is None else shown(name)


def _gather(canvas_multiple: int, items: list[Sample | Skipped | SsldetError]) -> WorkerResult:
    for item in items:
        if isinstance(item, SsldetError):
            return item
    lost = tuple(item for item in items if isinstance(item, Skipped))
    samples = [item for item in items if isinstance(item, Sample)]
    if not samples:
        return lost
    batch = collate(samples, canvas_multiple)
    return replace(batch, skipped=lost + batch.skipped) if lost else batch
