"""images -> crops -> "which prototypes would your sister be assigned to?": SwAV (Caron et al. 2020), for the backbone.

Two large and several small crops of an image are compared with prototypes. The assignments of each large crop, made
equal over the batch by Sinkhorn's iterations, are what every other crop must predict. Losses, heads, queue and
transforms are lightly's. Known differences between the paper, the authors' code and this file:

    topic               paper and code                         here
    prototypes          without bias                           without: lightly's is taken out
    queue               one a device, empty at first           one over all devices, random at first: see `queue_start`
    learning rate       warm-up from 0.3 to 4.8, to 0.0048     warm-up from zero, cosine to zero
    precision           half                                   backbone as the run says, heads and loss in 32 bits
    norms over devices  synchronised in groups of 8 devices    each device its own, unless the run is on one
    colours             red deviates by 0.228                  the backbone's own mean and deviation
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

from pretext.backbone_task import BackboneObjective, BackboneTask, Transform, crops_of, memory
from pretext.nearest_neighbours import spread
from ssldet import ranks
from ssldet.detectors.base import Detector
from ssldet.recipe import Within
from ssldet.types import Batch, Losses


@dataclass(frozen=True, kw_only=True)
class SwAV(BackboneTask):
    """Predict the assignment of one crop from another.

    Attributes:
        large_size: Side of the large crops, in pixels.
        small_size: Side of the small ones; shorter.
        large_crops: Number of large crops, whose assignments are predicted.
        small_crops: Number of small ones, which only predict.
        large_scale: Least and largest share of the image's area that a large crop shows.
        small_scale: The same of a small one.
        colour_strength: Strength of the colour jitter; one is the paper's.
        blur: Chance that a crop is blurred.
        hidden_width: Width of the projection head's hidden layer.
        width: Width of the projections and of the prototypes.
        prototypes: Number of prototypes.
        temperature: Of the predictions.
        sinkhorn_epsilon: Smoothness of the assignments; more is smoother.
        sinkhorn_iterations: Iterations that make the assignments equal.
        frozen_prototype_steps: Steps before the prototypes learn too.
        queue_length: Projections of earlier batches that are assigned together with the batch, which helps batches that
            are small for the number of prototypes; zero keeps none.
        queue_start: Step from which they are; choose one after which the queue is full and the features have settled.
    """

    cite: ClassVar[str] = "caron2020swav"

    large_size: Annotated[int, Within(8)] = 224
    small_size: Annotated[int, Within(8)] = 96
    large_crops: Annotated[int, Within(2)] = 2
    small_crops: Annotated[int, Within(0)] = 6
    large_scale: tuple[float, float] = (0.14, 1.0)
    small_scale: tuple[float, float] = (0.05, 0.14)
    colour_strength: Annotated[float, Within(0)] = 1.0
    blur: Annotated[float, Within(0, 1)] = 0.5
    hidden_width: Annotated[int, Within(1)] = 2048
    width: Annotated[int, Within(1)] = 128
    prototypes: Annotated[int, Within(2)] = 3000
    temperature: Annotated[float, Within(1e-3)] = 0.1
    sinkhorn_epsilon: Annotated[float, Within(1e-2)] = 0.05
    sinkhorn_iterations: Annotated[int, Within(1)] = 3
    frozen_prototype_steps: Annotated[int, Within(0)] = 313
    queue_length: Annotated[int, Within(0)] = 0
    queue_start: Annotated[int, Within(0)] = 0

    def transform(self) -> Transform:
        """Return lightly's multi-crop."""
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
        """Return the module that assigns and predicts."""
        return SwappedPrediction(self, detector)

    def problems(self) -> list[str]:
        """Say what no single field can know."""
        wrong = []
        if self.small_crops and self.small_size >= self.large_size:
            wrong.append(f"small_size: {self.small_size} must be less than large_size {self.large_size}")
        for name in ("large_scale", "small_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                wrong.append(f"{name}: {low:g} to {high:g} must be shares of an area, the smaller first")
        return wrong


class SwappedPrediction(BackboneObjective):
    """Teaches the backbone to predict assignments.

    Attributes:
        detector: Whose backbone learns.
        head: Features -> projections; thrown away after pretraining, like all that follows.
        prototypes: Projections -> similarity to each prototype.
        queues: Projections of earlier batches, one queue for each large crop.
    """

    def __init__(self, task: SwAV, detector: Detector) -> None:
        """Join detector and heads.

        Args:
            task: The choices.
            detector: Whose backbone learns.
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
        """Bring the prototypes back to length one, and note whether they and the queue take part."""
        self._step = step
        self.prototypes.normalize()

    def forward(self, batch: Batch) -> Losses:
        """Project all crops, assign the large ones, predict from all, in the order of the paper's figure 1."""
        features = [self.describe(crops.flatten(0, 1)).float() for crops in crops_of(batch)]
        with torch.autocast(batch.images.device.type, enabled=False):
            # All crops at once, because the head's norm shall see them all.
            projections = F.normalize(self.head(torch.cat(features)), dim=1)
            sizes = torch.split(projections, [len(some) for some in features])
            crops = [crop for some in sizes for crop in some.view(len(batch), -1, some.shape[1]).unbind(1)]
            similarity = [self.prototypes(crop, self._step) for crop in crops]
            large, small = similarity[: self.task.large_crops], similarity[self.task.large_crops :]
            loss = self.loss(large, small, self._remembered(crops[: self.task.large_crops]))
        return Losses(
            terms={"swapped_prediction": loss},
            weights={"swapped_prediction": 1.0},
            metrics={"feature_std": spread(features[0].detach()), **self._usage(torch.cat(large).detach())},
        )

    @torch.no_grad()
    def _remembered(self, projections: list[Float[Tensor, "B D"]]) -> list[Float[Tensor, "N C"]] | None:
        """Return the similarities of the queues to the prototypes, where they take part, and take in the batch."""
        banks = [
            queue(projection, update=self.training)[1]
            for queue, projection in zip(self.queues, projections, strict=False)
        ]
        if not banks or self._step < self.task.queue_start:
            return None
        # Every device holds the whole queue, and the assignments are made equal over all devices.
        return [self.prototypes(ranks.share(bank), self._step) for bank in banks]

    def _usage(self, similarity: Float[Tensor, "N C"]) -> dict[str, Float[Tensor, ""]]:
        """Return two entropies as shares of the largest: of the prototypes' use, and of single predictions.

        The first should stay high, else crops crowd on few prototypes; the second should fall, else nothing is told
        apart.
        """
        predictions = (similarity / self.task.temperature).softmax(1)
        largest = torch.tensor(float(similarity.shape[1])).log()
        return {
            "prototype_entropy": torch.special.entr(predictions.mean(0)).sum() / largest,
            "prediction_entropy": torch.special.entr(predictions).sum(1).mean() / largest,
        }
