"""Losses, gradient norm -> take the step or not: what is not finite never reaches the weights."""

import json
import logging
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ssldet.errors import DivergedError
from ssldet.jsonlines import finite
from ssldet.ranks import rank
from ssldet.types import Batch, Losses

log = logging.getLogger(__name__)

PATIENCE = 3
"""Steps in a row that may be skipped; one bad batch is bad luck, more is divergence."""


class Guard:
    """Watches one step at a time.

    Attributes:
        skipped: Steps that were not taken, since the start of the run.
        in_a_row: The same, since the last step that was taken.
    """

    def __init__(self, captures: Path, skipped: int = 0, in_a_row: int = 0) -> None:
        """Begin, or go on.

        Args:
            captures: Folder for what is known about a bad step; made when first needed.
            skipped: See the attributes.
            in_a_row: See the attributes.
        """
        self.captures, self.skipped, self.in_a_row = captures, skipped, in_a_row
        self._seen: list[tuple[list[str], dict[str, Float[Tensor, " L"]]]] = []
        self._totals: list[Float[Tensor, ""]] = []
        self._reasons: list[str] = []

    def begin(self) -> None:
        """Forget the step before."""
        self._seen, self._totals, self._reasons = [], [], []

    def watch(self, losses: Losses, total: Float[Tensor, ""], batch: Batch) -> None:
        """Remember the losses of one part of the step, and their sum."""
        self._seen.append((batch.keys, {name: term.detach() for name, term in losses.terms.items()}))
        self._totals.append(total.detach())

    def refuse(self, error: DivergedError, batch: Batch) -> None:
        """Remember that a part of the step could not even be computed."""
        self._seen.append((batch.keys, {}))
        self._reasons.append(str(error))

    def flag(self, norm: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Return 1 where this rank's losses or the gradient are not finite, else 0; does not wait for the device."""
        if self._reasons:
            return torch.ones((), device=norm.device)
        return 1 - torch.isfinite(torch.stack([norm, *self._totals])).all().float()

    def passed(self) -> None:
        """Note that the step was taken."""
        self.in_a_row = 0

    def failed(self, step: int, norm: Float[Tensor, ""]) -> None:
        """Note that the step was not taken; write down what is known about it.

        Args:
            step: The step, counted from zero.
            norm: Norm of the whole gradient.

        Raises:
            DivergedError: Too many in a row.
        """
        self.skipped += 1
        self.in_a_row += 1
        what, keys = self._describe(norm)
        self.captures.mkdir(exist_ok=True)
        capture = self.captures / f"step-{step:06d}-rank{rank()}.json"
        terms = [{name: term.tolist() for name, term in terms.items()} for _, terms in self._seen]
        document = {"step": step, "keys": keys, "reason": what, "terms": terms, "grad_norm": float(norm)}
        capture.write_text(json.dumps(finite(document), indent=2) + "\n", encoding="utf-8")
        named = ", ".join(repr(key) for key in keys[:4])
        message = f"step {step}: {what}; images {named}{', …' if len(keys) > 4 else ''} (see {capture.name})"
        if self.in_a_row > PATIENCE:
            raise DivergedError(
                f"{message}; {self.in_a_row} steps in a row were not finite: lower optim.lr, lengthen "
                "optim.warmup_steps, or go back to an older checkpoint"
            )
        log.warning("%s; step left out (%d in a row)", message, self.in_a_row)

    def _describe(self, norm: Float[Tensor, ""]) -> tuple[str, list[str]]:
        """Name what is not finite here, and the images of the parts where it is; all of them if it is not said."""
        if self._reasons:
            return self._reasons[0], [key for keys, terms in self._seen if not terms for key in keys]
        for keys, terms in self._seen:
            wrong = [name for name, term in terms.items() if not bool(torch.isfinite(term).all())]
            if wrong:
                return f"loss {', '.join(wrong)} is not finite", keys
        everything = [key for keys, _ in self._seen for key in keys]
        if not bool(torch.isfinite(norm)):
            return f"gradient norm is {float(norm)}", everything
        return "another rank's loss or gradient is not finite", everything
