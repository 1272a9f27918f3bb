"""a network of the user's own -> Network: registered under a name, in this process or by an installed package."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from ssldet.errors import ConfigError
from ssldet.nn.backbones.config import BackboneConfig
from ssldet.nn.backbones.network import IMAGENET_MEAN, IMAGENET_STD, Network
from ssldet.nn.backbones.norms import freeze_norms
from ssldet.registry import find, names

GROUP = "ssldet.backbones"

Factory = Callable[[], nn.Module]

_registered: dict[str, nn.Module | Factory] = {}


def own_names() -> list[str]:
    """Return the names that were registered in this process or by an installed package."""
    return sorted({*_registered, *names(GROUP)})


def remember(name: str, network: nn.Module | Factory) -> None:
    """Store a network, or a function that makes one, under a name; the last one stored counts."""
    _registered[name] = network


def name_for(network: nn.Module) -> str:
    """Return the name under which a network is registered, else a free one after its class."""
    for name, registered in _registered.items():
        if registered is network:
            return name
    base = type(network).__name__
    free = (name for number in count(1) if (name := base if number == 1 else f"{base}-{number}") not in own_names())
    return next(free)


def build_own(name: str, config: BackboneConfig) -> Network:
    """Copy a registered network, or call its factory.

    Raises:
        ConfigError: The factory fails or does not return a module, or its mean or deviation is not three numbers.
    """
    registered = _registered[name] if name in _registered else find(GROUP, name)
    try:
        module = deepcopy(registered) if isinstance(registered, nn.Module) else registered()
    except (Exception, SystemExit) as error:
        raise ConfigError(f"its factory fails: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise ConfigError(f"its factory returns {type(module).__name__!r}; return an nn.Module")
    original = tuple(module.state_dict())
    if config.frozen_norm:
        freeze_norms(module)
    return Network(
        body=module,
        run=_run,
        original=original,
        mean=_three(module, "mean", IMAGENET_MEAN),
        std=_three(module, "std", IMAGENET_STD),
        interpolation=getattr(module, "interpolation", "bilinear"),
        keeps_weights=True,
    )


def _run(body: nn.Module, images: Tensor) -> list[Tensor]:
    output: Any = body(images)
    if isinstance(output, Mapping):
        return list(output.values())
    return list(output) if isinstance(output, Sequence) else [output]


def _three(module: nn.Module, name: str, default: Sequence[float]) -> Sequence[float]:
    value = getattr(module, name, default)
    try:
        numbers = torch.as_tensor(value, dtype=torch.float32).flatten().tolist()
    except (TypeError, ValueError, RuntimeError):
        numbers = []
    if len(numbers) != 3:
        raise ConfigError(
            f"its attribute {name!r} is {value!r}; make it three numbers, one per channel, for pixels in 0..1"
        )
    return numbers
