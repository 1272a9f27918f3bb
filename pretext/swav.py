"""images -> crops -> swapped prediction of prototypes: SwAV (Caron et al. 2020), which trains the backbone.

Two large and several small crops of an image are compared with prototypes. Each large crop is assigned to prototypes,
which Sinkhorn's iterations make equally frequent over the batch; every other crop of the image must predict these
assignments. Losses, heads, queue and transforms are lightly's. Known differences between the paper, the authors' code
and this file:

    topic               paper and code                         here
    prototypes          without bias                           without: lightly's is taken out
    queue               one per device, empty at first         one over all devices, random at first: see `queue_start`
    learning rate       warm-up from 0.3 to 4.8, to 0.0048     warm-up from zero, cosine to zero
    precision           half                                   backbone as the run says, heads and loss in 32 bits
    norms over devices  synchronised in groups of 8 devices    separate on each device
    colours             standard deviation of red is 0.228     the backbone's own mean and standard deviation
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightly.loss import SwaVLoss
from lightly.models.modules import SwaVProjectionHead, SwaVPrototypes
from lightly.transforms.swav_transform import SwaVTransform
from torch import Tensor, nn

from pretext.backbone_task import BackboneObjective, BackboneTask, Transform, crops_of, memory, problems_with_crops
from ssldet import ranks
from ssldet.collapse import entropies, spread
from ssldet.detectors.base import Detector
from ssldet.recipe import Within
from ssldet.types import Batch, Losses


@dataclass(frozen=True, kw_only=True)
class SwAV(BackboneTask):
    """Predict the assignment of one crop from another crop of the same image.

    Attributes:
        large_size: Side of the large crops, in pixels.
        small_size: Side of the small crops, in pixels; less than `large_size`.
        large_crops: Number of large crops, whose assignments are predicted.
        small_crops: Number of small crops, which only predict.
        large_scale: Smallest and largest share of the image's area that a large crop shows.
        small_scale: Smallest and largest share of the image's area that a small crop shows.
        colour_strength: Strength of the colour jitter; 1 is the paper's.
        blur: Probability that a crop is blurred.
        hidden_width: Width of the projection head's hidden layer.
        width: Width of the projections and of the prototypes.
        prototypes: Number of prototypes.
        temperature: Temperature of the predictions.
        sinkhorn_epsilon: Smoothness of the assignments; larger values are smoother.
        sinkhorn_iterations: Iterations that make the prototypes equally frequent.
        frozen_prototype_steps: Steps before the prototypes are trained too.
        queue_length: Number of projections of earlier batches that are assigned together with the batch, which helps
            batches that are small for the number of prototypes; 0 means no queue.
        queue_start: Step from which the queue takes part; choose one at which the queue is full and the features have
            settled.
    """

    cite: ClassVar[str] = "caron2020swav"

    large_size: Annotated[int, Within(8, 10_000)] = 224
    small_size: Annotated[int, Within(8, 10_000)] = 96
    large_crops: Annotated[int, Within(2, 1000)] = 2
    small_crops: Annotated[int, Within(0, 1000)] = 6
    large_scale: tuple[float, float] = (0.14, 1.0)
    small_scale: tuple[float, float] = (0.05, 0.14)
    colour_strength: Annotated[float, Within(0)] = 1.0
    blur: Annotated[float, Within(0, 1)] = 0.5
    hidden_width: Annotated[int, Within(1, 65_536)] = 2048
    width: Annotated[int, Within(1, 65_536)] = 128
    prototypes: Annotated[int, Within(2, 2**20)] = 3000
    temperature: Annotated[float, Within(1e-3)] = 0.1
    sinkhorn_epsilon: Annotated[float, Within(1e-2)] = 0.05
    sinkhorn_iterations: Annotated[int, Within(1)] = 3
    frozen_prototype_steps: Annotated[int, Within(0)] = 313
    queue_length: Annotated[int, Within(0, 2**24)] = 0
    queue_start: Annotated[int, Within(0)] = 0

    def transform(self) -> Transform:
        """Return lightly's multi-crop transform."""
        transform = SwaVTransform(
            crop_sizes=(self.large_size, self.small_size),
            crop_counts=(self.large_crops, self.small_crops),
            crop_min_scales=(self.large_scale[0], self.small_scale[0]),
            crop_max_scales=(self.large_scale[1], self.small_scale[1]),
            cj_strength=self.colour_strength,
            gaussian_blur=self.blur,
            normalize=None,
        )
        return cast(Transform, transform)

    def objective(self, detector: Detector) -> "SwappedPrediction":
        """Return the module that computes the swapped prediction loss."""
        return SwappedPrediction(self, detector)

    def problems(self) -> list[str]:
        """Return what is wrong between fields."""
        return problems_with_crops(self)


