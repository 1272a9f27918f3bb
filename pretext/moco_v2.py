"""images -> two crops -> "which of these many is you?": MoCo v2 (He et al. 2020, Chen et al. 2020), for the backbone.

One crop asks, the other, seen by a slowly following copy of the network, answers; a queue of earlier answers are the
wrong ones. Loss, head, queue and transforms are lightly's. Known differences between the paper and this file:

    topic               paper and code                     here
    learning rate       cosine to zero                     the same
    batch statistics    each of 8 devices its own, keys    the same over several devices; on one, keys are shuffled
                        shuffled over the devices          into as many groups: see `key_groups`
    queue               65,536 keys of all devices         the same
    precision           32 bits                            backbone as the run says, heads and loss in 32 bits

Why keys are shuffled: a batch norm lets an image see its batch, and where question and answer share one, the network
learns to recognise the batch's statistics instead of the image. Keys whose batch is another one can't be found so.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import batch_shuffle, batch_unshuffle, deactivate_requires_grad, update_momentum
from lightly.transforms.moco_transform import MoCoV2Transform
from torch import Tensor

from pretext.backbone_task import BackboneObjective, BackboneTask, Transform, crops_of, saved
from pretext.nearest_neighbours import spread
from ssldet import ranks
from ssldet.detectors.base import Detector
from ssldet.nn.backbones import Backbone
from ssldet.recipe import Within
from ssldet.types import Batch, Losses


@dataclass(frozen=True, kw_only=True)
class MoCoV2(BackboneTask):
    """Find the other crop of the same image among many.

    Attributes:
        crop_size: Side of both crops, in pixels.
        min_scale: Least share of the image's area that a crop shows.
        colour_strength: Strength of the colour jitter; one is the paper's.
        blur: Chance that a crop is blurred.
        hidden_width: Width of the projection head's hidden layer.
        width: Width of the projections.
        queue_length: Keys of earlier batches that are wrong answers.
        temperature: Of the similarities.
        momentum: What stays of the key encoder at every step.
        key_groups: Groups, over all devices together, in which keys are normalised by batch statistics of their own.
    """

    cite: ClassVar[str] = "chen2020mocov2"

    crop_size: Annotated[int, Within(8)] = 224
    min_scale: Annotated[float, Within(1e-3, 1)] = 0.2
    colour_strength: Annotated[float, Within(0)] = 1.0
    blur: Annotated[float, Within(0, 1)] = 0.5
    hidden_width: Annotated[int, Within(1)] = 2048
    width: Annotated[int, Within(1)] = 128
    queue_length: Annotated[int, Within(1)] = 65536
    temperature: Annotated[float, Within(1e-3)] = 0.2
    momentum: Annotated[float, Within(0, 1)] = 0.999
    key_groups: Annotated[int, Within(1)] = 8

    def transform(self) -> Transform:
        """Return a function that makes lightly's crop twice."""
        transform = MoCoV2Transform(
            input_size=self.crop_size,
            min_scale=self.min_scale,
            cj_strength=self.colour_strength,
            gaussian_blur=self.blur,
            normalize=None,
        )
        return cast(Transform, transform)

    def objective(self, detector: Detector) -> "MomentumContrast":
        """Return the module that asks and answers."""
        return MomentumContrast(self, detector)


class MomentumContrast(BackboneObjective):
    """Teaches the backbone to tell images apart.

    Attributes:
        detector: Whose backbone learns.
        head: Features -> projections; thrown away after pretraining, like all that follows.
        key_backbone: Follows the backbone.
        key_head: Follows the head.
        loss: Holds the queue.
    """

    def __init__(self, task: MoCoV2, detector: Detector) -> None:
        """Join detector, head and their followers.

        Args:
            task: The choices.
            detector: Whose backbone learns.
        """
        super().__init__(detector)
        self.task = task
        self.head = MoCoProjectionHead(detector.feature_channels, task.hidden_width, task.width)
        self.key_backbone, self.key_head = deepcopy(self._backbone), deepcopy(self.head)
        deactivate_requires_grad(self.key_backbone)
        deactivate_requires_grad(self.key_head)
        self.loss = NTXentLoss(task.temperature, (task.queue_length, task.width), gather_distributed=True)
        saved(self.loss.memory_bank)

    @property
    def _backbone(self) -> Backbone:
        backbone = self.detector.backbone
        assert isinstance(backbone, Backbone)
        return backbone

    def begin(self, step: int, total_steps: int) -> None:
        """Let the key encoder follow."""
        update_momentum(self._backbone, self.key_backbone, self.task.momentum)
        update_momentum(self.head, self.key_head, self.task.momentum)

    def forward(self, batch: Batch) -> Losses:
        """Ask with one crop, answer with the other, in the order of the paper's algorithm 1."""
        asking, answering = crops_of(batch)[0].unbind(1)
        features = self.describe(asking).float()
        keys = self._keys(answering)
        bank = self.loss.memory_bank.bank.clone()
        with torch.autocast(features.device.type, enabled=False):
            queries = self.head(features)
            loss = self.loss(queries, keys)
        asked = F.normalize(queries.detach(), dim=1)
        return Losses(
            terms={"contrast": loss.reshape(1)},
            weights={"contrast": 1.0},
            metrics={
                "feature_std": spread(features.detach()),
                "positive_similarity": (asked * F.normalize(keys, dim=1)).sum(1).mean(),
                "negative_similarity": asked.mean(0) @ bank.mean(0),
            },
        )

    @torch.no_grad()
    def _keys(self, pixels: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Project by the key encoder, in groups that have nothing to do with the batch's."""
        several = ranks.world() > 1
        shuffled, order = batch_shuffle(pixels, distributed=several)
        # A norm needs two images at least.
        groups = min(max(1, self.task.key_groups // ranks.world()), max(1, len(pixels) // 2))
        parts = [self.key_backbone(self.detector.normalise(part)) for part in shuffled.tensor_split(groups)]
        features = torch.cat([part.mean(dim=(2, 3)).float() for part in parts])
        with torch.autocast(pixels.device.type, enabled=False):
            keys: Tensor = batch_unshuffle(self.key_head(features), order, distributed=several)
        return keys
