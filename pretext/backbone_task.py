"""images -> crops -> a taught backbone: what pretext tasks that train the backbone alone have in common.

Crops are made by lightly's transforms, in the loader's workers, and cross to the device as bytes, where the backbone's
own mean and deviation normalise them. The rest of the detector rests, and starts anew in the next stage.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float, UInt8
from lightly.models.modules.memory_bank import MemoryBankModule
from PIL import Image
from torch import Tensor

from pretext.nearest_neighbours import NearestNeighbours
from ssldet.chance import lent
from ssldet.data.geometry import resize
from ssldet.detectors.base import Detector, DetectorConfig
from ssldet.nn.backbones import BackboneConfig
from ssldet.recipe import Within
from ssldet.task import Evaluator, Objective, PretextTask, Views
from ssldet.types import Batch, Detections, Sample, Source, Targets

MARGIN = 8 / 7
"""Short side of an image over the side of the square that is cut from its middle to measure it: 256 over 224."""

Transform = Callable[[Image.Image], list[Tensor]]
"""One of lightly's: an image -> its crops, `3 h w` in 0..1, crops of one size side by side."""


@dataclass(frozen=True, kw_only=True)
class BackboneTask(PretextTask):
    """A task that trains the backbone alone, by comparing crops of whole images.

    Attributes:
        eval_side: Side of the square from the middle of the image that is described outside training.
        neighbours: Nearest neighbours that vote in the probe.
    """

    headline: ClassVar[str] = "knn_top1"

    eval_side: Annotated[int, Within(8)] = 224
    neighbours: Annotated[int, Within(1)] = 20

    @property
    def trains(self) -> tuple[str, ...]:
        """The backbone."""
        return ("backbone",)

    @property
    def transfers(self) -> tuple[str, ...]:
        """The backbone."""
        return ("backbone",)

    @abstractmethod
    def transform(self) -> Transform:
        """Return what makes the crops of a training image; it may draw from any global stream."""

    def views(self, *, training: bool = True) -> Views:
        """Return the function that makes the crops, or, outside training, cuts the middle."""
        return CropViews(transform=self.transform() if training else None, eval_side=self.eval_side)

    def evaluator(self, source: Source) -> Evaluator:
        """Return the nearest-neighbour probe on folder names."""
        return NearestNeighbours(self.neighbours)

    def hands_over(self, detector: DetectorConfig) -> DetectorConfig:
        """Fix the norms of the backbone: detectors train on too few images at a time for statistics of their own."""
        fixed = replace(detector.backbone, frozen_norm=True)  # type: ignore[attr-defined]  # see `problems_with`
        return replace(detector, backbone=fixed)  # type: ignore[call-arg]

    def problems_with(self, detector: DetectorConfig) -> list[str]:
        """Say why the backbone could not learn, or not all of it."""
        backbone = getattr(detector, "backbone", None)
        if not isinstance(backbone, BackboneConfig):
            return [f"trains a backbone, and {type(detector).__name__} has none; use a detector with one: 'detr'"]
        wrong = []
        if backbone.frozen_norm:
            wrong.append("norms must learn while the backbone does; set detector.backbone.frozen_norm=false")
        if backbone.frozen_stages:
            wrong.append(
                f"all of the backbone must learn, not only what comes after stage {backbone.frozen_stages}; set "
                "detector.backbone.frozen_stages=0"
            )
        return [f"{type(self).__name__}: {line}" for line in wrong]


@dataclass(frozen=True, kw_only=True)
class CropViews:
    """Makes crops of one image.

    Attributes:
        transform: Makes them; none cuts the middle of the image instead.
        eval_side: Side of that square.
    """

    transform: Transform | None
    eval_side: int

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Look at an image several times; its labels, if there are any, are not looked at.

        In training the first crop takes the place of the image, which nothing needs any more.
        """
        blank = replace(sample, targets=Targets(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64)))
        if self.transform is None:
            return replace(blank, image=self._middle(blank))
        photo = Image.fromarray(sample.image.permute(1, 2, 0).numpy())
        with lent(generator):
            made = self.transform(photo)
        groups = [list(crops) for _, crops in groupby(made, key=lambda crop: crop.shape)]
        # Whole numbers of 255, as they come from an image of bytes: nothing is lost.
        crops = tuple(torch.stack(group).mul(255).round().to(torch.uint8) for group in groups)
        return replace(blank, image=crops[0][0], crops=crops)

    def _middle(self, sample: Sample) -> UInt8[Tensor, "3 h w"]:
        # Cut first: a very long image would grow beyond all bounds.
        side = max(1, round(min(sample.image.shape[1:]) / MARGIN))
        top, left = ((extent - side) // 2 for extent in sample.image.shape[1:])
        middle = replace(sample, image=sample.image[:, top : top + side, left : left + side])
        return resize(middle, (self.eval_side, self.eval_side)).image


class BackboneObjective(Objective):
    """Describes images by the detector's backbone.

    Attributes:
        detector: Whose backbone learns.
    """

    def __init__(self, detector: Detector) -> None:
        """Take the detector."""
        super().__init__()
        self.detector = detector

    def describe(self, pixels: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B E"]:
        """Return the backbone's features of images, averaged over their cells."""
        return self.detector.features(self.detector.normalise(pixels)).mean(dim=(2, 3))

    @torch.no_grad()
    def detect(self, batch: Batch) -> list[Detections]:
        """Return no boxes, which were never taught, but the vector of each image."""
        vectors = self.describe(batch.images).float()
        nothing = vectors.new_zeros(0)
        return [
            Detections(boxes=vectors.new_zeros(0, 4), scores=nothing, labels=nothing.long(), embedding=vector)
            for vector in vectors
        ]


def memory(size: int, width: int, **choices: Any) -> MemoryBankModule:
    """Return lightly's memory bank, as part of what is saved: an exact resume needs it, and lightly leaves it out.

    Args:
        size: Vectors that it holds.
        width: Numbers of a vector.
        choices: lightly's.
    """
    return saved(MemoryBankModule((size, width), gather_distributed=True, **choices))


def saved(bank: MemoryBankModule) -> MemoryBankModule:
    """Make a memory bank part of what is saved."""
    for name, buffer in list(bank.named_buffers()):
        bank.register_buffer(name, buffer, persistent=True)
    return bank
