"""Objective -> how far it has come: what changes while a run trains, and is saved."""

import time
from collections.abc import Mapping
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from ssldet.engine.optim import average_of, build_optimizer, clip, learning, schedule, set_rates
from ssldet.engine.run import OptimConfig
from ssldet.engine.steps import size_of
from ssldet.errors import DivergedError
from ssldet.task import Objective


class Progress:
    """Weights, optimiser, averaged weights and counters of a run.

    Attributes:
        objective: What learns.
        optimizer: Changes it.
        learning: The parameters that the optimiser changes.
        average: Its averaged weights; `None` where the run averages none.
        step: Optimiser steps done.
        total_steps: Length of the run.
        skipped: Steps that were left out, because something was not finite.
        in_a_row: The same, since the last step that was taken.
    """

    def __init__(self, objective: Objective, config: OptimConfig, total_steps: int) -> None:
        """Begin at step zero.

        Args:
            objective: What learns, on its device.
            config: The optimiser, its schedule, clipping and averaging.
            total_steps: Length of the run.

        Raises:
            ConfigError: Nothing learns.
        """
        self.objective = objective
        self.optimizer = build_optimizer(objective, config)
        self.learning = learning(self.optimizer)
        self.average = average_of(objective, config.ema) if config.ema else None
        self.step, self.total_steps = 0, total_steps
        self.skipped = self.in_a_row = 0
        self._clip, self._factor = config.clip, schedule(config, total_steps)
        self._before, self._begun = 0.0, time.monotonic()

    @property
    def best(self) -> Objective:
        """The objective that is evaluated and handed over: averaged where averaging is on."""
        return self.objective if self.average is None else cast(Objective, self.average.module)

    @property
    def done(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.total_steps

    @property
    def seconds(self) -> float:
        """Training time of the whole run, earlier parts of it included."""
        return self._before + time.monotonic() - self._begun

    def every(self, steps: int) -> bool:
        """Tell whether what is due every so many steps is due now; never before the first step, nor where it is zero.

        Args:
            steps: The interval.
        """
        return bool(steps and self.step and self.step % steps == 0)

    def begin_step(self) -> None:
        """Make ready for the next step: its learning rate, what the objective does between steps, no gradient."""
        set_rates(self.optimizer, self._factor(self.step))
        self.objective.begin(self.step, self.total_steps)
        self.optimizer.zero_grad()

    def take_step(self, norm: Float[Tensor, ""]) -> None:
        """Clip the gradient, change the weights and let the average follow.

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
        """Let nothing be saved or handed over that training could not go on from.

        Raises:
            DivergedError: A parameter is not finite; names it.
        """
        for name, parameter in self.objective.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise DivergedError(f"step {self.step}: {name} is not finite; not saved, resume to go on before it")

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold, in tensors and JSON types."""
        return {
            "objective": dict(self.objective.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else dict(self.average.state_dict()),
            "counters": {"skipped": self.skipped, "in_a_row": self.in_a_row, "seconds": self.seconds},
        }

    def load_state_dict(self, step: int, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint whose weights the objective has already.

        Args:
            step: Optimiser steps done.
            state: What `state_dict` returned then.
        """
        self.step, counters = step, state["counters"]
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.skipped, self.in_a_row, self._before = counters["skipped"], counters["in_a_row"], counters["seconds"]

    def state_bytes(self) -> int:
        """Return about how large a checkpoint will be."""
        whole = size_of(self.objective.state_dict())
        moving = sum(parameter.numel() * parameter.element_size() for parameter in self.learning)
        return whole * (1 if self.average is None else 2) + 2 * moving
