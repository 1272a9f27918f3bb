"""a teacher's predictions -> pseudo labels: what it is sure of, by a threshold per class that follows its scores."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ssldet import ranks
from ssldet.boxes import cxcywh_to_xyxy, pairwise_iou, xyxy_to_cxcywh
from ssldet.types import Predictions, Targets

NARROWEST = 1e-4
"""Side, as a share of the image's, below which a box inside the image is no pseudo label."""
SAME_PLACE = 0.5
"""Overlap from which two boxes are answers for one place."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a teacher finds in one image.

    Attributes:
        sure: What counts as a label.
        scores: How sure it is of each of these.
        unsure: Normalised cxcywh of what it may have found: of a score from the least to the threshold, or found twice.
    """

    sure: Targets
    scores: Float[Tensor, " T"]
    unsure: Float[Tensor, "N 4"]


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
    def forward(self, predictions: Predictions) -> list[Found]:
        """Return what counts as a label in each image, and what may be an object and is neither label nor background.

        Of several answers for one place the surest is a label: a teacher that knows little answers twice.

        Args:
            predictions: Answers of the teacher; the last layer counts, and of each query its most likely class.
        """
        scores, labels = _answers(predictions)
        corners = cxcywh_to_xyxy(predictions.boxes[-1].float()).clamp(0, 1)
        wide = (corners[..., 2:] - corners[..., :2] >= NARROWEST).all(-1)
        sure = _one_per_place(corners, scores, wide & (scores >= self.thresholds()[labels]))
        unsure = wide & (scores >= self._least) & ~sure
        boxes = xyxy_to_cxcywh(corners)
        return [
            Found(
                sure=Targets(boxes=boxes[image][keep], labels=labels[image][keep]),
                scores=scores[image][keep],
                unsure=boxes[image][unsure[image]],
            )
            for image, keep in enumerate(sure.unbind())
        ]


def _one_per_place(
    corners: Float[Tensor, "B Q 4"], scores: Float[Tensor, "B Q"], chosen: Bool[Tensor, "B Q"]
) -> Bool[Tensor, "B Q"]:
    """Return which of the chosen boxes overlap no chosen box of a higher score, of whatever class."""
    from torchvision.ops import nms  # here, because torchvision takes as long to import as torch

    kept = torch.zeros_like(chosen)
    for image, places in enumerate(chosen):
        numbers = places.nonzero().flatten()
        kept[image, numbers[nms(corners[image, numbers], scores[image, numbers], SAME_PLACE)]] = True
    return kept


def spared(predictions: Predictions, found: Mapping[int, Found]) -> Predictions:
    """Return predictions whose class is not judged where the teacher is unsure: their logits pass no gradient on.

    A query that answers for such a place would be taught that nothing is there, since the place has no label. One that
    overlaps more with something of which the teacher is sure is judged.

    Args:
        predictions: Of the student, with its encoder's proposals if it makes any.
        found: Number of an image within the batch -> what the teacher found in it.
    """
    boxes = cxcywh_to_xyxy(predictions.boxes.detach().float())
    doubtful = torch.zeros(boxes.shape[:-1], dtype=torch.bool, device=boxes.device)
    for image, one in found.items():
        sure = _overlap(boxes[:, image], one.sure.boxes)
        doubtful[:, image] = _overlap(boxes[:, image], one.unsure) > sure.clamp(min=SAME_PLACE)
    logits = torch.where(doubtful.unsqueeze(-1), predictions.logits.detach(), predictions.logits)
    proposals = None if predictions.proposals is None else spared(predictions.proposals, found)
    return replace(predictions, logits=logits, proposals=proposals)


def _overlap(corners: Float[Tensor, "L Q 4"], others: Float[Tensor, "N 4"]) -> Float[Tensor, "L Q"]:
    """Return the largest overlap of each box with any of some others, which are cxcywh; zero if there are none."""
    if not len(others):
        return corners.new_zeros(corners.shape[:-1])
    return pairwise_iou(corners, cxcywh_to_xyxy(others)).amax(-1)


def no_targets(device: torch.device) -> Targets:
    """Return the targets of an image in which there is nothing to find."""
    return Targets(boxes=torch.zeros(0, 4, device=device), labels=torch.zeros(0, dtype=torch.int64, device=device))


def _answers(predictions: Predictions) -> tuple[Float[Tensor, "B Q"], Int[Tensor, "B Q"]]:
    """Return score and label of each query."""
    answers = predictions.scores.of_each_query(predictions.logits[-1].float())
    return answers.probabilities, answers.labels
