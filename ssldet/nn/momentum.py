"""a network -> a copy that follows it: the moving average of its weights (He et al. 2020), which gets no gradient."""

import math
from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def follower(network: Network) -> Network:
    """Return a copy of a network that gets no gradient; `follow` moves it.

    Args:
        network: With the weights that the copy starts from.
    """
    copy = deepcopy(network)
    copy.requires_grad_(False)
    return copy


@torch.no_grad()
def follow(copy: nn.Module, network: nn.Module, momentum: float) -> None:
    """Move the weights of a copy towards those of its network.

    Buffers, such as the statistics of batch norms, stay the copy's own: it gathers them from what it is shown.

    Args:
        copy: What `follower` returned; changed in place.
        network: The network that learns.
        momentum: Share of the copy's weights that stays; the rest comes from the network.
    """
    weights: list[Tensor] = list(copy.parameters())
    aims: list[Tensor] = list(network.parameters())
    torch._foreach_mul_(weights, momentum)
    torch._foreach_add_(weights, aims, alpha=1.0 - momentum)


def rising(first: float, step: int, total_steps: int) -> float:
    """Return the momentum of a step: it rises from its first value to one, along half a cosine (Grill et al. 2020).

    Args:
        first: Momentum of step 0.
        step: Steps done.
        total_steps: Length of the run.
    """
    return 1 - (1 - first) * (1 + math.cos(math.pi * min(1.0, step / max(1, total_steps)))) / 2
