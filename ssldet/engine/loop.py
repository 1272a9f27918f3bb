"""Batches -> steps: the loop that every run goes through, in the order of the work."""

from contextlib import AbstractContextManager
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ssldet import chance
from ssldet.data.canvases import of_all_ranks
from ssldet.engine.guard import TotalLoss, leave_out, not_finite
from ssldet.engine.keeper import Keeper
from ssldet.engine.optim import gradient_norm
from ssldet.engine.progress import Progress
from ssldet.engine.reporter import Reporter
from ssldet.engine.run import Run
from ssldet.engine.sources import training_batches_of
from ssldet.engine.steps import Restored
from ssldet.engine.stop import StopFlag
from ssldet.ranks import any_rank
from ssldet.source import Source
from ssldet.task import Objective


@runtime_checkable
class Devices(Protocol):
    """What the loop needs of Lightning's Fabric, which takes long to import."""

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        ...

    def launch(self) -> Any:
        """Start the other processes of the run, or find them."""
        ...

    def setup_module(self, module: nn.Module) -> Any:
        """Place a module, and have gradients averaged over the ranks."""
        ...

    def backward(self, tensor: Tensor) -> None:
        """Compute gradients."""
        ...

    def no_backward_sync(self, module: Any, enabled: bool = True) -> AbstractContextManager[Any]:
        """Let gradients add up on each rank for now."""
        ...


def train(
    fabric: Devices,
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
        fabric: Places the objective, and averages gradients over the ranks; launched already.
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
    total_loss = TotalLoss(objective, run.precision)
    model, accumulate = fabric.setup_module(total_loss), run.optim.accumulate
    progress = Progress(objective, run.optim, run.total_steps(len(source)))
    keeper.begin(progress, restored)
    batches = training_batches_of(run, source, progress.step)
    stream = iter(batches)
    reporter.begin(progress, batches, fabric.device)
    going = reporter.evaluate(progress, stop)
    objective.train()
    while going and not progress.done:
        progress.begin_step()
        total_loss.parts.clear()
        for part, batch in enumerate(islice(stream, accumulate)):
            keeper.quarantine.add(batch.skipped)
            chance.begin_step(run.seed, progress.step, part)
            with fabric.no_backward_sync(model, enabled=part < accumulate - 1):
                loss = model(of_all_ranks(batch.to(fabric.device, non_blocking=True)))
                fabric.backward(loss / accumulate)
        norm = gradient_norm(progress.learning)
        bad = not_finite(total_loss.parts, norm)
        told = [torch.full_like(bad, flag) for flag in (bool(stop.raised), keeper.written)]
        left_out, stopping, written = any_rank(torch.stack([bad, *told]))
        if left_out:
            leave_out(progress, total_loss.parts, norm, keeper.folder.captures)
        else:
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
