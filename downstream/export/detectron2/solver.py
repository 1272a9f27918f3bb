"""model -> optimiser: AdamW as DETR uses it, the backbone at a rate of its own and the whole gradient clipped."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn


class ClippedAdamW(torch.optim.AdamW):
    """AdamW that scales the whole gradient down to a norm first; detectron2 clips parameter by parameter otherwise."""

    def __init__(self, params: Any, *, max_norm: float, **options: Any) -> None:
        """Set up.

        Args:
            params: Parameters or groups of them.
            max_norm: Largest norm of the whole gradient.
            options: AdamW's own.
        """
        super().__init__(params, **options)
        self.max_norm = max_norm

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Clip and update."""
        every = [parameter for group in self.param_groups for parameter in group["params"]]
        nn.utils.clip_grad_norm_(every, self.max_norm)
        return super().step(cast("Any", closure))


def build_optimizer(
    model: nn.Module, *, lr: float, backbone_multiplier: float = 0.1, weight_decay: float = 1e-4, max_norm: float = 0.1
) -> ClippedAdamW:
    """Return the optimiser of a model.

    Args:
        model: Ours.
        lr: Peak learning rate.
        backbone_multiplier: Share of it for the backbone.
        weight_decay: Decay of all parameters.
        max_norm: Largest norm of the whole gradient.
    """
    backbone: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (backbone if "backbone" in name.split(".") else rest).append(parameter)
    groups = [{"params": rest, "lr": lr}, {"params": backbone, "lr": lr * backbone_multiplier}]
    return ClippedAdamW(
        [group for group in groups if group["params"]], lr=lr, weight_decay=weight_decay, max_norm=max_norm
    )
