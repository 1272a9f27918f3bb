"""Run -> Source: the images that a run trains on, and those that it is measured on."""

from ssldet.data.sources import open_source
from ssldet.engine.run import Run
from ssldet.types import Source


def training_source(run: Run) -> Source:
    """Open what a run trains on: the chosen fraction of `data.train`, as its task wants it.

    Raises:
        DataError: A specification names nothing usable.
    """
    data = run.data
    source = open_source(
        data.train,
        data.rules,
        masks=run.task.needs.masks,
        fraction=data.fraction,
        fraction_seed=data.fraction_seed,
    )
    return run.task.prepare(source)


def evaluation_source(run: Run, source: Source) -> Source:
    """Open `data.val` as the task wants it, its classes counted as in the training set where both have the same ones.

    Args:
        run: The run.
        source: What it trains on.

    Raises:
        DataError: A specification names nothing usable.
    """
    data = run.data
    val = open_source(
        data.val,
        data.rules,
        masks=run.task.needs.masks,
        classes=source.classes,
    )
    return run.task.prepare(val, training=False)
