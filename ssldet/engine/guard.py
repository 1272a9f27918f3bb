"""Batch -> one loss; losses, gradient norm -> take the step or not: what is not finite never reaches the weights."""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssldet.engine.evaluate import autocast
from ssldet.engine.progress import Progress
from ssldet.engine.run import Precision
from ssldet.errors import DivergedError
from ssldet.jsonlines import finite
from ssldet.ranks import connected, rank
from ssldet.task import Objective
from ssldet.types import Batch

log = logging.getLogger(__name__)

PATIENCE = 3
"""Steps in a row that may be left out; one bad batch is bad luck, more is divergence."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one part of a step's batch measured, apart from autograd.

    Attributes:
        keys: The images.
        total: The loss; `None` where there is none.
        terms: The loss terms, one entry per layer.
        metrics: What else was watched.
        problem: Why there is no loss; empty where there is one.
    """

    keys: list[str]
    total: Float[Tensor, ""] | None = None
    terms: dict[str, Float[Tensor, " L"]] = field(default_factory=dict)
    metrics: dict[str, Tensor] = field(default_factory=dict)
    problem: str = ""


class TotalLoss(nn.Module):
    """Batch -> the number that backward starts from.

    It returns nothing else, because DDP looks for gradients through whatever a module returns.

    Attributes:
        objective: Computes the losses.
        parts: What the parts of this step measured, until whoever trains clears them.
    """

    def __init__(self, objective: Objective, precision: Precision) -> None:
        """Take what computes the losses, and in which precision.

        Args:
            objective: The model inside its task.
            precision: Of the model; losses are 32 bits.
        """
        super().__init__()
        self.objective, self.precision = objective, precision
        self.parts: list[Part] = []

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the loss of one part of a step's batch, on the device.

        Parts weigh the same, like ranks. A criterion that divides by the number of boxes divides by the part's own, so
        a batch in parts makes the step of the whole batch only as far as its parts hold equally many.
        """
        try:
            with autocast(batch.images.device, self.precision):
                losses = self.objective(batch)
        except DivergedError as error:
            self.parts.append(Part(keys=batch.keys, problem=str(error)))
            # The other ranks wait for this rank's gradients, so it gives them some, by which they see that all is lost.
            learning = [parameter.sum() for parameter in self.parameters() if parameter.requires_grad]
            return torch.stack(learning).sum() * math.nan
        total: Float[Tensor, ""] = losses.total
        terms = {name: term.detach() for name, term in losses.terms.items()}
        metrics = {name: value.detach() for name, value in losses.metrics.items()}
        self.parts.append(Part(keys=batch.keys, total=total.detach(), terms=terms, metrics=metrics))
        # A gradient may be finite where the loss is not; the other ranks see only the gradient.
        return total * torch.where(torch.isfinite(total.detach()), 1.0, math.nan) if connected() else total


def not_finite(parts: Sequence[Part], norm: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Return 1 where losses or the gradient are not finite, else 0; does not wait for the device.

    All ranks find the same: they share the gradient, and it is not finite where a loss of any of them is not.

    Args:
        parts: What the step measured.
        norm: Norm of the whole gradient.
    """
    totals = [part.total for part in parts if part.total is not None]
    if len(totals) < len(parts):
        return torch.ones((), device=norm.device)
    return 1 - torch.isfinite(torch.stack([norm, *totals])).all().float()


def leave_out(progress: Progress, parts: Sequence[Part], norm: Float[Tensor, ""], captures: Path) -> None:
    """Leave a step out, and write down what is known about it.

    Args:
        progress: Counts it; the step is the one after those that are done.
        parts: What the step measured.
        norm: Norm of the whole gradient.
        captures: Folder to write to; made when first needed.

    Raises:
        DivergedError: Too many in a row.
    """
    progress.leave_step_out()
    step, (what, keys) = progress.step, _describe(parts, norm)
    capture = captures / f"step-{step:06d}-rank{rank()}.json"
    terms = [{name: term.tolist() for name, term in part.terms.items()} for part in parts]
    document = {"step": step, "keys": keys, "reason": what, "terms": terms, "grad_norm": float(norm)}
    try:
        captures.mkdir(exist_ok=True)
        capture.write_text(json.dumps(finite(document), indent=2) + "\n", encoding="utf-8")
    except OSError as error:  # less is known then, but training must not stop for it
        log.error("%s can't be written: %s", capture, error.strerror)
    named = ", ".join(repr(key) for key in keys[:4])
    message = f"step {step}: {what}; images {named}{', …' if len(keys) > 4 else ''} (see {capture.name})"
    if progress.in_a_row > PATIENCE:
        raise DivergedError(
            f"{message}; {progress.in_a_row} steps in a row were not finite: lower optim.lr, lengthen "
            "optim.warmup_steps, or go back to an older checkpoint"
        )
    log.warning("%s; step left out (%d in a row)", message, progress.in_a_row)


def _describe(parts: Sequence[Part], norm: Float[Tensor, ""]) -> tuple[str, list[str]]:
    """Name what is not finite here, and the images of the parts where it is; all of them if it is not said."""
    if refused := [part for part in parts if part.problem]:
        return refused[0].problem, [key for part in refused for key in part.keys]
    for part in parts:
        wrong = [name for name, term in part.terms.items() if not bool(torch.isfinite(term).all())]
        if wrong:
            return f"loss {', '.join(wrong)} is not finite", part.keys
    everything = [key for part in parts for key in part.keys]
    whose = ", by this rank's gradient or another's" if connected() else ""
    return f"gradient norm is {float(norm)}{whose}", everything
