"""frozen network -> the same network with its fixed norms inside its convolutions, and their weights channels-last.

A fixed norm scales and shifts what a convolution returns, and so may the convolution's own weights. The copy is derived
when it is first needed and again whenever a weight has changed; it is no part of any state.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from ssldet.nn.backbones.norms import FixedNorm, FixedNormAct
from ssldet.nn.backbones.resting import Watch, can_be_watched, is_at_rest, weights_of

Run = Callable[[nn.Module, Tensor], Sequence[Tensor]]
"""body, `B 3 H W` -> levels."""
LARGEST_ERROR = 0.01
"""Share of a level's norm by which the copy may differ, in whatever precision the device computes; all of it differs if
something else than its norm reads what a convolution returns, or if its weights are not what it multiplies by."""


class FoldedCopy:
    """The copy of one network. A deep copy of this, as of an averaged model, begins without one."""

    def __init__(self) -> None:
        """Begin without a copy."""
        self._copy: nn.Module | None = None
        self._made_of = Watch()

    def __deepcopy__(self, _: object) -> "FoldedCopy":
        """Return one without a copy."""
        return FoldedCopy()

    def __reduce__(self) -> tuple[type["FoldedCopy"], tuple[()]]:
        """Be pickled as one without a copy."""
        return FoldedCopy, ()

    def of(self, body: nn.Module, run: Run, images: Tensor) -> nn.Module:
        """Return what computes the levels of a network that does not learn: its copy, or itself where there is none.

        There is none for a network that trains, is watched by hooks or is being traced, or that has no norm to fold.

        Args:
            body: The network; none of its weights needs a gradient.
            run: Computes its levels.
            images: Normalised images, by one of which a new copy is compared with the network.
        """
        if torch.compiler.is_compiling() or _is_traced() or not is_at_rest(body):
            return body
        weights = list(weights_of(body))
        if not can_be_watched(weights):
            return body
        if not self._made_of.unchanged(weights):
            self._copy = _folded(body, run, images[:1])
            self._made_of.note(weights)
        return body if self._copy is None else self._copy


def _is_traced() -> bool:
    traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]  # torch says no types
    return traced


@torch.no_grad()
def _folded(body: nn.Module, run: Run, image: Tensor) -> nn.Module | None:
    """Return a folded copy; `None` where nothing can be folded, or where the copy computes something else."""
    with torch.autocast(image.device.type, enabled=False):
        pairs, expected = _pairs(body, run, image)
        if not pairs:
            return None
        copy = deepcopy(body)
        for conv, norm in pairs:
            _fold(copy, conv, norm)
        copy.to(memory_format=torch.channels_last)
        levels = run(copy, image)
    for level, wanted in zip(levels, expected, strict=True):
        if not float((level - wanted).norm()) <= LARGEST_ERROR * float(wanted.norm()):
            return None
    return copy


def _pairs(body: nn.Module, run: Run, image: Tensor) -> tuple[list[tuple[str, str]], Sequence[Tensor]]:
    """Return the names of convolutions and of the norms that read what they return, and the levels of the image."""
    returned: dict[int, tuple[str, Tensor]] = {}
    pairs: list[tuple[str, str]] = []
    calls: list[str] = []

    def after_conv(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def note(module: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
            calls.append(name)
            returned[id(result)] = name, result

        return note

    def before_norm(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            calls.append(name)
            if id(given[0]) in returned:
                pairs.append((returned[id(given[0])][0], name))

        return note

    hooks = []
    for name, part in body.named_modules():
        if isinstance(part, nn.Conv2d) and part.weight.dtype == torch.float32:
            hooks.append(part.register_forward_hook(after_conv(name)))
        elif isinstance(part, FixedNorm):
            hooks.append(part.register_forward_pre_hook(before_norm(name)))
    try:
        levels = run(body, image)
    finally:
        for hook in hooks:
            hook.remove()
    return [pair for pair in pairs if all(calls.count(name) == 1 for name in pair)], levels


def _fold(body: nn.Module, conv_name: str, norm_name: str) -> None:
    """Move a norm into the convolution before it, computed in 64 bits."""
    conv, norm = body.get_submodule(conv_name), body.get_submodule(norm_name)
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, FixedNorm)
    scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
    before = 0 if conv.bias is None else conv.bias.double()
    bias = norm.bias.double() + (before - norm.running_mean.double()) * scale
    conv.weight = nn.Parameter((conv.weight.double() * scale.view(-1, 1, 1, 1)).float(), requires_grad=False)
    conv.bias = nn.Parameter(bias.float(), requires_grad=False)
    rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, FixedNormAct) else nn.Identity()
    body.set_submodule(norm_name, rest.eval())
