"""images -> two crops -> contrastive loss: MoCo v2 (He et al. 2020, Chen et al. 2020), which trains the backbone.

The network encodes one crop, the query; a copy of it that follows by a moving average encodes the other crop, the key.
The query must be more similar to its key than to the keys of earlier batches, which a queue holds. Loss, head, queue
and transforms are lightly's. Known differences between the paper and this file:

    topic               paper and code                     here
    learning rate       cosine to zero                     the same
    batch statistics    each of 8 devices its own, keys    the same over several devices; on one, keys are shuffled
                        shuffled over the devices          into as many groups: see `key_groups`
    queue               65,536 keys of all devices         the same
    precision           32 bits                            backbone as the run says, heads and loss in 32 bits

Why keys are shuffled: see `pretext/keys.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

import torch
from jaxtyping import Float, UInt8
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from lightly.transforms.moco_transform import MoCoV2Transform
from torch import Tensor

from pretext.backbone_task import BackboneObjective, BackboneTask, Transform, backbone_in, crops_of, saved
from pretext.keys import contrast, encode_apart
from ssldet.collapse import spread
from ssldet.detectors.base import Detector
from ssldet.nn.momentum import follow, follower
from ssldet.recipe import Within
from ssldet.types import Batch, Losses


@dataclass(frozen=True, kw_only=True)
class MoCoV2(BackboneTask):
    """Find the other crop of the same image among crops of many images.

    Attributes:
        crop_size: Side of both crops, in pixels.
        min_scale: Smallest share of the image's area that a crop shows.
        colour_strength: Strength of the colour jitter; 1 is the paper's.
        blur: Probability that a crop is blurred.
        hidden_width: Width of the projection head's hidden layer.
        width: Width of the projections.
        queue_length: Number of keys of earlier batches, which are the negatives.
        temperature: Temperature of the similarities.
        momentum: Share of the key encoder's weights that each step keeps; the rest comes from the trained network.
        key_groups: Number of groups, over all devices together, in which keys are normalised by batch statistics of
            their own.
    """

    cite: ClassVar[str] = "chen2020mocov2"

    crop_size: Annotated[int, Within(8, 10_000)] = 224
    min_scale: Annotated[float, Within(1e-3, 1)] = 0.2
    colour_strength: Annotated[float, Within(0)] = 1.0
    blur: Annotated[float, Within(0, 1)] = 0.5
    hidden_width: Annotated[int, Within(1, 65_536)] = 2048
    width: Annotated[int, Within(1, 65_536)] = 128
    queue_length: Annotated[int, Within(1, 2**24)] = 65536
    temperature: Annotated[float, Within(1e-3)] = 0.2
    momentum: Annotated[float, Within(0, 1)] = 0.999
    key_groups: Annotated[int, Within(1)] = 8

    def transform(self) -> Transform:
        """Return lightly's transform of MoCo v2, which makes two crops."""
        transform = MoCoV2Transform(
            input_size=self.crop_size,
            min_scale=self.min_scale,
            cj_strength=self.colour_strength,
            gaussian_blur=self.blur,
            normalize=None,
        )
        return cast(Transform, transform)

    def objective(self, detector: Detector) -> "MomentumContrast":
        """Return the module that computes the contrastive loss."""
        return MomentumContrast(self, detector)


class MomentumContrast(BackboneObjective):
    """Trains the backbone to tell images apart.

    Attributes:
        detector: The detector whose backbone is trained.
        head: Features -> projections; discarded after pretraining, like all attributes below.
        key_backbone: Moving average of the backbone.
        key_head: Moving average of the head.
        loss: The contrastive loss, which holds the queue.
    """

    def __init__(self, task: MoCoV2, detector: Detector) -> None:
        """Build the head, and the copies that follow backbone and head.

        Args:
            task: The task's choices.
            detector: The detector whose backbone is trained.
        """
        super().__init__(detector)
        self.task = task
        self.head = MoCoProjectionHead(detector.feature_channels, task.hidden_width, task.width)
        self.key_backbone, self.key_head = follower(backbone_in(detector)), follower(self.head)
        self.loss = NTXentLoss(task.temperature, (task.queue_length, task.width), gather_distributed=True)
        saved(self.loss.memory_bank)

    def begin(self, step: int, total_steps: int) -> None:
        """Move the key encoder towards the trained network."""
        follow(self.key_backbone, backbone_in(self.detector), self.task.momentum)
        follow(self.key_head, self.head, self.task.momentum)

    def forward(self, batch: Batch) -> Losses:
        """Compare the query of one crop with the key of the other, in the order of the paper's algorithm 1."""
        query_crops, key_crops = crops_of(batch)[0].unbind(1)
        features = self.describe(query_crops).float()
        keys = self._keys(key_crops)
        with torch.autocast(features.device.type, enabled=False):
            queries = self.head(features)
        loss, similarities = contrast(self.loss, queries, keys)
        return Losses(
            terms={"contrast": loss.reshape(1)},
            weights={"contrast": 1.0},
            metrics={"feature_std": spread(features.detach()), **similarities},
        )

    def _keys(self, pixels: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Project by the key encoder, in random groups: no key is normalised in the same batch as its query."""
        return encode_apart(pixels, self.task.key_groups, self._encode)

    def _encode(self, groups: Sequence[Tensor]) -> Float[Tensor, "B D"]:
        parts = [self.key_backbone(self.detector.normalise(part)) for part in groups]
        features = torch.cat([part.mean(dim=(2, 3)).float() for part in parts])
        with torch.autocast(features.device.type, enabled=False):
            keys: Tensor = self.key_head(features)
        return keys
