"""images -> "which kind of thing is where?": proposed boxes with clusters as classes, replaced by the detector's own.

Every proposed region gets the cluster of its features as its class, and the detector is trained as if both were labels.
In later rounds the detector of the round before is the teacher: its confident boxes and classes replace the proposals
of an image. Two published relatives train detectors in this manner:

    topic       SimDETR (Metaxas et al. 2023)             CutLER (Wang et al. 2023)       here
    boxes       regions of the encoder's feature maps     normalised cuts (MaskCut)       `proposals`, any method
    classes     clusters of region features               one class                       `clusters`; 1 gives one class
    clustering  once, on the whole set                    -                               online, in the first steps
    rounds      separate trainings                        separate trainings              `rounds` of one run
    detector    Deformable DETR, ViDT+                    Cascade Mask R-CNN              any of ours

A patent application, US 2025/0265826, describes a pipeline such as SimDETR's: proposals from features, clusters as
classes, and rounds of self-training. Whether it concerns your use is for you to find out.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchvision.ops import nms

from pretext.regions import RegionObjective, RegionTask
from ssldet.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from ssldet.detectors.base import Detector, DetectorConfig
from ssldet.losses.set_prediction import set_prediction
from ssldet.recipe import Within
from ssldet.types import Batch, Losses, Predictions, Targets

FEWEST_CLUSTERS = 2
"""Clusters in use, below which they tell nothing apart."""
SCARCE = 0.01
"""Share of boxes of a teacher, below which a round is no other than the first."""
SECOND_ROUND = 1.5
"""Rounds after which this is judged: the middle of the second."""
SIDE_LEFT = 1e-3
"""Side, as a share of the image, below which a teacher's box counts as empty once it is clipped to the image."""


@dataclass(frozen=True, kw_only=True)
class PseudoBoxes(RegionTask):
    """Find proposed regions and the clusters that they belong to, and then what an earlier self finds.

    Attributes:
        clusters: Number of clusters, which the detector must have as classes.
        clustering: Share of the run in which the clusters are still formed.
        rounds: Number of rounds; in all but the first, the detector at the start of the round is the teacher.
        confidence: Score from which on a teacher's box counts.
        overlap: Intersection over union from which on two of a teacher's boxes count as one.
    """

    cite: ClassVar[str] = "metaxas2023simdetr"

    clusters: Annotated[int, Within(1)] = 256
    clustering: Annotated[float, Within(0, 1)] = 0.1
    rounds: Annotated[int, Within(1)] = 2
    confidence: Annotated[float, Within(0, 1)] = 0.5
    overlap: Annotated[float, Within(0, 1)] = 0.7

    def objective(self, detector: Detector) -> "ClusterDetection":
        """Return the module that has the detector find regions and their clusters."""
        return ClusterDetection(self, detector)

    def symptoms(self, lately: Mapping[str, float], done: float) -> list[str]:
        """Return a clause if all regions lie in one cluster, and one if the teacher of a later round finds nothing."""
        used, share, found = lately.get("clusters_in_use"), lately.get("taught_share"), []
        if used is not None and used < FEWEST_CLUSTERS <= self.clusters:
            found.append(
                f"regions lie in {used:.1f} clusters of {self.clusters}: to the backbone all look alike; take one that "
                "knows such images, or larger regions (task.proposals.smallest_share)"
            )
        if share is not None and share < SCARCE and self.rounds * done >= SECOND_ROUND:
            found.append(
                f"{share:.1%} of the boxes come from the detector of the round before, which is confident of nothing: "
                f"lower task.confidence (it is {self.confidence:g})"
            )
        return found

    def problems_with(self, detector: DetectorConfig) -> list[str]:
        """Return a message if the detector has not a class for each cluster."""
        if detector.num_classes == self.clusters:
            return []
        return [
            f"clusters: {self.clusters} clusters are the classes of the detector, which has {detector.num_classes}; "
            f"set detector.num_classes={self.clusters}"
        ]


