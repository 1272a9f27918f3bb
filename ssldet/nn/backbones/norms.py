"""network -> the same network with fixed batch normalisation, and the statistics for it."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

PLAIN_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


class FixedNorm(nn.Module):
    """Batch normalisation that never changes: torchvision's, but in one pass and in the precision of the features."""

    weight: Float[Tensor, " E"]
    bias: Float[Tensor, " E"]
    running_mean: Float[Tensor, " E"]
    running_var: Float[Tensor, " E"]

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        """Start as the identity.

        Args:
            num_features: Number of channels.
            eps: Added to the variance.
        """
        super().__init__()
        self.eps = eps
        for name, start in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((num_features,), start))

    def extra_repr(self) -> str:
        """Say the number of channels and what is added to the variance."""
        return f"{len(self.weight)}, eps={self.eps}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Load the statistics; the counter of steps, which free norms have, is of no use here."""
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, features: Float[Tensor, "B E *cells"]) -> Float[Tensor, "B E *cells"]:
        """Normalise by the fixed statistics."""
        return F.batch_norm(
            features, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


class FixedNormAct(FixedNorm):
    """The same, followed by dropout and activation, which timm's norms bring; timm's own form takes more passes.

    Attributes:
        drop: The norm's dropout; the identity almost everywhere.
        act: The norm's activation.
    """

    def __init__(self, channels: int, eps: float, drop: nn.Module, act: nn.Module) -> None:
        """Take over the parts.

        Args:
            channels: Number of channels.
            eps: What is added to the variance.
            drop: The norm's dropout.
            act: The norm's activation.
        """
        super().__init__(channels, eps=eps)
        self.drop, self.act = drop, act

    def forward(self, features: Float[Tensor, "B E *cells"]) -> Float[Tensor, "B E *cells"]:
        """Normalise by the fixed statistics, and activate."""
        result: Tensor = self.act(self.drop(super().forward(features)))
        return result


def freeze_norms(body: nn.Module) -> None:
    """Replace every batch norm inside by its fixed form, which takes over its statistics."""
    for name, child in body.named_children():
        plain = type(child) in PLAIN_NORMS
        active = isinstance(child, nn.BatchNorm2d) and hasattr(child, "act") and hasattr(child, "drop")
        if (plain or active) and child.running_mean is not None:
            setattr(body, name, _fixed(child))
        else:
            freeze_norms(child)


def _fixed(norm: Any) -> FixedNorm:
    fixed = (
        FixedNormAct(norm.num_features, norm.eps, norm.drop, norm.act)
        if hasattr(norm, "act")
        else FixedNorm(norm.num_features, eps=norm.eps)
    )
    fixed.running_mean, fixed.running_var = norm.running_mean.clone(), norm.running_var.clone()
    if norm.affine:
        fixed.weight, fixed.bias = norm.weight.detach().clone(), norm.bias.detach().clone()
    return fixed


def calibrate(network: nn.Module, images: Float[Tensor, "B c H W"]) -> None:
    """Set the statistics of every batch norm from these images, layer by layer, as training on such images would.

    A network with fresh weights needs this before its norms are fixed: nothing else scales its features.

    Args:
        network: Changed in place.
        images: Normalised images.
    """

    def measure(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        values = inputs[0].float()
        around = [axis for axis in range(values.dim()) if axis != 1]
        norm.get_buffer("running_mean").copy_(values.mean(around))
        norm.get_buffer("running_var").copy_(values.var(around, correction=0))

    norms = [module for module in network.modules() if getattr(module, "running_mean", None) is not None]
    if not norms:
        return
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    was_training = network.training
    try:
        with torch.no_grad():
            network.eval()(images)
    finally:
        for hook in hooks:
            hook.remove()
        network.train(was_training)
