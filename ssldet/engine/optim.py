"""Objective, step -> optimiser, learning rate, gradient norm, averaged weights."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ssldet.engine.run import OptimConfig
from ssldet.errors import ConfigError
from ssldet.task import Objective

Tensors = tuple[Tensor, ...] | list[Tensor]

MOMENTS = {"adamw": 2, "sgd": 1, "lars": 1}
"""Kind of an optimiser -> numbers that it keeps of each parameter."""


def build_optimizer(objective: Objective, config: OptimConfig) -> Optimizer:
    """Return an optimiser of all trainable parameters, with the backbone in a group of its own.

    Layers that say where the detector looks have one too if their rate differs. Decay applies to every parameter, norms
    and biases included, as in DETR's code. Each group keeps its peak rate under the key `peak`; `set_rates` scales it.

    Args:
        objective: Detector and heads.
        config: Kind of the optimiser, its rates and its decay.

    Raises:
        ConfigError: No parameter is trainable.
    """
    found = _groups(objective, config)
    groups = [{"params": members, "lr": rate, "peak": rate} for members, rate in found]
    fused = config.fused == "on" or found[0][0][0].is_cuda or None
    if config.optimizer == "adamw":
        return AdamW(groups, weight_decay=config.weight_decay, fused=fused)
    if config.optimizer == "sgd":
        return SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay, fused=fused)
    timm: Any = import_module("timm.optim")
    lars: Optimizer = timm.Lars(groups, momentum=config.momentum, weight_decay=config.weight_decay)
    return lars


def count_learning(objective: Objective, config: OptimConfig) -> int:
    """Return how many numbers an optimiser of `build_optimizer` changes, without making one, which takes seconds.

    Args:
        objective: Detector and heads.
        config: Rates of the optimiser.

    Raises:
        ConfigError: No parameter is trainable.
    """
    return sum(parameter.numel() for members, _ in _groups(objective, config) for parameter in members)


def _groups(objective: Objective, config: OptimConfig) -> list[tuple[list[nn.Parameter], float]]:
    """Return the groups that have trainable parameters; raises where there are none."""
    found = [(members, rate) for members, rate in _members_and_rates(objective, config) if members]
    if not found:
        raise ConfigError("the task trains no section that has parameters; nothing would learn")
    return found


def _members_and_rates(objective: Objective, config: OptimConfig) -> list[tuple[list[nn.Parameter], float]]:
    """Return the trainable parameters of each group, and its peak rate."""
    detector = objective.detector
    # A factor of one makes no group, so that checkpoints of runs from before it can be gone on from.
    layers = detector.sampling_layers() if config.lr_sampling_factor != 1 else ()
    sampling = tuple(f"detector.{layer}." for layer in layers)
    backbone = tuple(f"detector.{part}." for part in detector.sections.get("backbone", ()))
    groups: tuple[list[nn.Parameter], ...] = ([], [], [])
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            groups[1 if name.startswith(backbone) else 2 if name.startswith(sampling) else 0].append(parameter)
    return list(zip(groups, (config.lr, config.lr_backbone, config.lr * config.lr_sampling_factor), strict=True))


def take_up(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Go on from the state of an optimiser, in the form of this one: a run may change its device on the way.

    Args:
        optimizer: As built for this run on this device.
        state: What `state_dict` of such an optimiser returned.
    """
    own = {name: optimizer.defaults[name] for name in ("fused",) if name in optimizer.defaults}
    optimizer.load_state_dict({**state, "param_groups": [{**group, **own} for group in state["param_groups"]]})


def learning(optimizer: Optimizer) -> list[nn.Parameter]:
    """Return the parameters that an optimiser changes."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def schedule(config: OptimConfig, total_steps: int) -> Callable[[int], float]:
    """Return a function from the step to the share of the peak learning rate; it has no state to save.

    Args:
        config: Shape of the schedule.
        total_steps: Length of the run.
    """
    drops = [round(drop * total_steps) for drop in config.drops]

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        if config.schedule == "step":
            return config.drop_factor ** sum(step >= drop for drop in drops)
        if config.schedule == "cosine":
            progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return 1.0

    return factor


def set_rates(optimizer: Optimizer, factor: float) -> None:
    """Set every group to its peak rate times this factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Float[Tensor, ""]:
    """Return the norm of the whole gradient; a parameter that no loss reached counts as zero."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(gradients) if gradients else parameters[0].new_zeros(())


def clip(parameters: Iterable[nn.Parameter], norm: Float[Tensor, ""], limit: float) -> None:
    """Scale the whole gradient down to a norm.

    Args:
        parameters: Trainable parameters.
        norm: Norm of the gradient now.
        limit: Largest norm; zero leaves the gradient alone.
    """
    if limit > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)


def average_of(objective: Objective, decay: float, ramp: float = 0.0) -> AveragedModel:
    """Return a copy whose weights follow the objective's as an exponential moving average.

    Args:
        objective: Already on its device.
        decay: Weight of the old average at every step.
        ramp: Slowness with which the decay rises to this, see `OptimConfig.ema_ramp`.
    """
    if not ramp:
        return AveragedModel(objective, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]  # torch says no types

    @torch.no_grad()
    def move(averages: Tensors, values: Tensors, _: Tensor | int) -> None:
        # The count is saved with the average, so that a resumed run goes on with the decay that is due. It is read on
        # the host, where it is kept: what is given here is a copy on the device, for which a step would wait.
        count = int(average.n_averaged)
        now = min(decay, (1 + count) / (ramp + count))
        torch._foreach_lerp_(averages, values, 1 - now)

    average = AveragedModel(objective, multi_avg_fn=move)
    return average
