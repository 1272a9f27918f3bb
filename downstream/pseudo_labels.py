"""a teacher's predictions -> pseudo labels: what it is sure of, by a threshold per class that follows its scores."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ssldet import ranks
from ssldet.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from ssldet.types import Predictions, Targets

NARROWEST = 1e-4
"""Side, as a share of the image's, below which a box inside the image is no pseudo label."""


class PseudoLabels(nn.Module):
    """Keeps the answers of a teacher whose score reaches the threshold of their class.

    The threshold of a class is the common one, scaled by how sure the teacher is of what it finds of this class,
    relative to the class of which it is surest (FreeMatch, Wang et al. 2023, whose common threshold moves too). Without
    it, a class that is learned slowly would get no pseudo labels and fall further behind.

    Attributes:
        confidence: Running mean score of what is found of each class; 0 for a class that was not found yet.
    """

    confidence: Float[Tensor, " C"]

    def __init__(self, num_classes: int, *, threshold: float, adaptive: float, least: float, momentum: float) -> None:
        """Start without knowing any class.

        Args:
            num_classes: Number of classes.
            threshold: Threshold of the class of which the teacher is surest.
            adaptive: How far the others follow, from 0 (not at all) to 1.
            least: Lowest threshold of a class, and the score from which an answer counts in the mean.
            momentum: Share of a mean that each call of `follow` keeps.
        """
        super().__init__()
        self._threshold, self._adaptive, self._least, self._momentum = threshold, adaptive, least, momentum
        self.register_buffer("confidence", torch.zeros(num_classes))

    def thresholds(self) -> Float[Tensor, " C"]:
        """Return the threshold of each class; that of a class which was not found yet is the common one."""
        known = self.confidence > 0
        relative = torch.where(known, self.confidence / self.confidence.max().clamp(min=1e-12), 1.0)
        return (self._threshold * (1 - self._adaptive * (1 - relative))).clamp(min=self._least)

    @torch.no_grad()
    def follow(self, predictions: Predictions | None) -> None:
        """Take the scores of a batch into the means; every rank must call this, and all come to the same means.

        Args:
            predictions: Answers of the teacher; `None` where this rank has none.
        """
        sums = torch.zeros(2, len(self.confidence), device=self.confidence.device)
        if predictions is not None:
            scores, labels = (values.flatten() for values in _answers(predictions))
            counts = (scores >= self._least).float()
            sums[0].index_add_(0, labels, scores * counts)
            sums[1].index_add_(0, labels, counts)
        total, found = ranks.reduce_mean(sums)
        mean = total / found.clamp(min=1e-12)
        moved = torch.where(self.confidence > 0, self.confidence.lerp(mean, 1 - self._momentum), mean)
        self.confidence.copy_(torch.where(found > 0, moved, self.confidence))

    @torch.no_grad()
    def forward(self, predictions: Predictions) -> tuple[list[Targets], Float[Tensor, " N"]]:
        """Return the pseudo labels of each image, and the scores of all of them together.

        Args:
            predictions: Answers of the teacher; the last layer counts, and of each query its most likely class.
        """
        scores, labels = _answers(predictions)
        corners = cxcywh_to_xyxy(predictions.boxes[-1].float()).clamp(0, 1)
        wide = (corners[..., 2:] - corners[..., :2] >= NARROWEST).all(-1)
        sure = wide & (scores >= self.thresholds()[labels])
        boxes = xyxy_to_cxcywh(corners)
        targets = [
            Targets(boxes=boxes[image][keep], labels=labels[image][keep]) for image, keep in enumerate(sure.unbind())
        ]
        return targets, scores[sure]


def no_targets(device: torch.device) -> Targets:
    """Return the targets of an image in which there is nothing to find."""
    return Targets(boxes=torch.zeros(0, 4, device=device), labels=torch.zeros(0, dtype=torch.int64, device=device))


def _answers(predictions: Predictions) -> tuple[Float[Tensor, "B Q"], Int[Tensor, "B Q"]]:
    """Return score and label of each query."""
    answers = predictions.scores.of_each_query(predictions.logits[-1].float())
    return answers.probabilities, answers.labels
