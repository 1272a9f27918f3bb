"""Predictions, Targets, Matches -> one value per layer: DETR's three loss terms; tasks may add their own.

A term is anything with a name, a weight and this call; the criterion takes an open list of them.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ssldet.boxes import cxcywh_to_xyxy, elementwise_giou
from ssldet.types import Matches, Predictions, Targets


@runtime_checkable
class Term(Protocol):
    """One part of the loss."""

    @property
    def name(self) -> str:
        """Name of the value in logs."""
        ...

    @property
    def weight(self) -> float:
        """Factor of the term in the total."""
        ...

    def __call__(
        self, predictions: Predictions, targets: Targets, matches: Matches, num_boxes: float
    ) -> Float[Tensor, " L"]:
        """Return the unweighted value of every decoder layer.

        Args:
            predictions: Outputs of the detector.
            targets: Targets of the whole batch, concatenated, so that `matches.target` indexes them.
            matches: Which prediction answers which target.
            num_boxes: Number by which sums over boxes are divided.
        """
        ...


@runtime_checkable
class Mean(Protocol):
    """What a term offers beside its value where it divides by a sum of weights of its own instead of `num_boxes`."""

    def divisor(self, predictions: Predictions, matched: int) -> float | None:
        """Return that sum over the images of this rank; `None` where it divides by `num_boxes` after all.

        Args:
            predictions: Outputs of the detector.
            matched: Queries of one layer that answer a target, over all images.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ClassTerm:
    """Classification loss of every query, as the detector's class scores define it; unmatched queries are "no object".

    Attributes:
        weight: Factor in the total.
        no_object_weight: Weight of queries without a target, which are many, in losses that weigh them.
    """

    name: ClassVar[str] = "class"
    weight: float = 1.0
    no_object_weight: float = 0.1

    def __call__(
        self, predictions: Predictions, targets: Targets, matches: Matches, num_boxes: float
    ) -> Float[Tensor, " L"]:
        """Return the loss of every layer."""
        logits, scores = predictions.logits.float(), predictions.scores
        labels = logits.new_full(logits.shape[:-1], scores.num_classes(logits.shape[-1]), dtype=torch.long)
        labels[matches.layer, matches.image, matches.query] = targets.labels[matches.target]
        return scores.loss(logits, labels, no_object_weight=self.no_object_weight, num_boxes=num_boxes)

    def divisor(self, predictions: Predictions, matched: int) -> float | None:
        """Return what the detector's class scores divide by."""
        queries = predictions.logits.shape[1] * predictions.logits.shape[2]
        return predictions.scores.divisor(queries, matched, self.no_object_weight)


@dataclass(frozen=True, kw_only=True)
class BoxL1Term:
    """Distance of matched boxes in normalised cxcywh, summed over the four numbers.

    Attributes:
        weight: Factor in the total.
    """

    name: ClassVar[str] = "box_l1"
    weight: float = 5.0

    def __call__(
        self, predictions: Predictions, targets: Targets, matches: Matches, num_boxes: float
    ) -> Float[Tensor, " L"]:
        """Return the sum over matches divided by `num_boxes`."""
        boxes = predictions.boxes[matches.layer, matches.image, matches.query].float()
        distance = (boxes - targets.boxes[matches.target]).abs().sum(-1)
        return sum_by_layer(distance, matches, len(predictions.boxes)) / num_boxes


@dataclass(frozen=True, kw_only=True)
class BoxGIoUTerm:
    """One minus the generalised overlap of matched boxes.

    Attributes:
        weight: Factor in the total.
    """

    name: ClassVar[str] = "box_giou"
    weight: float = 2.0

    def __call__(
        self, predictions: Predictions, targets: Targets, matches: Matches, num_boxes: float
    ) -> Float[Tensor, " L"]:
        """Return the sum over matches divided by `num_boxes`."""
        boxes = predictions.boxes[matches.layer, matches.image, matches.query].float()
        overlap = elementwise_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets.boxes[matches.target]))
        return sum_by_layer(1 - overlap, matches, len(predictions.boxes)) / num_boxes


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureReconstruction:
    """Squared distance between the reconstruction of a matched query and its patch's feature (UP-DETR, equation 2).

    Attributes:
        head: Decoder states -> features.
        weight: Weight of the term in the total loss.
    """

    name: ClassVar[str] = "reconstruction"
    head: nn.Module
    weight: float = 1.0

    def __call__(
        self, predictions: Predictions, targets: Targets, matches: Matches, num_boxes: float
    ) -> Float[Tensor, " L"]:
        """Return the sum over matches and channels, divided by `num_boxes`; both vectors are scaled to length one."""
        assert targets.embeddings is not None
        states = predictions.states[matches.layer, matches.image, matches.query]
        reconstructed = F.normalize(self.head(states.float()), dim=-1)
        embeddings = F.normalize(targets.embeddings.float(), dim=-1)[matches.target]
        distance = (reconstructed - embeddings).square().sum(-1)
        return sum_by_layer(distance, matches, len(predictions.states)) / num_boxes


def sum_by_layer(values: Float[Tensor, " N"], matches: Matches, layers: int) -> Float[Tensor, " L"]:
    """Add up the values of the matches of each decoder layer.

    Args:
        values: One value per match.
        matches: The layer of each match.
        layers: Number of decoder layers.
    """
    return values.new_zeros(layers).index_add(0, matches.layer, values)
