"""images -> crops -> a taught backbone: what pretext tasks that train the backbone alone have in common.

Crops are made by lightly's transforms, in the loader's workers, and cross to the device as bytes, where the backbone's
own mean and deviation normalise them. The rest of the detector rests, and starts anew in the next stage.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import PurePath
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float, UInt8
from lightly.models.modules.memory_bank import MemoryBankModule
from PIL import Image
from torch import Tensor

from pretext.nearest_neighbours import Category, NearestNeighbours
from ssldet.chance import lent
from ssldet.data.geometry import resize
from ssldet.detectors.base import Detector, DetectorConfig, backbone_of
from ssldet.recipe import Within
from ssldet.task import Evaluator, Objective, PretextTask, Stage, Views
from ssldet.types import Batch, Embedding, Gather, Problem, Sample, Source, Targets

MARGIN = 8 / 7
"""Short side of an image over the side of the square that is cut from its middle to measure it: 256 over 224."""

Transform = Callable[[Image.Image], list[Tensor]]
"""One of lightly's: an image -> its crops, `3 h w` in 0..1, crops of one size side by side."""


@dataclass(frozen=True, kw_only=True)
class Crops(Problem):
    """Crops of a whole image, to be compared with one another.

    Attributes:
        pixels: One entry per size, largest first, each with as many crops for every image.
    """

    pixels: Annotated[tuple[UInt8[Tensor, "*B _ 3 _ _"], ...], Gather.PIXELS]


def crops_of(batch: Batch) -> tuple[UInt8[Tensor, "B _ 3 _ _"], ...]:
    """Return the crops that come with a batch, one entry per size."""
    assert isinstance(batch.problem, Crops), "these samples carry no crops; were they made by another task's views?"
    return batch.problem.pixels


def _with_fixed_norms(detector: DetectorConfig) -> DetectorConfig:
    """Fix the norms of the backbone: detectors train on too few images at a time for statistics of their own."""
    backbone = backbone_of(detector)
    assert backbone is not None, "a task that trains a backbone was checked against its detector"
    return replace(detector, backbone=replace(backbone, frozen_norm=True))  # type: ignore[call-arg]


@dataclass(frozen=True, kw_only=True)
class BackboneTask(PretextTask):
    """A task that trains the backbone alone, by comparing crops of whole images.

    Attributes:
        eval_side: Side of the square from the middle of the image that is described outside training.
        neighbours: Nearest neighbours that vote in the probe.
    """

    headline: ClassVar[str] = "knn_top1"
    stage: ClassVar[Stage] = Stage(hands_over=_with_fixed_norms)

    eval_side: Annotated[int, Within(8)] = 224
    neighbours: Annotated[int, Within(1)] = 20

    def rests(self, section: str) -> bool:
        """Return whether a section is another one than the backbone."""
        return section != "backbone"

    def stays_behind(self, section: str) -> bool:
        """Return whether a section is another one than the backbone."""
        return section != "backbone"

    @abstractmethod
    def transform(self) -> Transform:
        """Return what makes the crops of a training image; it may draw from any global stream."""

    def views(self, *, training: bool = True) -> Views:
        """Return the function that makes the crops, or, outside training, cuts the middle."""
        return CropViews(transform=self.transform() if training else None, eval_side=self.eval_side)

    def evaluator(self, source: Source) -> Evaluator:
        """Return the nearest-neighbour probe on folder names."""
        return NearestNeighbours(self.neighbours)

    def problems_with(self, detector: DetectorConfig) -> list[str]:
        """Say why the backbone could not learn, or not all of it."""
        backbone = backbone_of(detector)
        if backbone is None:
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
            category = Category(folder=PurePath(sample.key).parent.name)
            return replace(blank, image=self._middle(blank), problem=category)
        photo = Image.fromarray(sample.image.permute(1, 2, 0).numpy())
        with lent(generator):
            made = self.transform(photo)
        groups = [list(crops) for _, crops in groupby(made, key=lambda crop: crop.shape)]
        # Whole numbers of 255, as they come from an image of bytes: nothing is lost.
        crops = tuple(torch.stack(group).mul(255).round().to(torch.uint8) for group in groups)
        return replace(blank, image=crops[0][0], problem=Crops(pixels=crops))

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
    def answer(self, batch: Batch) -> list[Embedding]:
        """Return the vector of each image; boxes were never taught."""
        return [Embedding(vector=vector) for vector in self.describe(batch.images).float()]


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
