"""Predictions with masks, Targets, Matches -> DETR's two mask losses, on the matched predictions of the last layer.

Known difference: padding is left out of both terms, so that a loss does not depend on the other images of its batch.
The authors' code averages and sums over the whole canvas, and remarks that it should not; `padding=True` does so too.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ssldet.types import Matches, Predictions, Targets


@dataclass(frozen=True, kw_only=True)
class MaskFocalTerm:
    """Focal loss (Lin et al. 2017) of each pixel of a mask, averaged over the pixels.

    Attributes:
        weight: Factor in the total.
        alpha: Weight of pixels inside the true mask; those outside weigh one minus this.
        gamma: Exponent by which pixels that are right already count less.
        padding: Count the pixels of padding too, as the authors' code does.
    """

    name: ClassVar[str] = "mask_focal"
    weight: float = 1.0
    alpha: float = 0.25
    gamma: float = 2.0
    padding: bool = False

    def __call__(
        self, predictions: Predictions, targets: Targets, matches: Matches, num_boxes: float
    ) -> Float[Tensor, " L"]:
        """Return the sum over matches divided by `num_boxes` for the last layer, and zero for the others."""
        from torchvision.ops import sigmoid_focal_loss  # here, because torchvision takes as long to import as torch

        masks, truth, counted = _compared(predictions, targets, matches, padding=self.padding)
        loss = sigmoid_focal_loss(masks, truth, alpha=self.alpha, gamma=self.gamma) * counted
        return _last(loss.sum(1) / counted.sum(1).clamp(min=1), predictions) / num_boxes


@dataclass(frozen=True, kw_only=True)
class MaskDiceTerm:
    """One minus the Dice overlap of masks, with one added to its numerator and denominator.

    Attributes:
        weight: Factor in the total.
        padding: Count the pixels of padding too, as the authors' code does.
    """

    name: ClassVar[str] = "mask_dice"
    weight: float = 1.0
    padding: bool = False

    def __call__(
        self, predictions: Predictions, targets: Targets, matches: Matches, num_boxes: float
    ) -> Float[Tensor, " L"]:
        """Return the sum over matches divided by `num_boxes` for the last layer, and zero for the others."""
        masks, truth, counted = _compared(predictions, targets, matches, padding=self.padding)
        inside = masks.sigmoid() * counted
        shared, sizes = (inside * truth).sum(1), inside.sum(1) + truth.sum(1)
        return _last(1 - (2 * shared + 1) / (sizes + 1), predictions) / num_boxes


def _compared(
    predictions: Predictions, targets: Targets, matches: Matches, *, padding: bool
) -> tuple[Float[Tensor, "N K"], Float[Tensor, "N K"], Float[Tensor, "N K"]]:
    """Return logits, truth and which pixels count, for each match of the last layer."""
    if predictions.masks is None or targets.masks is None:
        raise ValueError("mask terms need targets with masks, and a criterion with `draw`")
    last = matches.layer == len(predictions.logits) - 1
    truth = targets.masks[matches.target[last]].flatten(1)
    padded = None if padding or predictions.encoded_images is None else predictions.encoded_images.canvas
    counted = torch.ones_like(truth) if padded is None else ~padded[matches.image[last]].flatten(1)
    return predictions.masks.flatten(1).float(), truth.float(), counted.float()


def _last(values: Float[Tensor, " N"], predictions: Predictions) -> Float[Tensor, " L"]:
    """Return zero for every layer but the last, which gets the sum."""
    nothing = values.new_zeros(len(predictions.logits) - 1)
    return torch.cat([nothing, values.sum().unsqueeze(0)])
