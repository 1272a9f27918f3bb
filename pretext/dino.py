"""images -> crops -> self-distillation: DINO (Caron et al. 2021), which trains the backbone, a CNN or a ViT.

The network sees two large and several small crops of an image; its teacher, a moving average of it, sees the large
ones. From each crop the network must predict what the teacher says of every other large crop, as a distribution over
prototypes. The teacher's answers are centred, so that no prototype wins everywhere, and sharpened, so that not all win
alike. Loss, head and transforms are lightly's. Known differences between the paper, the authors' code and this file:

    topic               paper and code                         here
    image vector        ViT: class token; CNN: mean of cells   mean of cells, which are what detectors look at
    schedules           in epochs                              in shares of the run: `warmup`, `frozen_last_layer`
    learning rate       warm-up, cosine to 1e-6                cosine to zero
    weight decay        0.04 rising to 0.4, not of norms and   constant, of all parameters
                        biases
    drop path           0.1 in the network, for ViTs           none
    what is evaluated   the teacher                            the average that `optim.ema` follows; without it, the
    and handed over                                            network
    colours             jitter 0.4, 0.4, 0.2, 0.1              the same: `colour_strength` 1
    precision           half                                   backbone as the run says, head and loss in 32 bits
    published score     ViT-S/16: 74.5 % of ImageNet by        not measured
                        nearest neighbours, 77.0 % linear

A run with `detector.backbone.weights` goes on from given weights: network and teacher start from them.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

import torch
from jaxtyping import Float
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.transforms.dino_transform import DINOTransform
from torch import Tensor

from pretext.backbone_task import (
    BackboneObjective,
    BackboneTask,
    Transform,
    backbone_in,
    crops_of,
    problems_with_crops,
)
from ssldet.collapse import entropies, spread
from ssldet.detectors.base import Detector
from ssldet.nn.momentum import follow, follower, rising
from ssldet.recipe import Within
from ssldet.types import Batch, Losses


@dataclass(frozen=True, kw_only=True)
class DINO(BackboneTask):
    """Predict what a moving average of the network says of other crops of the same image.

    Attributes:
        large_size: Side of the two large crops, in pixels.
        small_size: Side of the small crops, in pixels; less than `large_size`.
        small_crops: Number of small crops, which only the network sees.
        large_scale: Smallest and largest share of the image's area that a large crop shows.
        small_scale: Smallest and largest share of the image's area that a small crop shows.
        colour_strength: Strength of the colour jitter; 1 is the paper's.
        blur: Factor of the probabilities of blur, 1.0 and 0.1 for the two large crops and 0.5 for small ones.
        solarisation: Probability that the second large crop is solarised.
        hidden_width: Width of the projection head's hidden layers.
        bottleneck: Width of the projection before the prototypes.
        prototypes: Number of prototypes (K).
        head_norm: Whether the head has batch norms.
        norm_last_layer: Whether the lengths of the prototypes stay one; if not, results may be better and less stable.
        student_temperature: Temperature of the network's predictions.
        first_teacher_temperature: Temperature of the teacher's answers at first; lower is sharper.
        teacher_temperature: Their temperature after the warm-up.
        warmup: Share of the run in which the teacher's temperature moves from the first to the last.
        centre_momentum: Share of the centre that each batch keeps.
        momentum: Share of the teacher's weights that the first step keeps; it rises to 1 along a cosine.
        frozen_last_layer: Share of the run, from its start, in which the prototypes do not learn.
    """

    cite: ClassVar[str] = "caron2021dino"

    large_size: Annotated[int, Within(8, 10_000)] = 224
    small_size: Annotated[int, Within(8, 10_000)] = 96
    small_crops: Annotated[int, Within(0, 1000)] = 8
    large_scale: tuple[float, float] = (0.4, 1.0)
    small_scale: tuple[float, float] = (0.05, 0.4)
    colour_strength: Annotated[float, Within(0, 2.5)] = 1.0
    blur: Annotated[float, Within(0, 1)] = 1.0
    solarisation: Annotated[float, Within(0, 1)] = 0.2
    hidden_width: Annotated[int, Within(1, 65_536)] = 2048
    bottleneck: Annotated[int, Within(1, 65_536)] = 256
    prototypes: Annotated[int, Within(2, 2**20)] = 65536
    head_norm: bool = False
    norm_last_layer: bool = True
    student_temperature: Annotated[float, Within(1e-3)] = 0.1
    first_teacher_temperature: Annotated[float, Within(1e-3)] = 0.04
    teacher_temperature: Annotated[float, Within(1e-3)] = 0.04
    warmup: Annotated[float, Within(0, 1)] = 0.3
    centre_momentum: Annotated[float, Within(0, 1)] = 0.9
    momentum: Annotated[float, Within(0, 1)] = 0.996
    frozen_last_layer: Annotated[float, Within(0, 1)] = 0.01

    def transform(self) -> Transform:
        """Return lightly's multi-crop transform."""
        transform = DINOTransform(
            global_crop_size=self.large_size,
            global_crop_scale=self.large_scale,
            local_crop_size=self.small_size,
            local_crop_scale=self.small_scale,
            n_local_views=self.small_crops,
            # Not `cj_strength`, which lightly leaves out for the second large crop.
            cj_bright=0.8 * self.colour_strength,
            cj_contrast=0.8 * self.colour_strength,
            cj_sat=0.4 * self.colour_strength,
            cj_hue=0.2 * self.colour_strength,
            gaussian_blur=(1.0 * self.blur, 0.1 * self.blur, 0.5 * self.blur),
            solarization_prob=self.solarisation,
            normalize=None,
        )
        return cast(Transform, transform)

    def objective(self, detector: Detector) -> "SelfDistillation":
        """Return the module that computes the loss."""
        return SelfDistillation(self, detector)

    def problems(self) -> list[str]:
        """Return what is wrong between fields."""
        return problems_with_crops(self)