class ClusterDetection(RegionObjective):
    """Trains the detector on regions with their clusters, or on what its teacher finds.

    Attributes:
        detector: The detector that is trained.
        clusters: Features of regions -> clusters; discarded after pretraining, like the teacher.
        teacher: The detector as it was when the round began; not used in the first round.
    """

    def __init__(self, task: PseudoBoxes, detector: Detector) -> None:
        """Build the clusters, the teacher, the matcher and the loss terms.

        Args:
            task: The task's choices.
            detector: The detector that is trained.
        """
        super().__init__(task, detector)
        self.task = task
        self.clusters = Clusters(task.clusters, self.embedding_channels)
        self.teacher: Detector | None = None
        if task.rounds > 1:
            self.teacher = deepcopy(detector)
            self.teacher.requires_grad_(False).eval()
        self.criterion = set_prediction(task, no_object_weight=task.no_object_weight)
        self._round, self._forming = 0, False

    def train(self, mode: bool = True) -> "ClusterDetection":
        """Switch the mode; the teacher stays in evaluation mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def begin(self, step: int, total_steps: int) -> None:
        """Take the detector as the teacher where a round begins, and say whether clusters are still formed."""
        self._round = step * self.task.rounds // total_steps
        self._forming = step < max(1, self.task.clustering * total_steps)
        before = (step - 1) * self.task.rounds // total_steps
        if self.teacher is not None and step and self._round != before:
            self.teacher.load_state_dict(self.detector.state_dict())

    def forward(self, batch: Batch) -> Losses:
        """Detect, and compare with regions and clusters or with what the teacher finds."""
        vectors = self.describe(batch)
        if self.training and self._forming:
            self.clusters.form(vectors)
        labels = self.clusters(vectors)
        each = torch.split(labels, [len(targets) for targets in batch.targets])
        targets = [replace(one, labels=some) for one, some in zip(batch.targets, each, strict=True)]
        taught = 0
        if self.teacher is not None and self._round:
            found = self._taught(batch, self.teacher)
            taught = sum(map(len, found))
            targets = [one if len(one) else other for one, other in zip(found, targets, strict=True)]
        losses = self.criterion(self.ask(batch, self.detector), targets)
        share = labels.new_tensor(taught / max(1, sum(map(len, targets))), dtype=torch.float32)
        metrics = {"clusters_in_use": self.clusters.in_use(), "taught_share": share}
        return replace(losses, metrics={**losses.metrics, **metrics})

    @torch.no_grad()
    def _taught(self, batch: Batch, teacher: Detector) -> list[Targets]:
        """Return what the teacher finds with confidence in each image, on the canvas that the student sees."""
        predictions = self.ask(batch, teacher)
        probabilities = predictions.scores.probabilities(predictions.logits[-1].float())
        scores, labels = probabilities.max(-1)
        return [self._confident(predictions, image, scores[image], labels[image]) for image in range(len(batch))]

    def _confident(
        self, predictions: Predictions, image: int, scores: Float[Tensor, " Q"], labels: Int[Tensor, " Q"]
    ) -> Targets:
        corners = cxcywh_to_xyxy(predictions.boxes[-1, image].float()).clamp(0, 1)
        real = (corners[:, 2:] - corners[:, :2] > SIDE_LEFT).all(1) & (scores >= self.task.confidence)
        kept = real.nonzero()[:, 0]
        kept = kept[nms(corners[kept], scores[kept], self.task.overlap)][: self.task.proposals.count]
        return Targets(boxes=xyxy_to_cxcywh(corners[kept]), labels=labels[kept])


class Clusters(nn.Module):
    """Online k-means of directions: each vector belongs to the nearest centre.

    Centres start as vectors that are far from all others, and move to the running mean of their vectors (Sculley 2010).
    With several processes, each step starts from the centres of the first.

    Attributes:
        centres: Of length one; zeros where a cluster has not got its first vector yet.
        counts: Number of vectors that each centre is the mean of.
    """

    centres: Float[Tensor, "K E"]
    counts: Float[Tensor, " K"]

    def __init__(self, clusters: int, channels: int) -> None:
        """Start without centres.

        Args:
            clusters: Number of clusters.
            channels: Length of a vector.
        """
        super().__init__()
        self.register_buffer("centres", torch.zeros(clusters, channels))
        self.register_buffer("counts", torch.zeros(clusters))

    def forward(self, vectors: Float[Tensor, "R E"]) -> Int[Tensor, " R"]:
        """Return the cluster of each vector."""
        return self._similarity(F.normalize(vectors, dim=1)).argmax(1)

    @torch.no_grad()
    def form(self, vectors: Float[Tensor, "R E"]) -> None:
        """Take vectors in: give empty clusters their first, and move centres towards the mean of theirs.

        Args:
            vectors: Features of regions.
        """
        if not len(vectors):
            return
        directions = F.normalize(vectors, dim=1)
        for empty in (self.counts == 0).nonzero()[: len(directions), 0].tolist():
            farthest = int(self._similarity(directions).max(1).values.argmin()) if empty else 0
            self.centres[empty], self.counts[empty] = directions[farthest], 1
        nearest = self._similarity(directions).argmax(1)
        arrived = torch.bincount(nearest, minlength=len(self.counts)).to(self.counts)
        sums = torch.zeros_like(self.centres).index_add_(0, nearest, directions)
        self.counts += arrived
        moved = self.centres + (sums - arrived[:, None] * self.centres) / self.counts.clamp(min=1)[:, None]
        self.centres.copy_(F.normalize(moved, dim=1))

    def in_use(self) -> Float[Tensor, ""]:
        """Return how many clusters hold vectors as evenly: the exponential of the entropy of their sizes."""
        shares = self.counts / self.counts.sum().clamp(min=1)
        return torch.exp(-(shares * shares.clamp(min=1e-12).log()).sum())

    def _similarity(self, directions: Float[Tensor, "R E"]) -> Float[Tensor, "R K"]:
        return (directions @ self.centres.T).masked_fill(self.counts == 0, -2.0)
