"""Progress -> the visible output of a run: lines of numbers, evaluations, preview pictures."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ssldet.data.files import unreadable
from ssldet.data.workers import SteadyLoader
from ssldet.engine.evaluate import at_rest, evaluate
from ssldet.engine.explaining import explain
from ssldet.engine.folder import RunFolder
from ssldet.engine.guard import Part
from ssldet.engine.health import Health, unreached
from ssldet.engine.log import Display, Meter, summary
from ssldet.engine.progress import Progress
from ssldet.engine.quarantine import note_evaluated
from ssldet.engine.run import Run
from ssldet.engine.sources import Sources, evaluation_batches_of
from ssldet.engine.stop import StopFlag
from ssldet.engine.symptoms import BoxVariance, symptoms
from ssldet.engine.writing import Lines
from ssldet.errors import DataError, DivergedError
from ssldet.loggers.base import LoggedRun, Loggers
from ssldet.ranks import gather_objects, rank, reduce_mean
from ssldet.recipe import leaves
from ssldet.states import few
from ssldet.task import Evaluator, Objective
from ssldet.types import Batch

log = logging.getLogger(__name__)

PREVIEW_IMAGES = 6
"""Images of a preview picture."""
PREVIEW_COMPRESSION = 2
"""Of zlib: training waits for a preview a quarter as long as at the usual 6, for a sixth more bytes."""

Compare = Callable[[Progress, Mapping[str, Any]], None]
"""Takes what an evaluation measured; nothing where it failed."""

DrawPreview = Callable[[Objective, Batch], Image.Image]
"""Draws what an objective finds in a batch."""


class Reporter:
    """Collects numbers of all ranks, and writes them on rank 0.

    Attributes:
        results: What the last evaluation measured.
    """

    def __init__(
        self, run: Run, folder: RunFolder, sources: Sources, preview: DrawPreview | None, compare: Compare
    ) -> None:
        """Point at the metrics file, and open the display.

        Args:
            run: The configuration.
            folder: Where to write.
            sources: The images of the run.
            preview: Draws preview pictures; `None` draws none.
            compare: Compares an evaluation with the best one so far.
        """
        self.results: dict[str, Any] = {}
        self._compare = compare
        self._measured: int | None = None
        self._checked: int | None = None
        self._health = Health(run, sources.val or sources.train)
        self._failure: Exception | None = None
        self._run, self._folder, self._sources, self._preview = run, folder, sources, preview
        self._metrics = Lines(folder.path / "metrics.jsonl") if rank() == 0 else None
        self._loggers: Loggers | None = None
        self._display = Display(type(run.task).__name__, run.total_steps(len(sources.train)))

    def begin(self, progress: Progress, batches: SteadyLoader, device: torch.device) -> None:
        """Note in the run folder that the run trains, and draw the first preview.

        Args:
            progress: Training state at the beginning.
            batches: The loader, which counts the seconds that training waits for it.
            device: Device of the objective.
        """
        self._device, self._batches = device, batches
        self._meter = Meter(progress.step * self._run.data.batch_size)
        if rank() == 0:
            name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
            self._folder.note(status="running", reason=None, device=name, images=len(self._sources.train))
            self._loggers = Loggers(self._run.loggers, self._told(progress.step))
        if progress.step == 0:
            self.draw(progress)
        else:
            self._recall(progress.step)
            self._compare(progress, self.results)

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """Leave the time of this block out of the rates."""
        with self._meter.paused():
            yield

    def line_due(self, progress: Progress) -> bool:
        """Tell whether a line is due: at the first and the last step, and every `log_every` steps."""
        return progress.every(self._run.log_every) or progress.step == 1 or progress.done

    def report(self, progress: Progress, parts: Sequence[Part], norm: Float[Tensor, ""]) -> None:
        """Write the losses and metrics of the last step, averaged over its parts and all ranks.

        Args:
            progress: Training state after the step.
            parts: Losses and metrics of each part; every rank has the same terms.
            norm: Norm of the whole gradient.
        """
        measured = [_numbers(part) | {"grad_norm": norm} for part in parts]
        rows = [torch.stack([value.float().to(self._device) for value in part.values()]) for part in measured]
        numbers = reduce_mean(torch.stack(rows).mean(0))
        images = progress.step * self._run.data.batch_size
        line = {
            "kind": "train",
            "step": progress.step,
            "epoch": round(images / len(self._sources.train), 4),
            **dict(zip(measured[0], numbers.tolist(), strict=True)),
            "lr": progress.optimizer.param_groups[0]["lr"],
            **self._meter.rates(images, self._batches.waited),
            "seconds": round(progress.seconds, 3),
        }
        self._write(line)
        if progress.step == 1 and (names := unreached(progress.objective)):
            log.warning(
                "no loss reaches what should learn, so that it stays as it is (%d in all): %s", len(names), few(names)
            )

    def evaluate(self, progress: Progress, stop: StopFlag) -> bool:
        """Evaluate the model if that is due, and write the numbers.

        Args:
            progress: Training state after a step.
            stop: Checked before every batch; a stop on any rank ends the evaluation, and resuming repeats it.

        Returns:
            False if the evaluation was stopped.
        """
        val, due = self._sources.val, progress.done or progress.every(self._run.evaluate_every)
        if due or not progress.step:
            self._check_health(progress)
        if val is None and progress.done:
            self._examine(progress, BoxVariance())
        if val is None or not due or progress.step == self._measured:
            return True
        variance, answered = BoxVariance(), list[Evaluator]()
        try:
            results = evaluate(
                *(self._run, progress.model, val, self._device, lambda: bool(stop.raised), variance),
                explain=answered.append,
            )
        except Exception as error:  # a metric may fail in any way, and weights that are trained must not be lost to it
            if isinstance(error, DivergedError) and not progress.done:
                raise
            self._fail(progress.step, error)
            return True
        if results is None:
            return False
        if lost := results.get("unreadable", {}):
            log.warning("%s; they count as images in which nothing was found", unreadable(lost))
        self.results, self._measured, self._failure = results, progress.step, None
        self._write({"kind": "eval", "step": progress.step, **results})
        if rank() == 0:
            note_evaluated(self._folder.path / "quarantine.jsonl", lost)
            self._folder.note(results=results, measured_on=self._run.data.measured_on, measured_at=progress.step)
        self._examine(progress, variance)
        self._compare(progress, results)
        if progress.done and answered:  # the comparison may have ended the run
            explain(val, self._folder, *answered)
        return True

    def require_measured(self) -> None:
        """Let a run end well only if its last evaluation did; its weights are written by then.

        On images that were held out and not named by the user, a failure is a warning.

        Raises:
            DataError: The evaluation failed.
            DivergedError: A box or a score was not finite.
        """
        if self._failure is None:
            return
        kind = DivergedError if isinstance(self._failure, DivergedError) else DataError
        told = (
            f"{self._folder.weights} is written, but could not be measured: {self._failure}; mend that, and measure it "
            f"with ssldet evaluate or with: {self._folder.resume_command(self._run)}"
        )
        if kind is DataError and not self._run.data.val:
            log.warning("%s", told)
            return
        raise kind(told) from self._failure

    def draw(self, progress: Progress) -> None:
        """Draw a preview, if previews are on; a failure is a warning and does not end the run."""
        if self._preview is None or rank() != 0:
            return
        run, source, path = self._run, self._sources.val or self._sources.train, self._folder.previews
        try:
            size = min(PREVIEW_IMAGES, len(source))
            batches = evaluation_batches_of(run.task, source, batch_size=size, seed=run.seed)
            with at_rest(progress.model, self._device, run.precision):
                picture = self._preview(progress.model, next(iter(batches)).to(self._device))
            path.mkdir(exist_ok=True)
            picture.save(path / f"step-{progress.step:06d}.png", compress_level=PREVIEW_COMPRESSION)
        except Exception as error:  # whatever a drawing function may do
            log.warning("no preview at step %d: %s: %s", progress.step, type(error).__name__, error)

    def close(self) -> None:
        """Close the display and the loggers."""
        self._display.close()
        if self._loggers is not None:
            self._loggers.close()

    def _told(self, step: int) -> LoggedRun:
        return LoggedRun(folder=self._folder.path, id=self._folder.id, step=step, settings=leaves(self._run))

    def _recall(self, step: int) -> None:
        """Read the results of an evaluation at this step, made on the same set before the run was interrupted."""
        val, lines = self._run.data.measured_on, []
        if val and self._folder.status().get("measured_on", val) == val:
            lines = [at for at in self._folder.each_metric() if at.get("kind") == "eval" and at.get("step") == step]
        results = {name: value for name, value in (lines or [{}])[-1].items() if name not in {"kind", "step"}}
        self.results = gather_objects(results)[0]
        self._measured = step if self.results else None

    def _examine(self, progress: Progress, variance: BoxVariance) -> None:
        """Say what shows that the detector does not learn; `run.json` holds what was said last."""
        if rank() != 0:
            return
        found = symptoms(self._run, progress.total_steps, self._folder.each_metric(), self.results, variance)
        for sentence in found:
            log.warning("step %d: %s", progress.step, sentence)
        if found or self._folder.status().get("symptoms"):
            self._folder.note(symptoms=found)

    def _check_health(self, progress: Progress) -> None:
        """Write whether images still differ to the network; a failure is a warning and does not end the run."""
        if rank() != 0 or not self._health.on or progress.step == self._checked:
            return
        try:
            figures = self._health.measure(progress.model, self._device)
        except Exception as error:  # a detector of somebody else's may have no such vectors
            log.warning("no check of health at step %d: %s: %s", progress.step, type(error).__name__, error)
            return
        self._checked = progress.step
        self._write({"kind": "health", "step": progress.step, **figures})

    def _fail(self, step: int, error: Exception) -> None:
        """Write down that an evaluation failed; training goes on."""
        self.results, self._measured, self._failure = {}, None, error
        log.error("step %d could NOT be measured (%s: %s); training goes on", step, type(error).__name__, error)
        if rank() == 0:
            self._folder.note(results={})

    def _write(self, line: dict[str, Any]) -> None:
        if self._metrics is not None:
            self._metrics.write(line)
            log.info("step %d  %s", line["step"], summary(line))
        if self._loggers is not None:
            self._loggers.log(line)
        self._display.show(line)


def _numbers(part: Part) -> dict[str, Tensor]:
    """Return the numbers of one part for a line of the metrics file: last layer, unweighted."""
    assert part.total is not None
    terms = {f"loss/{name}": term[-1] for name, term in part.terms.items()}
    return {"loss": part.total, **terms, **{f"metric/{name}": value for name, value in part.metrics.items()}}
