"""class logits -> probabilities, cost, loss: the one owner of what the outputs of a class head mean.

DETR's class head has one row per class and a last one for "no object", read by a softmax. Deformable DETR's has one row
per class, each read by a sigmoid and taught by focal loss; a query finds nothing where every class is unlikely.

Axes are those of `ssldet.types`: L layers, B images, Q queries, T targets, R rows of the class head, C classes.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


class ClassAnswers(NamedTuple):
    """What class logits say: one entry per detection, in the order of the detections.

    Attributes:
        queries: The query that each detection comes from.
        labels: Its class.
        probabilities: How likely that is.
    """

    queries: Int[Tensor, "B N"]
    labels: Int[Tensor, "B N"]
    probabilities: Float[Tensor, "B N"]


@dataclass(frozen=True)
class ClassScores(ABC):
    """How class logits are read.

    Attributes:
        extra_rows: Rows of the class head beyond one per class; they come last.
    """

    extra_rows: ClassVar[int]

    @abstractmethod
    def probabilities(self, logits: Float[Tensor, "*N R"]) -> Float[Tensor, "*N C"]:
        """Return the probability of each class, "no object" left out."""

    def of_each_query(self, logits: Float[Tensor, "B Q R"]) -> ClassAnswers:
        """Return each query's most likely class, "no object" left out."""
        likely, labels = self.probabilities(logits).max(-1)
        queries = torch.arange(logits.shape[1], device=logits.device)
        return ClassAnswers(queries.expand(len(logits), -1), labels, likely)

    @abstractmethod
    def detected(self, logits: Float[Tensor, "B Q R"]) -> ClassAnswers:
        """Return the queries and classes that count as detections, as the authors of this kind of head choose them."""

    @abstractmethod
    def most_likely(self, logits: Float[Tensor, "*N R"]) -> Int[Tensor, "*N"]:
        """Return the most likely class of each query; the number of classes stands for "no object"."""

    @abstractmethod
    def says_object(self, logits: Float[Tensor, "*N R"]) -> Bool[Tensor, "*N"]:
        """Return whether a query claims to have found anything."""

    @abstractmethod
    def cost(self, logits: Float[Tensor, "L B Q R"], labels: Int[Tensor, "B T"]) -> Float[Tensor, "L B Q T"]:
        """Return the matching cost of each query for each target of its image; NaN for labels that have no row."""

    @abstractmethod
    def loss(
        self,
        logits: Float[Tensor, "L B Q R"],
        labels: Int[Tensor, "L B Q"],
        *,
        no_object_weight: float,
        num_boxes: float,
    ) -> Float[Tensor, " L"]:
        """Return the classification loss of each layer.

        Args:
            logits: Outputs of the class head.
            labels: The right class of each query; the number of classes stands for "no object".
            no_object_weight: Weight of queries without an object, for losses that need one.
            num_boxes: Number of targets in the batch, for losses that are normalised by it.
        """

    def divisor(self, queries: int, matched: int, no_object_weight: float) -> float | None:
        """Return the sum of weights that `loss` divides by, of this rank's batch; `None` where it takes `num_boxes`.

        The criterion adds it up over the ranks, so that a mean over queries is one over the queries of all ranks.

        Args:
            queries: Number of queries of one layer, over all images.
            matched: How many of them answer a target.
            no_object_weight: Weight of the others.
        """
        return None

    def first_bias(self) -> float | None:
        """Return the value at which the biases of a class head start; `None` leaves the layer's own."""
        return None

    @abstractmethod
    def described(self) -> dict[str, Any]:
        """Return plain values from which other programs know how to make detections of logits."""

    def num_classes(self, rows: int) -> int:
        """Return the number of classes of a head with this many rows."""
        return rows - self.extra_rows