class SwappedPrediction(BackboneObjective):
    """Trains the backbone to predict assignments.

    Attributes:
        detector: The detector whose backbone is trained.
        head: Features -> projections; discarded after pretraining, like all attributes below.
        prototypes: Projections -> similarity to each prototype.
        queues: Projections of earlier batches, one queue per large crop.
    """

    def __init__(self, task: SwAV, detector: Detector) -> None:
        """Build head, prototypes, queues and loss.

        Args:
            task: The task's choices.
            detector: The detector whose backbone is trained.
        """
        super().__init__(detector)
        self.task, self._step = task, 0
        self.head = SwaVProjectionHead(detector.feature_channels, task.hidden_width, task.width)
        self.prototypes = SwaVPrototypes(task.width, task.prototypes, task.frozen_prototype_steps)
        self.prototypes.heads[0].register_parameter("bias", None)
        self.prototypes.normalize()
        queues = task.large_crops if task.queue_length else 0
        self.queues = nn.ModuleList(
            memory(task.queue_length, task.width, feature_dim_first=False) for _ in range(queues)
        )
        self.loss = SwaVLoss(
            task.temperature,
            task.sinkhorn_iterations,
            task.sinkhorn_epsilon,
            sinkhorn_gather_distributed=torch.distributed.is_available(),
        )

    def begin(self, step: int, total_steps: int) -> None:
        """Scale the prototypes to length one, and keep the step, which decides whether they and the queue take part."""
        self._step = step
        self.prototypes.normalize()

    def forward(self, batch: Batch) -> Losses:
        """Project all crops, assign the large ones and predict from all, in the order of the paper's figure 1."""
        features = [self.describe(crops.flatten(0, 1)).float() for crops in crops_of(batch)]
        with torch.autocast(batch.images.device.type, enabled=False):
            # All crops at once, so that the head's batch norm sees all of them.
            projections = F.normalize(self.head(torch.cat(features)), dim=1)
            sizes = torch.split(projections, [len(some) for some in features])
            crops = [crop for some in sizes for crop in some.view(len(batch), -1, some.shape[1]).unbind(1)]
            similarity = [self.prototypes(crop, self._step) for crop in crops]
            large, small = similarity[: self.task.large_crops], similarity[self.task.large_crops :]
            loss = self.loss(large, small, self._queued(crops[: self.task.large_crops]))
        return Losses(
            terms={"swapped_prediction": loss},
            weights={"swapped_prediction": 1.0},
            metrics={"feature_std": spread(features[0].detach()), **self._usage(torch.cat(large).detach())},
        )

    @torch.no_grad()
    def _queued(self, projections: list[Float[Tensor, "B D"]]) -> list[Float[Tensor, "N C"]] | None:
        """Add the batch to the queues; return their similarities to the prototypes, or `None` if they take no part."""
        banks = [
            queue(projection, update=self.training)[1]
            for queue, projection in zip(self.queues, projections, strict=False)
        ]
        if not banks or self._step < self.task.queue_start:
            return None
        # Every device holds the whole queue, and the assignments are balanced over all devices.
        return [self.prototypes(ranks.share(bank), self._step) for bank in banks]

    def _usage(self, similarity: Float[Tensor, "N C"]) -> dict[str, Float[Tensor, ""]]:
        """Return two entropies as shares of the largest possible: of the mean prediction, and of single predictions.

        The first should stay high, else only few prototypes are used; the second should fall, else the predictions do
        not tell crops apart.
        """
        used, single = entropies((similarity / self.task.temperature).softmax(1))
        return {"prototype_entropy": used, "prediction_entropy": single}
