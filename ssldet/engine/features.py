"""Run, objective -> frozen backbones whose levels are kept on disk, and what that takes, said before it is taken."""

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ssldet.chance import generator
from ssldet.data.collate import collate
from ssldet.data.problems import batches, gathers
from ssldet.engine.run import Run
from ssldet.engine.sources import Sources
from ssldet.errors import ConfigError, SetupError, UnreadableError
from ssldet.escapes import counted, shown
from ssldet.home import cache_folder
from ssldet.nn.backbones import Backbone
from ssldet.nn.backbones.kept import DiskStore, KeptLevels
from ssldet.task import Objective
from ssldet.types import Batch, Gather

log = logging.getLogger(__name__)

GIGABYTE = 10**9
LOOKED_AT = 4
"""Images from which the size of all is reckoned."""


@dataclass(frozen=True, kw_only=True)
class KeptFeatures:
    """The features of a frozen backbone on disk.

    Attributes:
        store: Where they are.
        each: Bytes for one view of an image, with its patches, reckoned from a few images.
        views: Views of all images.
    """

    store: DiskStore
    each: int
    views: int

    def __str__(self) -> str:
        """Say where they are, what they take, and what is free."""
        words = (
            f"about {self.each / 1e6:.3g} MB for each of {counted(self.views, 'view')}, {self.total / GIGABYTE:.3g} GB "
            f"in all; up to {self.store.limit / GIGABYTE:.3g} GB is kept in {shown(self.store.folder)}, which holds "
            f"{self.store.used / GIGABYTE:.3g} GB; {self.free / GIGABYTE:.3g} GB are free there"
        )
        if self.total > self.store.limit:
            words += (
                f"; what does not fit is computed each time: set data.feature_cache={self.total / GIGABYTE * 1.1:.2g}"
            )
        return words

    @property
    def total(self) -> int:
        """Bytes for all views."""
        return self.each * self.views

    @property
    def free(self) -> int:
        """Free bytes on their disk."""
        return shutil.disk_usage(_existing(self.store.folder)).free

    def account(self) -> str:
        """Say what came of them."""
        looked_up = max(1, self.store.found + self.store.computed)
        return (
            f"features of the backbone: {self.store.found / looked_up:.0%} of {looked_up:,} were read, the rest "
            f"computed; {self.store.used / GIGABYTE:.3g} GB in {shown(self.store.folder)}"
        )

    def require_space(self) -> None:
        """Let a run start only if the disk can hold what it will keep.

        Raises:
            SetupError: It can't.
        """
        more = min(self.total, self.store.limit) - self.store.used
        if more > self.free:
            raise SetupError(
                f"data.feature_cache: {more / GIGABYTE:.3g} GB are needed in {shown(self.store.folder)} and "
                f"{self.free / GIGABYTE:.3g} GB free; set SSLDET_HOME to a folder on a larger disk, or a smaller limit"
            )


def keep_features(run: Run, objective: Objective, sources: Sources, devices: int) -> KeptFeatures | None:
    """Have backbones that rest keep their levels on disk, if the run says so; nothing is written yet.

    Args:
        run: The configuration.
        objective: What learns, with the sections that rest frozen.
        sources: The images of the run.
        devices: Processes that share the allowed space.

    Raises:
        ConfigError: No backbone rests.
        SetupError: The disk is too small.
    """
    if not run.data.feature_cache:
        return None
    resting = [part for part in objective.modules() if isinstance(part, Backbone) and _rests(part)]
    if not resting:
        raise ConfigError("data.feature_cache: no backbone of this detector is frozen as a whole; leave it at 0")
    each = _bytes_of_a_view(run, objective, sources, resting)
    store = DiskStore(cache_folder() / "features", int(run.data.feature_cache * GIGABYTE) // devices)
    for backbone in resting:
        backbone.kept = KeptLevels(store)
    views = len(sources.train) * run.data.views_per_image + (0 if sources.val is None else len(sources.val))
    kept = KeptFeatures(store=store, each=each, views=views)
    kept.require_space()
    return kept


@contextmanager
def telling(features: KeptFeatures | None) -> Iterator[None]:
    """Log what features will take, and in the end what came of them.

    Args:
        features: What `keep_features` returned.
    """
    if features is not None:
        log.info("features of the backbone: %s", features)
    yield
    if features is not None:
        log.info("%s", features.account())


class _Scale:
    """Holds nothing, and notes how much it was given."""

    def __init__(self) -> None:
        self.bytes = 0

    def read(self, network: str, image: str) -> None:
        """Find nothing."""

    def write(self, network: str, image: str, levels: Sequence[Tensor]) -> None:
        """Note the size."""
        self.bytes += sum(level.nbytes for level in levels)


@torch.no_grad()
def _bytes_of_a_view(run: Run, objective: Objective, sources: Sources, resting: list[Backbone]) -> int:
    """Return what the levels of an image and of its patches take, by looking at a few."""
    scale, detector, seen = _Scale(), objective.detector, 0
    training = detector.training
    for backbone in resting:
        backbone.kept = KeptLevels(scale)
    detector.eval()
    for batch in _few(run, sources):
        _look(objective, batch)
        seen += 1
    detector.train(training)
    return scale.bytes // max(1, seen)


def _few(run: Run, sources: Sources) -> Iterator[Batch]:
    views, source = run.task.views(), sources.train
    for index in range(0, len(source), max(1, len(source) // LOOKED_AT)):
        draw = generator(run.seed, "views", 0, index)
        try:
            yield collate([views(source.draw(index, draw), draw)], run.data.canvas_multiple)
        except UnreadableError:
            continue  # training skips this file and counts it


def _look(objective: Objective, batch: Batch) -> None:
    """Show the images of a batch and of its problem to the detector, as a step of training does."""
    detector = objective.detector
    detector(detector.normalise(batch.images, batch.padding), batch.padding)
    if batch.problem is None:
        return
    for name, how in gathers(batch.problem).items():
        value = getattr(batch.problem, name)
        if how is Gather.PIXELS and value is not None:
            for pixels in value if isinstance(value, tuple) else (value,):
                objective.look_at(detector.normalise(pixels.flatten(0, -4)))
    for part in batches(batch.problem):
        _look(objective, part)


def _rests(backbone: Backbone) -> bool:
    return not any(parameter.requires_grad for parameter in backbone.parameters())


def _existing(path: Path) -> Path:
    """Return a folder, or the nearest above it that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.is_dir())
