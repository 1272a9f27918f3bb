"""model -> optimiser: AdamW as in DETR, with a learning rate of its own for the backbone and a clipped gradient."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn


class ClippedAdamW(torch.optim.AdamW):
    """AdamW that clips the norm of the whole gradient; detectron2 itself clips each parameter by itself."""

    def __init__(self, params: Any, *, max_norm: float, **options: Any) -> None:
        """Create the optimiser.

        Args:
            params: Parameters or groups of them.
            max_norm: Largest norm of the whole gradient; zero switches clipping off.
            options: Further arguments of AdamW.
        """
        super().__init__(params, **options)
        self.max_norm = max_norm

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Clip and update."""
        if self.max_norm > 0:
            every = [parameter for group in self.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(every, self.max_norm)
        return super().step(cast("Any", closure))


def build_optimizer(
    model: nn.Module, *, lr: float, backbone_multiplier: float = 0.1, max_norm: float = 0.1, **options: Any
) -> ClippedAdamW:
    """Return the optimiser of a model.

    Args:
        model: One of our models.
        lr: Peak learning rate.
        backbone_multiplier: Factor of the learning rate for the backbone.
        max_norm: Largest norm of the whole gradient; zero switches clipping off.
        options: Further arguments of AdamW, such as `weight_decay`, which applies to all parameters.
    """
    backbone: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (backbone if "backbone" in name.split(".") else rest).append(parameter)
    groups = [{"params": rest, "lr": lr}, {"params": backbone, "lr": lr * backbone_multiplier}]
    options = {"weight_decay": 1e-4} | options
    return ClippedAdamW([group for group in groups if group["params"]], lr=lr, max_norm=max_norm, **options)
