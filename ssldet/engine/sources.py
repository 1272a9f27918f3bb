"""Run -> images: those that it trains on and those that it is measured on, opened, and their batches."""

import logging
from dataclasses import dataclass
from functools import partial

from ssldet.data.holding_out import hold_out
from ssldet.data.loader import evaluation_batches, training_batches
from ssldet.data.mixing import MixedSource
from ssldet.data.shots import take_shots
from ssldet.data.sources import Unlabelled, open_source, take_fraction
from ssldet.data.workers import SteadyLoader
from ssldet.engine.run import Run
from ssldet.ranks import rank, world
from ssldet.source import Source
from ssldet.task import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The images of a run, opened.

    Attributes:
        train: What it trains on: the chosen fraction of `data.train` without what is held out, as its task wants it,
            mixed with `data.unlabelled` where the run names any.
        val: What it is measured on: `data.val` or what is held out, as its task wants it; `None` where nothing is.
    """

    train: Source
    val: Source | None = None


def open_sources(run: Run) -> Sources:
    """Open the images of a run; those to measure on count their classes as the training set does, if they are the same.

    Raises:
        DataError: A specification names nothing usable, or the task can't use what it names.
    """
    data, task = run.data, run.task
    opened = partial(open_source, rules=data.rules, masks=task.needs.masks)
    whole, held = hold_out(opened(data.train), 0.0 if data.val else data.held_out or 0.0)
    part = whole if data.fraction == 1 else take_fraction(whole, data.fraction, data.fraction_seed)
    if data.shots:
        part = take_shots(part, data.shots, data.fraction_seed)
    train = prepared(task, part.drafted(data.draft) if data.draft else part)
    if data.unlabelled:
        further = opened(data.unlabelled, masks=False)
        log.info("%d images with labels, %d without", len(train), len(further))
        train = MixedSource(train, further, data.unlabelled_ratio)
    val = opened(data.val, classes=train.classes) if data.val else held
    return Sources(train=train, val=None if val is None else prepared(task, val, training=False))


def prepared(task: Task, source: Source, *, training: bool = True) -> Source:
    """Return a source as a task wants it: without labels where it needs none, and as `Task.prepare` makes it.

    Args:
        task: The task.
        source: The images as they were opened.
        training: False gives the items of evaluation.

    Raises:
        DataError: The images can't serve this task.
    """
    reads_labels = task.needs.labels or (task.needs.measures_labels and not training)
    seen = source if reads_labels else Unlabelled(source)
    return task.prepare(seen, training=training)


def training_batches_of(run: Run, source: Source, start_step: int) -> SteadyLoader:
    """Return the batches of this rank that are still to come, one per part of a step.

    Args:
        run: The run.
        source: What it trains on.
        start_step: Steps done.
    """
    return training_batches(
        source,
        run.task.views(),
        seed=run.seed,
        batch_size=run.data.batch_size,
        total_steps=run.total_steps(len(source)),
        start_step=start_step,
        rank=rank(),
        world=world(),
        accumulate=run.optim.accumulate,
        workers=run.data.workers,
        canvas_multiple=run.data.canvas_multiple,
        views_per_image=run.data.views_per_image,
    )


def evaluation_batches_of(task: Task, source: Source, *, by_size: bool = False, **how: int) -> SteadyLoader:
    """Return the images of a source as a task's evaluation sees them.

    Args:
        task: The task.
        source: The images.
        by_size: Images of one size come together, see `ssldet.data.loader.evaluation_batches`.
        how: Batch size, workers, seed, rank and world; see there.
    """
    return evaluation_batches(source, task.views(training=False), by_size=by_size, **how)