@dataclass(frozen=True)
class SoftmaxScores(ClassScores):
    """A softmax over all classes and "no object", which is the last row (DETR, section 3.1)."""

    extra_rows: ClassVar[int] = 1

    def probabilities(self, logits: Float[Tensor, "*N R"]) -> Float[Tensor, "*N C"]:
        """Return the probability of each class, "no object" left out."""
        return logits.softmax(-1)[..., :-1]

    def detected(self, logits: Float[Tensor, "B Q R"]) -> ClassAnswers:
        """Return every query with its most likely class, in the order of the queries."""
        return self.of_each_query(logits)

    def most_likely(self, logits: Float[Tensor, "*N R"]) -> Int[Tensor, "*N"]:
        """Return the row with the largest logit; the last stands for "no object"."""
        return logits.argmax(-1)

    def says_object(self, logits: Float[Tensor, "*N R"]) -> Bool[Tensor, "*N"]:
        """Return whether "no object" is not the most likely answer."""
        return logits.argmax(-1) != logits.shape[-1] - 1

    def cost(self, logits: Float[Tensor, "L B Q R"], labels: Int[Tensor, "B T"]) -> Float[Tensor, "L B Q T"]:
        """Return minus the probability of the target's class."""
        probability = logits.softmax(-1)
        index, unknown = _rows_of(labels, logits.shape[-1] - 1)
        index = index[None, :, None].expand(*probability.shape[:3], -1)
        return -probability.gather(-1, index).masked_fill(unknown[None, :, None], torch.nan)

    def loss(
        self,
        logits: Float[Tensor, "L B Q R"],
        labels: Int[Tensor, "L B Q"],
        *,
        no_object_weight: float,
        num_boxes: float,
    ) -> Float[Tensor, " L"]:
        """Return the weighted mean cross entropy of all queries (DETR, equation 2); `num_boxes` has no part in it."""
        no_object = logits.shape[-1] - 1
        weights = logits.new_ones(no_object + 1)
        weights[no_object] = no_object_weight
        loss = F.cross_entropy(logits.flatten(0, 2), labels.flatten(), weight=weights, reduction="none")
        total = weights[labels].flatten(1).sum(1)
        return loss.view(len(logits), -1).sum(1) / total.clamp(min=1e-12)

    def divisor(self, queries: int, matched: int, no_object_weight: float) -> float:
        """Return the sum of the weights of all queries."""
        return matched + no_object_weight * (queries - matched)

    def described(self) -> dict[str, Any]:
        """Return the name of this reading."""
        return {"class_scores": "softmax"}


@dataclass(frozen=True)
class SigmoidScores(ClassScores):
    """A sigmoid per class, taught by focal loss (Lin et al. 2017, as in Deformable DETR).

    Attributes:
        alpha: Weight of the right class in the focal loss; the other classes weigh one minus this.
        gamma: Exponent by which predictions that are right already count less.
        prior: Probability that each class starts with.
        most_detections: How many pairs of a query and a class are detections of an image, at most.
    """

    extra_rows: ClassVar[int] = 0

    alpha: float = 0.25
    gamma: float = 2.0
    prior: float = 0.01
    most_detections: int = 100

    def probabilities(self, logits: Float[Tensor, "*N R"]) -> Float[Tensor, "*N C"]:
        """Return the probability of each class; they need not sum to one."""
        return logits.sigmoid()

    def detected(self, logits: Float[Tensor, "B Q R"]) -> ClassAnswers:
        """Return the most likely pairs of a query and a class, best first: a query may answer with several classes."""
        each = self.probabilities(logits)
        best, pairs = each.flatten(1).topk(min(self.most_detections, each[0].numel()), dim=1)
        return ClassAnswers(pairs // each.shape[-1], pairs % each.shape[-1], best)

    def most_likely(self, logits: Float[Tensor, "*N R"]) -> Int[Tensor, "*N"]:
        """Return the class with the largest logit, however unlikely it is."""
        return logits.argmax(-1)

    def says_object(self, logits: Float[Tensor, "*N R"]) -> Bool[Tensor, "*N"]:
        """Return whether any class has a probability above one half."""
        return (logits > 0).any(-1)

    def cost(self, logits: Float[Tensor, "L B Q R"], labels: Int[Tensor, "B T"]) -> Float[Tensor, "L B Q T"]:
        """Return by how much the focal loss falls where a query answers a target, as Deformable DETR matches."""
        probability = logits.sigmoid()
        absent = (1 - self.alpha) * probability**self.gamma * -(1 - probability + 1e-8).log()
        present = self.alpha * (1 - probability) ** self.gamma * -(probability + 1e-8).log()
        index, unknown = _rows_of(labels, logits.shape[-1])
        index = index[None, :, None].expand(*probability.shape[:3], -1)
        return (present - absent).gather(-1, index).masked_fill(unknown[None, :, None], torch.nan)

    def loss(
        self,
        logits: Float[Tensor, "L B Q R"],
        labels: Int[Tensor, "L B Q"],
        *,
        no_object_weight: float,
        num_boxes: float,
    ) -> Float[Tensor, " L"]:
        """Return the focal loss of all queries and classes, summed and divided by the number of targets."""
        from torchvision.ops import sigmoid_focal_loss  # here, because torchvision takes as long to import as torch

        wanted = F.one_hot(labels, logits.shape[-1] + 1)[..., :-1].to(logits)
        loss = sigmoid_focal_loss(logits, wanted, alpha=self.alpha, gamma=self.gamma)
        summed: Tensor = loss.flatten(1).sum(1)
        return summed / num_boxes

    def first_bias(self) -> float:
        """Return the logit of the prior, so that most queries start by finding nothing."""
        return float(torch.logit(torch.tensor(self.prior, dtype=torch.float64)))

    def described(self) -> dict[str, Any]:
        """Return the name of this reading, and how many pairs of a query and a class are detections."""
        return {"class_scores": "sigmoid", "most_detections": self.most_detections}


def _rows_of(labels: Int[Tensor, "B T"], classes: int) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Return a row that exists for each label, and whether the label has none of its own."""
    return labels.clamp(0, classes - 1), (labels < 0) | (labels >= classes)
