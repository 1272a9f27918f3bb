"""backbone, the copy that a library loaded -> `Comparison` of their tensors and of their features of random images."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from downstream.export.proof import Comparison
from ssldet.chance import generator
from ssldet.detectors.on_backbone import network_of
from ssldet.errors import CheckpointError
from ssldet.nn.backbones import Backbone, original_state
from ssldet.task import Objective

NO_BACKBONE = "the detector has no backbone to write by itself"
"""Why no format of backbones can hold a detector like FP-DETR."""


def backbone_of(objective: Objective, out: Path) -> Backbone:
    """Return the backbone of a detector.

    Args:
        objective: The detector inside its task.
        out: File or folder to write, for the message.

    Raises:
        CheckpointError: The detector has no backbone that can be written by itself.
    """
    backbone = network_of(objective.detector)
    if backbone is None:
        raise CheckpointError(f"{out}: this detector has no backbone to write; export it as 'safetensors'")
    return backbone


def weights_of(backbone: Backbone) -> dict[str, Tensor]:
    """Return a backbone's weights under their original names, as copies on the CPU."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in original_state(backbone).items()}


def same_backbone(
    backbone: Backbone, copy: nn.Module, features: Callable[[Tensor], Tensor], size: tuple[int, int]
) -> Comparison:
    """Return the comparison of a backbone with the library's model: all tensors except those that the backbone lacks.

    Args:
        backbone: The original.
        copy: The library's model with the written weights.
        features: Computes that model's features: `B 3 H W` -> what the backbone's last level should be.
        size: Height and width of the random images.
    """
    theirs: Mapping[str, Tensor] = {
        name: value for name, value in copy.state_dict().items() if name not in backbone.pruned
    }

    def difference() -> float:
        device = next(backbone.parameters()).device
        images = torch.randn(2, 3, *size, generator=generator("export")).to(device)
        # The memory format that the backbone uses, since another one would change the order of sums.
        images = images.contiguous(memory_format=torch.channels_last)
        was_training = backbone.training
        try:
            with torch.no_grad():
                copy.to(device).eval()
                ours, back = backbone.eval()(images), features(images)
        finally:
            backbone.train(was_training)
        return float((ours - back).abs().max()) if ours.shape == back.shape else float("inf")

    return Comparison(ours=original_state(backbone), theirs=theirs, difference=difference)
