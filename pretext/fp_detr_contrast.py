"""images -> two crops -> contrastive loss on a class token: pretraining FP-DETR's layers without labels.

This is ours: FP-DETR's authors pretrain by supervised classification alone (`pretext/fp_detr.py`). All that they hand
over is taught here too, tokenizer and all layers, by SimCLR's objective (Chen et al. 2020): the token's state after one
crop must be more similar to that after the other crop of the same image than to those of all other images of the batch.
Loss, head and transform are lightly's. Known differences from SimCLR:

    topic            paper                     here
    network          ResNet-50                 a class token that joins FP-DETR's layers
    normalisation    batch norm over devices   layer norms in the network, batch norm of each device in the head
    optimiser        LARS                      AdamW, as usual for transformers
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms.simclr_transform import SimCLRTransform
from torch import Tensor

from pretext.backbone_task import CropTask, Transform, crops_of
from pretext.class_token import UNTAUGHT, ClassToken, joined, problems_with_joining
from ssldet.collapse import spread
from ssldet.detectors.base import Detector, DetectorConfig
from ssldet.recipe import Within
from ssldet.task import Objective
from ssldet.types import Batch, Embedding, Losses


@dataclass(frozen=True, kw_only=True)
class TokenContrast(CropTask):
    """Find the other crop of the same image among crops of the batch, by a class token. No label is read.

    Attributes:
        crop_size: Side of both crops, in pixels.
        min_scale: Smallest share of the image's area that a crop shows.
        colour_strength: Strength of the colour jitter; 1 is the paper's.
        blur: Probability that a crop is blurred.
        hidden_width: Width of the projection head's hidden layer.
        projection_width: Width of the projections.
        temperature: Temperature of the similarities.
    """

    cite: ClassVar[str] = "chen2020simclr"

    crop_size: Annotated[int, Within(8)] = 224
    min_scale: Annotated[float, Within(1e-3, 1)] = 0.08
    colour_strength: Annotated[float, Within(0)] = 1.0
    blur: Annotated[float, Within(0, 1)] = 0.5
    hidden_width: Annotated[int, Within(1)] = 2048
    projection_width: Annotated[int, Within(1)] = 128
    temperature: Annotated[float, Within(1e-3)] = 0.1

    def rests(self, section: str) -> bool:
        """Return whether a section is one that a class token does without."""
        return section in UNTAUGHT

    def stays_behind(self, section: str) -> bool:
        """Return whether a section is one that a class token does without."""
        return section in UNTAUGHT

    def transform(self) -> Transform:
        """Return lightly's transform of SimCLR, which makes two crops."""
        transform = SimCLRTransform(
            input_size=self.crop_size,
            min_scale=self.min_scale,
            cj_strength=self.colour_strength,
            gaussian_blur=self.blur,
            normalize=None,
        )
        return cast(Transform, transform)

    def objective(self, detector: Detector) -> "TokenComparison":
        """Return the module that computes the contrastive loss."""
        return TokenComparison(self, detector)

    def problems_with(self, detector: DetectorConfig) -> list[str]:
        """Return a message if no token can join this detector's layers."""
        return problems_with_joining(self, detector)


class TokenComparison(Objective):
    """Teaches a class token to tell images apart.

    Attributes:
        detector: The detector whose tokenizer and layers are taught.
        token: The class token; left behind, like the head.
        head: State of the token -> projection.
    """

    def __init__(self, task: TokenContrast, detector: Detector) -> None:
        """Build token, head and loss.

        Args:
            task: The task's choices.
            detector: An FP-DETR.
        """
        super().__init__()
        self.detector = detector
        self.token = ClassToken(detector.width)
        self.head = SimCLRProjectionHead(detector.width, task.hidden_width, task.projection_width)
        self.loss = NTXentLoss(task.temperature, gather_distributed=True)

    def forward(self, batch: Batch) -> Losses:
        """Compare the two crops of every image with one another and with those of all others."""
        crops = crops_of(batch)[0]
        states = self._describe(crops.transpose(0, 1).flatten(0, 1))
        with torch.autocast(states.device.type, enabled=False):
            one, other = self.head(states).chunk(2)
            loss = self.loss(one, other)
        directions, others = (F.normalize(part.detach(), dim=1) for part in (one, other))
        return Losses(
            terms={"contrast": loss.reshape(1)},
            weights={"contrast": 1.0},
            metrics={
                "feature_std": spread(states.detach()),
                "positive_similarity": (directions * others).sum(1).mean(),
                "mean_similarity": directions.mean(0) @ others.mean(0),
            },
        )

    @torch.no_grad()
    def answer(self, batch: Batch) -> list[Embedding]:
        """Return the token's state for each image; the task trains no boxes."""
        return [Embedding(vector=vector) for vector in self._describe(batch.images)]

    def _describe(self, pixels: Tensor) -> Float[Tensor, "B D"]:
        states: Tensor = self.token(joined(self.detector), pixels)
        return states.float()
