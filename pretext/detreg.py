"""images -> "where may objects be, and what do they look like?": DETReg (Bar et al. 2022).

Region proposals stand for objects. The detector must say where they are, with its own queries, and each query that
answers a region must name the embedding that a frozen backbone gives the pixels of the region. Known differences
between the paper, the authors' code and this file, each with the field that chooses:

    topic             paper                     released code                    here
    regions           selective search          30 first, OpenCV's fast form     `proposals`
    order of regions  hierarchy times chance,   OpenCV's, small ones first       by area times chance, seeded;
                      large ones first                                           `proposals.first`, small ones in
                                                                                 the recipes of the authors
    few regions       not stated                another image if below two       fewer targets, or none
    embedding         of the frozen SwAV        mean of the level of stride 8    `embedding_level`, no projection head
    its head          MLP                       two layers                       three layers
    its loss          L1                        mean L1, last layer only         mean L1, last layer only
    colours searched  RGB                       red and blue exchanged           as they are
    classes           object or not             the class head of COCO, class 1  one class
    augmentation      not stated                DETR's at UP-DETR's scales       the same, 384 included
    borders           not stated                last row and column never cut    every border is reached
"""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pretext.regions import RegionObjective, RegionTask
from ssldet.detectors.base import Detector
from ssldet.losses.set_prediction import set_prediction
from ssldet.nn.heads import MLP
from ssldet.recipe import Within
from ssldet.types import Batch, Losses, Matches, Predictions, Targets


@dataclass(frozen=True, kw_only=True)
class DETReg(RegionTask):
    """Find proposed regions and name their embeddings.

    Attributes:
        embedding_weight: Weight of the embedding in the loss.
    """

    cite: ClassVar[str] = "bar2022detreg"

    embedding_weight: Annotated[float, Within(0)] = 1.0

    def objective(self, detector: Detector) -> "RegionDetection":
        """Return the module that has the detector find the regions."""
        return RegionDetection(self, detector)


class RegionDetection(RegionObjective):
    """Trains the detector to find the regions of a batch and to name their embeddings.

    Attributes:
        detector: The detector that is trained.
        embedding: Decoder states -> embeddings; discarded after pretraining.
    """

    def __init__(self, task: DETReg, detector: Detector) -> None:
        """Build the head, the matcher and the loss terms.

        Args:
            task: The task's choices.
            detector: The detector that is trained.
        """
        super().__init__(task, detector)
        self.embedding = MLP(detector.width, detector.width, self.embedding_channels, depth=3)
        term = EmbeddingDistance(head=self.embedding, weight=task.embedding_weight)
        self.criterion = set_prediction(task, no_object_weight=task.no_object_weight, extra=[term])

    def forward(self, batch: Batch) -> Losses:
        """Detect the regions and compare with their boxes and embeddings."""
        embeddings = torch.split(self.describe(batch), [len(targets) for targets in batch.targets])
        pairs = zip(batch.targets, embeddings, strict=True)
        targets = [replace(one, embeddings=vectors) for one, vectors in pairs]
        return self.criterion(self.ask(batch, self.detector), targets)


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddingDistance:
    """Mean absolute difference between what a matched query of the last layer names and its region's embedding.

    Attributes:
        head: Decoder states -> embeddings.
        weight: Weight of the term in the total loss.
    """

    name: ClassVar[str] = "embedding"
    head: nn.Module
    weight: float = 1.0

    def __call__(
        self, predictions: Predictions, targets: Targets, matches: Matches, num_boxes: float
    ) -> Float[Tensor, " L"]:
        """Return the mean over channels, summed over matches and divided by `num_boxes`; 0 but for the last layer."""
        assert targets.embeddings is not None
        last = len(predictions.states) - 1
        named: Tensor = self.head(predictions.states[last].float())
        distance = (named[matches.image, matches.query] - targets.embeddings.float()[matches.target]).abs().mean(-1)
        values = distance.new_zeros(last + 1)
        values[last] = torch.where(matches.layer == last, distance, 0).sum() / num_boxes
        return values
