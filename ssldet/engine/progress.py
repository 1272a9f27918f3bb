"""Objective -> training state: what changes while a run trains, and is saved in checkpoints."""

import time
from collections.abc import Mapping
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from ssldet.engine.optim import average_of, build_optimizer, clip, learning, schedule, set_rates, take_up
from ssldet.engine.run import OptimConfig
from ssldet.engine.steps import size_of
from ssldet.errors import DivergedError
from ssldet.task import Objective


class Progress:
    """Weights, optimiser, averaged weights and counters of a run.

    Attributes:
        objective: The objective that is trained.
        optimizer: Its optimiser.
        learning: The parameters that the optimiser changes.
        average: Averaged weights of the objective; `None` where the run averages none.
        step: Optimiser steps done.
        total_steps: Length of the run.
        skipped: Steps that were left out, because something was not finite.
        in_a_row: Steps that were left out since the last step that was taken.
        enough: Why the run ends before its last step; empty where it does not.
    """

    def __init__(self, objective: Objective, config: OptimConfig, total_steps: int) -> None:
        """Begin at step zero.

        Args:
            objective: The objective to train, on its device.
            config: The optimiser, its schedule, clipping and averaging.
            total_steps: Length of the run.

        Raises:
            ConfigError: No parameter is trainable.
        """
        self.objective = objective
        self.optimizer = build_optimizer(objective, config)
        self.learning = learning(self.optimizer)
        self.average = average_of(objective, config.ema, config.ema_ramp) if config.ema else None
        if self.average is not None:
            objective.set_average(cast(Objective, self.average.module))
        self.step, self.total_steps = 0, total_steps
        self.skipped = self.in_a_row = 0
        self.enough = ""
        self._clip, self._factor = config.clip, schedule(config, total_steps)
        self._before, self._begun = 0.0, time.monotonic()

    @property
    def model(self) -> Objective:
        """The objective that is evaluated and handed over: averaged where averaging is on."""
        return self.objective if self.average is None else cast(Objective, self.average.module)

    @property
    def done(self) -> bool:
        """Whether all steps are done, or the rest is not worth waiting for."""
        return self.step >= self.total_steps or bool(self.enough)

    @property
    def seconds(self) -> float:
        """Training time of the whole run, earlier parts of it included."""
        return self._before + time.monotonic() - self._begun

    def every(self, steps: int) -> bool:
        """Tell whether the number of steps done is a multiple of an interval; false before the first step.

        Args:
            steps: The interval; zero means never.
        """
        return bool(steps and self.step and self.step % steps == 0)

    def begin_step(self) -> None:
        """Prepare the next step: set the learning rate, tell the objective, clear the gradients."""
        set_rates(self.optimizer, self._factor(self.step))
        self.objective.begin(self.step, self.total_steps)
        self.optimizer.zero_grad()

    def take_step(self, norm: Float[Tensor, ""]) -> None:
        """Clip the gradient, update the weights and their average.

        Args:
            norm: Norm of the whole gradient.
        """
        clip(self.learning, norm, self._clip)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.objective)
        self.in_a_row = 0

    def leave_step_out(self) -> None:
        """Count a step that changes nothing."""
        self.skipped += 1
        self.in_a_row += 1

    def require_finite(self) -> None:
        """Check that the weights are finite, before they are saved.

        Raises:
            DivergedError: A parameter is not finite; the message names it.
        """
        for name, parameter in self.objective.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise DivergedError(f"step {self.step}: {name} is not finite; not saved, resume to go on before it")

    def state_dict(self) -> dict[str, Any]:
        """Return the training state as tensors and JSON types."""
        return {
            "objective": dict(self.objective.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else dict(self.average.state_dict()),
            "counters": {"skipped": self.skipped, "in_a_row": self.in_a_row, "seconds": self.seconds},
        }

    def load_state_dict(self, step: int, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint; the objective has its weights already.

        Args:
            step: Optimiser steps done.
            state: What `state_dict` returned at that step.
        """
        self.step, counters = step, state["counters"]
        take_up(self.optimizer, state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.skipped, self.in_a_row, self._before = counters["skipped"], counters["in_a_row"], counters["seconds"]

    def state_bytes(self) -> int:
        """Return the approximate size of a checkpoint in bytes."""
        whole = size_of(self.objective.state_dict())
        moving = sum(parameter.numel() * parameter.element_size() for parameter in self.learning)
        return whole * (1 if self.average is None else 2) + 2 * moving
