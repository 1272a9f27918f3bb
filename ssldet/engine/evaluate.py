"""Objective, images -> what it finds, and named numbers: every rank detects on its share, rank 0 scores."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch

from ssldet.data.collate import of_one_size
from ssldet.data.files import nothing_readable
from ssldet.data.problems import without_pixels
from ssldet.data.workers import SteadyLoader
from ssldet.engine.run import HEADLINE, Precision, Run
from ssldet.engine.sources import evaluation_batches_of
from ssldet.engine.symptoms import BoxVariance
from ssldet.errors import ConfigError, DataError, suggest
from ssldet.ranks import rank, together, world
from ssldet.source import Measurable, Source
from ssldet.task import Evaluator, Objective, SharesRows
from ssldet.types import Answer, Batch, Detections

Answered = TypeVar("Answered", bound=Answer)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context in which a detector computes; criterion and boxes leave it again for 32 bits."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def at_rest(objective: Objective, device: torch.device, precision: Precision) -> Iterator[None]:
    """Evaluation mode without autograd, in the precision of training; the mode comes back afterwards."""
    training = objective.training
    objective.eval()
    try:
        # Not inference mode: a tensor that a module keeps from here would be barred from autograd for ever.
        with torch.no_grad(), autocast(device, precision):
            yield
    finally:
        objective.train(training)


def answers(
    objective: Objective,
    batches: Iterable[Batch],
    device: torch.device,
    precision: Precision,
    answer: Callable[[Batch], Sequence[Answer]] | None = None,
) -> Iterator[tuple[Batch, list[Answer]]]:
    """Yield every batch with the answer to each of its images, both on the CPU: how all is measured and predicted.

    Args:
        objective: The model inside its task, on the device.
        batches: Images on the CPU.
        device: Where to compute.
        precision: That of training.
        answer: What answers a batch; `None` takes the objective's own.
    """
    for batch in batches:
        with at_rest(objective, device, precision):
            found = unpadded(answer or objective.answer, batch.to(device, non_blocking=True))
        yield batch, [one.to("cpu") for one in found]


def evaluate(
    run: Run,
    objective: Objective,
    source: Source,
    device: torch.device,
    stop: Callable[[], bool] = lambda: False,
    variance: BoxVariance | None = None,
    explain: Callable[[Evaluator], None] | None = None,
) -> dict[str, Any] | None:
    """Measure an objective on a source; every rank must call this at the same step.

    Args:
        run: Says the task, the seed, the batch size and the precision.
        objective: The model inside its task, on the device.
        source: What to measure on.
        device: Where to compute.
        stop: Asked on every rank before every batch; true on any rank ends the measurement.
        variance: Takes in the answers too, on rank 0.
        explain: Gets the evaluator with all answers, on rank 0.

    Returns:
        The metrics by name, and `unreadable`, path -> reason, where images could not be read; the same on all ranks.
        `None` where it was stopped.

    Raises:
        DivergedError: A box or a score is not finite.
        DataError: Not one image can be read.
    """
    evaluator, answered_any = run.task.evaluator(source), False
    batches = _batches(run, source)
    answered = ((without_pixels(batch), found) for batch, found in answers(objective, batches, device, run.precision))
    waiting: list[Any] = []
    lost = {skipped.path: skipped.reason for skipped in source.skipped}
    here = run.task.evaluator(source) if world() > 1 and isinstance(evaluator, SharesRows) else None

    def turn() -> Any:
        if rank() == 0:
            for batch, found, rows in waiting:
                if rows is not None and isinstance(evaluator, SharesRows):
                    evaluator.add_rows(rows)
                else:
                    evaluator.update(found, batch)
                if variance is not None:
                    variance.update(found, batch)
                lost.update({skipped.path: skipped.reason for skipped in batch.skipped})
        return None if stop() else next(map(partial(_shared, here), answered), ())

    while True:
        shares = together(turn)
        if any(share is None for share in shares):
            return None
        waiting[:] = [share for share in shares if share]
        if not waiting:
            break
        answered_any = True
    for share in together(lambda: batches.lost):
        lost.update({skipped.path: skipped.reason for skipped in share})
    if not answered_any:
        raise DataError(nothing_readable(lost))
    results: dict[str, Any] = together(lambda: evaluator.results() if rank() == 0 else {})[0]
    if explain is not None and rank() == 0:
        explain(evaluator)
    return {**results, "unreadable": lost} if lost else results


def _batches(run: Run, source: Source) -> SteadyLoader:
    """Return this rank's share of the images, those of one size together."""
    size = 1 if run.task.in_parts else max(1, run.data.batch_size // (run.optim.accumulate * world()))
    share = {"rank": rank(), "world": world()}
    return evaluation_batches_of(
        run.task, source, batch_size=size, workers=run.data.workers, seed=run.seed, by_size=True, **share
    )


def _shared(here: Any, answered: tuple[Batch, list[Answer]]) -> tuple[Batch, list[Answer], Any]:
    """Return what rank 0 needs of a batch and its answers: rows instead of masks, where an evaluator makes them."""
    batch, found = answered
    if here is None:
        return batch, found, None
    here.update(found, batch)
    light = [replace(one, masks=None, segmentation=None) if isinstance(one, Detections) else one for one in found]
    return batch, light, here.take_rows()


def require_measurable(run: Run, source: Source) -> None:
    """Let a run start only if its evaluations can be computed; it would be late to find out after the last step.

    Args:
        run: The run.
        source: What it is measured on.

    Raises:
        DataError: There is nothing to measure.
        ConfigError: There is no such measure as `checkpoint.best_of`, as far as that can be told without an answer.
    """
    evaluator = run.task.evaluator(source)
    if not run.task.needs.labels or not isinstance(source, Measurable):
        return
    if not source.ground_truth()["annotations"]:
        raise DataError(
            f"{', '.join(run.data.measured_on)}: not one object in {len(source)} images, so nothing can be measured; "
            "name another set to evaluate on, or none"
        )
    if run.checkpoint.best_of not in {None, HEADLINE}:
        measures: dict[str, Any] = {}
        with suppress(Exception):  # a metric without answers may fail in any way
            measures = evaluator.results()
        if measures:
            require_measure(str(run.checkpoint.best_of), measures)


def require_measure(name: str, results: Mapping[str, Any]) -> None:
    """Let a run look for the best of a measure only if there is such a measure.

    Args:
        name: `checkpoint.best_of`.
        results: What an evaluation returns.

    Raises:
        ConfigError: There is none; names those that there are.
    """
    numbers = [key for key, value in results.items() if isinstance(value, int | float)]
    if name not in numbers:
        raise ConfigError(
            f"checkpoint.best_of: nothing measures {name!r}{suggest(name, numbers)}; there are {', '.join(numbers)}"
        )


def unpadded(answer: Callable[[Batch], Sequence[Answered]], batch: Batch) -> list[Answered]:
    """Answer images of one size at a time: padding would have its say, and results would depend on the batch.

    Args:
        answer: What answers a batch.
        batch: Images of any sizes.

    Returns:
        One entry per image, in the order of the batch.
    """
    found: dict[int, Answered] = {}
    for places, part in of_one_size(batch):
        found |= zip(places, answer(part), strict=True)
    return [found[place] for place in range(len(batch))]
