"""Batches -> steps: the loop that every run goes through, in the order of the work."""

from collections.abc import Iterator
from typing import Any

from ssldet import chance
from ssldet.engine.devices import Devices, all_reached
from ssldet.engine.exchange import Exchange
from ssldet.engine.guard import TotalLoss, leave_out, not_finite
from ssldet.engine.health import unreached
from ssldet.engine.keeper import Keeper
from ssldet.engine.optim import gradient_norm
from ssldet.engine.progress import Progress
from ssldet.engine.reporter import Reporter
from ssldet.engine.run import Run
from ssldet.engine.sources import training_batches_of
from ssldet.engine.steps import Restored
from ssldet.engine.stop import StopFlag
from ssldet.source import Source
from ssldet.task import Objective
from ssldet.types import Batch


def train(
    devices: Devices,
    run: Run,
    objective: Objective,
    source: Source,
    reporter: Reporter,
    keeper: Keeper,
    stop: StopFlag,
    restored: Restored | None = None,
) -> None:
    """Take the remaining steps, and write the final weights.

    Args:
        devices: Places the objective, and averages gradients over the ranks; launched already.
        run: The configuration.
        objective: The objective to train, with the weights of the checkpoint where there is one.
        source: Training images.
        reporter: Writes numbers, evaluations and previews.
        keeper: Writes checkpoints and the final weights.
        stop: Checked between two steps.
        restored: The checkpoint to continue from; `None` starts at step zero.

    Raises:
        StoppedError: A stop was requested; everything is saved.
        DivergedError: Losses or gradients were not finite too often in a row.
    """
    total_loss, searching = TotalLoss(objective, run.precision), True
    model = devices.setup_module(total_loss)
    progress = Progress(objective, run.optim, run.total_steps(len(source)))
    keeper.begin(progress, restored)
    batches = training_batches_of(run, source, progress.step)
    exchange = Exchange(iter(batches), devices.device, lambda: (bool(stop.raised), keeper.written))
    reporter.begin(progress, batches, devices.device)
    going = reporter.evaluate(progress, stop)
    objective.train()
    while going and not progress.done:
        progress.begin_step()
        total_loss.parts.clear()
        for batch in _computed(devices, model, run, exchange, progress.step):
            keeper.quarantine.add(batch.skipped)
        norm = gradient_norm(progress.learning)
        left_out, stopping, written = exchange.agreed(not_finite(total_loss.parts, norm))
        if left_out:
            leave_out(progress, total_loss.parts, norm, keeper.folder.captures)
        else:
            searching, model = _searching(devices, model, total_loss) if searching else (False, model)
            progress.take_step(norm)
        progress.step += 1
        with reporter.between_steps():
            if written:
                keeper.wait()
            if reporter.line_due(progress):
                keeper.settle(progress)
                if not left_out:
                    reporter.report(progress, total_loss.parts, norm)
            if progress.done or progress.every(run.checkpoint.every_steps):
                keeper.save(progress)
            going = not stopping and reporter.evaluate(progress, stop)
            if going and progress.every(run.preview_every):
                reporter.draw(progress)
    if not going:
        keeper.stop(progress, stop.raised or "another rank")
    reporter.draw(progress)
    keeper.hand_over(progress, reporter.results)


def _computed(devices: Devices, model: Any, run: Run, exchange: Exchange, step: int) -> Iterator[Batch]:
    """Add up the gradients of the parts of a step and yield each; with the last they are averaged over the ranks."""
    for part, batch in enumerate(exchange.parts(run.optim.accumulate)):
        chance.begin_step(run.seed, step, part)
        with devices.no_backward_sync(model, enabled=part < run.optim.accumulate - 1):
            loss = model(batch)
            devices.backward(loss / run.optim.accumulate)
        yield batch


def _searching(devices: Devices, model: Any, total_loss: TotalLoss) -> tuple[bool, Any]:
    """Return whether later steps must look for parameters that no loss reaches, and the model wrapped accordingly."""
    return (True, model) if unreached(total_loss.objective) else (False, all_reached(devices, total_loss))