class SelfDistillation(BackboneObjective):
    """Trains the backbone to predict its own moving average.

    Attributes:
        detector: The detector whose backbone is trained.
        head: Features -> similarity to each prototype; discarded after pretraining, like all attributes below.
        teacher_backbone: Moving average of the backbone.
        teacher_head: Moving average of the head.
        loss: Holds the centre of the teacher's answers.
    """

    def __init__(self, task: DINO, detector: Detector) -> None:
        """Build the head, the teacher and the loss.

        Args:
            task: The task's choices.
            detector: The detector whose backbone is trained.
        """
        super().__init__(detector)
        self.task, self._temperature = task, task.first_teacher_temperature
        self.head = _head(detector.feature_channels, task)
        self.teacher_backbone, self.teacher_head = follower(backbone_in(detector)), follower(self.head)
        self.loss = DINOLoss(
            task.prototypes,
            student_temp=task.student_temperature,
            center_momentum=task.centre_momentum,
        )

    def begin(self, step: int, total_steps: int) -> None:
        """Move the teacher towards the network; set its temperature, and whether the prototypes learn."""
        task, done = self.task, step / max(1, total_steps)
        momentum = rising(task.momentum, step, total_steps)
        follow(self.teacher_backbone, backbone_in(self.detector), momentum)
        follow(self.teacher_head, self.head, momentum)
        warm = 1.0 if done >= task.warmup else done / task.warmup
        first, last = task.first_teacher_temperature, task.teacher_temperature
        self._temperature = first + warm * (last - first)
        learns = done >= task.frozen_last_layer
        self.head.last_layer.weight_v.requires_grad_(learns)
        self.head.last_layer.weight_g.requires_grad_(learns and not task.norm_last_layer)

    def forward(self, batch: Batch) -> Losses:
        """Compare the network's answers to all crops with the teacher's to the large ones, as in algorithm 1."""
        crops = crops_of(batch)
        features = [self.describe(some.transpose(0, 1).flatten(0, 1)).float() for some in crops]
        with torch.no_grad():
            large = self.detector.normalise(crops[0].transpose(0, 1).flatten(0, 1))
            taught = self.teacher_backbone(large).mean(dim=(2, 3)).float()
        with torch.autocast(batch.images.device.type, enabled=False):
            answers = [one for some in features for one in self.head(some).split(len(batch))]
            with torch.no_grad():
                teaching = list(self.teacher_head(taught).split(len(batch)))
            centre = self.loss.center.clone()
            loss = self.loss(teaching, answers, teacher_temp=self._temperature)
            if not self.training:
                self.loss.center.copy_(centre)
        return Losses(
            terms={"self_distillation": loss.reshape(1)},
            weights={"self_distillation": 1.0},
            metrics={"feature_std": spread(features[0].detach()), **self._usage(teaching, centre)},
        )

    def _usage(self, teaching: Sequence[Float[Tensor, "B K"]], centre: Tensor) -> dict[str, Float[Tensor, ""]]:
        """Return two entropies of the teacher's answers as shares of the largest: of their mean, and of single ones.

        A first near 0 means that one prototype always wins, a second near 1 that all win alike: the two ways to
        collapse.
        """
        sharpened = ((torch.cat(list(teaching)) - centre[0]) / self._temperature).softmax(1)
        used, single = entropies(sharpened)
        return {"prototype_entropy": used, "teacher_entropy": single}


def _head(channels: int, task: DINO) -> DINOProjectionHead:
    """Return the head in a state that can be copied, as the teacher and an averaged model are."""
    # Without autograd: lightly's weight norm keeps a tensor that it computed, and torch copies none that has a history.
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about the form of weight norm that lightly uses
        return DINOProjectionHead(
            channels,
            task.hidden_width,
            task.bottleneck,
            task.prototypes,
            batch_norm=task.head_norm,
            norm_last_layer=task.norm_last_layer,
        )
