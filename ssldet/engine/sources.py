"""Run -> Source: the images that a run trains on, and those that it is measured on."""

from ssldet.data.sources import open_source
from ssldet.engine.run import Run
from ssldet.types import Source


def training_source(run: Run) -> Source:
    """Open what a run trains on: the chosen fraction of `data.train`.

    Raises:
        DataError: A specification names nothing usable.
    """
    data = run.data
    return open_source(
        data.train,
        min_side=data.min_side,
        max_pixels=data.max_pixels,
        masks=run.task.reads_masks,
        fraction=data.fraction,
        fraction_seed=data.fraction_seed,
    )


def evaluation_source(run: Run, source: Source) -> Source:
    """Open `data.val`, with its classes counted as in the training set where both have the same ones.

    Args:
        run: The run.
        source: What it trains on.

    Raises:
        DataError: A specification names nothing usable.
    """
    data = run.data
    return open_source(
        data.val,
        min_side=data.min_side,
        max_pixels=data.max_pixels,
        masks=run.task.reads_masks,
        classes=source.classes,
    )
