"""a network -> the same with batch normalisation that never changes, and statistics to fix it at."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d


class FixedNorm(FrozenBatchNorm2d):  # type: ignore[misc]  # torchvision has no types
    """Batch normalisation that never changes: torchvision's, but in one pass and in the precision of the features."""

    def forward(self, features: Float[Tensor, "B E h w"]) -> Float[Tensor, "B E h w"]:
        """Normalise by the fixed statistics."""
        return F.batch_norm(
            features, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


def freeze_norms(parent: nn.Module) -> None:
    """Replace every freshly made plain batch norm inside by its fixed form."""
    for name, child in parent.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(parent, name, FixedNorm(child.num_features, eps=child.eps))
        else:
            freeze_norms(child)


def calibrate(network: nn.Module, images: Float[Tensor, "B 3 H W"]) -> None:
    """Set the statistics of every batch norm from these images, layer by layer, as if it had long seen such images.

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
