"""dataclasses that hold tensors -> the same on another device or in page-locked memory."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Movable = TypeVar("Movable", bound="OnDevice")


class OnDevice:
    """Mixin of dataclasses that moves all of their tensors at once, nested ones too."""

    __slots__ = ()

    def to(self: Movable, device: torch.device | str, *, non_blocking: bool = False) -> Movable:
        """Return a copy on another device."""
        return _each(self, lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self: Movable) -> Movable:
        """Return a copy in page-locked memory; the data loader makes one before a batch goes to an accelerator."""
        return _each(self, lambda part: part.pin_memory())


def _each(value: Movable, change: Callable[[Any], Any]) -> Movable:
    moved = {f.name: _changed(getattr(value, f.name), change) for f in fields(value)}  # type: ignore[arg-type]
    return replace(value, **moved)  # type: ignore[type-var]


def _changed(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, Tensor | OnDevice):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(_changed(item, change) for item in value)
    return value
