"""batches -> steps -> checkpoints: what a run does between two batches, without a word about who calls it.

The caller promises this order: `start`; for every part of every step `begin_part`, `loss`, then backward, after the
last part of a step also `update`, and after every part `end_part`, until that returns True.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from ssldet.chance import seed_of
from ssldet.data.loader import evaluation_batches
from ssldet.engine.checkpoint import describe, save_weights
from ssldet.engine.evaluate import at_rest, autocast, evaluate
from ssldet.engine.folder import RunFolder
from ssldet.engine.guard import Guard
from ssldet.engine.log import Display, Meter, MetricsFile, summary
from ssldet.engine.optim import average_of, build_optimizer, clip, gradient_norm, learning, schedule, set_rates
from ssldet.engine.quarantine import Quarantine
from ssldet.engine.run import Run
from ssldet.engine.saving import Saver
from ssldet.engine.steps import Checkpoints, Restored, size_of
from ssldet.engine.stop import StopFlag
from ssldet.errors import DataError, DivergedError
from ssldet.ranks import any_rank, gather_objects, rank, reduce_mean
from ssldet.recipe import to_document
from ssldet.task import Objective, PretextTask
from ssldet.types import Batch, Losses, Source

log = logging.getLogger(__name__)

PREVIEW_IMAGES = 6
"""Images of a preview picture."""

Preview = Callable[[Objective, Batch], Image.Image]
"""Draws what an objective finds in a batch."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a session works with.

    Attributes:
        run: The configuration.
        folder: Where to write.
        objective: What learns.
        source: Training images.
        val: Images to evaluate on, if any.
        total_steps: Length of the run.
        stop: Raised when somebody asks the run to stop.
        preview: Draws pictures on the way, if wanted.
    """

    run: Run
    folder: RunFolder
    objective: Objective
    source: Source
    val: Source | None
    total_steps: int
    stop: StopFlag
    preview: Preview | None = None


class Session:
    """One process's part of a run, from the first or any later step to the last.

    Attributes:
        at: What it works with.
        step: Optimiser steps done.
        stopped: Whether a stop was asked for and everything is saved.
        results: What the last evaluation measured.
    """

    def __init__(self, at: Setting, restored: Restored | None = None) -> None:
        """Begin, or go on from a checkpoint whose weights the objective has already.

        Args:
            at: See the attributes.
            restored: The checkpoint.
        """
        self.at = at
        self._state = {} if restored is None else restored.state
        counters = self._state.get("counters", {})
        self._resumed = restored is not None
        self.step: int = 0 if restored is None else restored.step
        self.stopped = False
        self.results: dict[str, Any] = {}
        folder, run = at.folder, at.run
        self._guard = Guard(folder.path / "captures", counters.get("skipped", 0), counters.get("in_a_row", 0))
        self._quarantine = Quarantine(at.source, run.data.max_bad_fraction, folder.path / "quarantine.jsonl")
        self._saver = Saver(Checkpoints(folder.checkpoints, run.checkpoint.keep))
        self._metrics = MetricsFile(folder.path / "metrics.jsonl") if rank() == 0 else None
        self._display = Display(f"{type(run.task).__name__}", at.total_steps)
        self._meter = Meter(counters.get("seconds", 0.0))
        self._factor = schedule(run.optim, at.total_steps)
        self._values: list[dict[str, Tensor]] = []
        self._stopping = self._taken = False
        self._document = to_document(run)
        self._average: AveragedModel | None = None

    @property
    def best(self) -> Objective:
        """The objective that is evaluated and handed over: averaged where averaging is on."""
        return self.at.objective if self._average is None else cast(Objective, self._average.module)

    def optimizer(self) -> Optimizer:
        """Build the optimiser; its parameters may still move to another device."""
        self._optimizer = build_optimizer(self.at.objective, self.at.run.optim)
        self._learning = learning(self._optimizer)
        return self._optimizer

    def start(self, device: torch.device) -> None:
        """Take up the state on the device, and make sure that there is a checkpoint to go on from.

        Args:
            device: Where the objective is.
        """
        self.device = device
        if self.at.run.optim.ema:
            self._average = average_of(self.at.objective, self.at.run.optim.ema)
        if self._resumed:
            self._optimizer.load_state_dict(self._state["optimizer"])
            if self._average is not None:
                self._average.load_state_dict(self._state["average"])
            self._state = {}
        else:
            self._saver.require_room(self._state_bytes())
            self._save()
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        if rank() == 0:
            self.at.folder.update(status="running", reason=None, device=name, images=len(self.at.source))
        self._draw(due=self.step == 0)
        if self._resumed and self._evaluation_due() and not self._evaluated():
            self._evaluate()
        if self.step >= self.at.total_steps and not self.stopped:
            self._finish()
        self.at.objective.train()
        self._meter.resume()

    def begin_part(self, part: int) -> None:
        """Prepare for one part of a step's batch: rate and chance are functions of the step and nothing else.

        Args:
            part: Number of the part within the step.
        """
        self._meter.arrived()
        if part == 0:
            set_rates(self._optimizer, self._factor(self.step))
            self.at.objective.begin(self.step, self.at.total_steps)
            self._guard.begin()
            self._values = []
        seed = seed_of(self.at.run.seed, "step", rank(), self.step, part)
        # Not torch.manual_seed: it visits every kind of device there is, which costs milliseconds.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Compute the loss of one part.

        Parts weigh the same, like ranks. A criterion that divides by the number of boxes divides by the part's own, so
        a batch in parts makes the step of the whole batch only as far as its parts hold equally many.

        Args:
            batch: The part, on the device.
        """
        self._quarantine.add(batch.skipped)
        try:
            with autocast(self.device, self.at.run.precision):
                losses: Losses = self.at.objective(batch)
        except DivergedError as error:
            self._guard.refuse(error, batch)
            # The other ranks wait for this rank's gradients, so it gives them zeros.
            return torch.stack([parameter.sum() for parameter in self._learning]).sum() * 0
        total = losses.total
        self._guard.watch(losses, total, batch)
        if self._line_due(self.step + 1):
            self._values.append(_numbers(losses, total))
        return total

    def update(self) -> None:
        """Take the step if loss and gradient are finite on every rank; leave it out otherwise.

        Raises:
            DivergedError: Too many steps in a row were not finite.
        """
        norm = gradient_norm(self._learning)
        flags = torch.stack([self._guard.flag(norm), torch.tensor(float(bool(self.at.stop.raised))).to(norm.device)])
        bad, self._stopping = any_rank(flags)
        self._taken = not bad
        if bad:
            self._guard.failed(self.step, norm)
            return
        clip(self._learning, norm, self.at.run.optim.clip)
        self._optimizer.step()
        self._guard.passed()
        if self._average is not None:
            self._average.update_parameters(self.at.objective)
        for values in self._values:
            values["grad_norm"] = norm

    def end_part(self, part: int) -> bool:
        """Close a part; after the last one log, save, evaluate and draw what is due.

        Args:
            part: Number of the part within the step.

        Returns:
            Whether the run ends here.
        """
        run = self.at.run
        if part < run.optim.accumulate - 1:
            self._meter.left()
            return False
        self.step += 1
        self._meter.left(run.data.batch_size)
        if self._line_due(self.step):
            self._settle()
            self._write_line()
        if self._save_due():
            self._save()
        if self._stopping:
            self.stopped = True
            return True
        if self._evaluation_due():
            self._evaluate()
        if not self.stopped:
            self._draw(due=bool(run.preview_every) and self.step % run.preview_every == 0)
            if self.step == self.at.total_steps:
                self._finish()
        self._meter.resume()
        return self.stopped or self.step == self.at.total_steps

    def close(self) -> None:
        """Let go of files and terminal."""
        self._display.close()
        if self._metrics is not None:
            self._metrics.close()

    def _line_due(self, step: int) -> bool:
        return step % self.at.run.log_every == 0 or step in {1, self.at.total_steps}

    def _save_due(self) -> bool:
        return self._stopping or self.step % self.at.run.checkpoint.every_steps == 0 or self.step == self.at.total_steps

    def _evaluation_due(self) -> bool:
        every = self.at.run.evaluate_every
        return self.at.val is not None and (
            self.step == self.at.total_steps or bool(every and self.step and self.step % every == 0)
        )

    def _settle(self) -> None:
        """Count bad files; a run that meets too many is saved first, because its owner may well want to go on."""
        try:
            self._quarantine.settle()
        except DataError:
            self._save()
            raise

    def _write_line(self) -> None:
        """Write what the last step measured, averaged over its parts and all ranks; a step left out has no line."""
        if not self._taken or not self._values:
            return
        names = list(self._values[0])
        parts = [torch.stack([part[name].float().to(self.device) for name in names]) for part in self._values]
        numbers = reduce_mean(torch.stack(parts).mean(0))
        line = {
            "kind": "train",
            "step": self.step,
            "epoch": round(self.step * self.at.run.data.batch_size / len(self.at.source), 4),
            **dict(zip(names, numbers.tolist(), strict=True)),
            "lr": self._optimizer.param_groups[0]["lr"],
            **self._meter.rates(),
            "seconds": round(self._meter.seconds(), 3),
        }
        self._tell(line)

    def _tell(self, line: dict[str, Any]) -> None:
        if self._metrics is not None:
            self._metrics.write(line)
            log.info("step %d  %s", self.step, summary(line))
        self._display.show(line)

    def _save(self) -> None:
        self._require_finite()
        saved = self._saver.save(self.step, self._snapshot() if rank() == 0 else {})
        if saved and rank() == 0:
            counters = {"steps": self.step, "seconds": round(self._meter.seconds(), 3)}
            self.at.folder.update(**counters, skipped_steps=self._guard.skipped, bad_files=self._quarantine.counts())

    def _snapshot(self) -> dict[str, Any]:
        return {
            "objective": dict(self.at.objective.state_dict()),
            "optimizer": self._optimizer.state_dict(),
            "average": None if self._average is None else dict(self._average.state_dict()),
            "run": self._document,
            "data": {"fingerprint": self.at.source.fingerprint, "images": len(self.at.source)},
            "counters": {
                "skipped": self._guard.skipped,
                "in_a_row": self._guard.in_a_row,
                "seconds": self._meter.seconds(),
            },
        }

    def _require_finite(self) -> None:
        for name, parameter in self.at.objective.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise DivergedError(f"step {self.step}: {name} is not finite; not saved, resume to go on before it")

    def _state_bytes(self) -> int:
        whole = size_of(self.at.objective.state_dict())
        moving = sum(parameter.numel() * parameter.element_size() for parameter in self._learning)
        return whole * (1 if self._average is None else 2) + 2 * moving

    def _evaluated(self) -> bool:
        """Take up what was measured at this very step before the run was interrupted."""
        lines = [line for line in self.at.folder.metrics() if line.get("kind") == "eval" and line["step"] == self.step]
        found = {name: value for name, value in (lines or [{}])[-1].items() if name not in {"kind", "step"}}
        self.results = gather_objects(found)[0]
        return bool(self.results)

    def _evaluate(self) -> None:
        """Measure and write the numbers down; a stop signal ends it, and resuming measures again."""
        assert self.at.val is not None
        results = evaluate(self.at.run, self.best, self.at.val, self.device, lambda: bool(self.at.stop.raised))
        if results is None:
            self._save()
            self.stopped = True
            return
        self.results = results
        self._tell({"kind": "eval", "step": self.step, **results})
        if rank() == 0:
            self.at.folder.update(results=results)

    def _draw(self, *, due: bool) -> None:
        """Draw a preview; a picture that fails is worth a warning and never a run."""
        if self.at.preview is None or not due or rank() != 0:
            return
        source = self.at.val or self.at.source
        views = self.at.run.task.views(training=False)
        try:
            size, blind = min(PREVIEW_IMAGES, len(source)), isinstance(self.at.run.task, PretextTask)
            loader = evaluation_batches(source, views, batch_size=size, seed=self.at.run.seed, strip_labels=blind)
            with at_rest(self.best, self.device, self.at.run.precision):
                picture = self.at.preview(self.best, next(iter(loader)).to(self.device))
            self.at.folder.previews.mkdir(exist_ok=True)
            picture.save(self.at.folder.previews / f"step-{self.step:06d}.png")
        except Exception as error:  # whatever a drawing function may do
            log.warning("no preview at step %d: %s: %s", self.step, type(error).__name__, error)

    def _finish(self) -> None:
        """Hand over."""
        self._draw(due=True)
        self._require_finite()
        if rank() == 0:
            info = describe(self.at.run, self.at.source, self.step, self.at.folder.lineage())
            save_weights(self.at.folder.weights, self.best, info)
            seconds = round(self._meter.seconds(), 3)
            self.at.folder.update(status="finished", steps=self.step, seconds=seconds, results=self.results)


def _numbers(losses: Losses, total: Float[Tensor, ""]) -> dict[str, Tensor]:
    """Return what a line of the metrics file says of a batch: last layer, unweighted."""
    terms = {f"loss/{name}": term[-1].detach() for name, term in losses.terms.items()}
    watched = {f"metric/{name}": value.detach() for name, value in losses.metrics.items()}
    return {"loss": total.detach(), **terms, **watched}
