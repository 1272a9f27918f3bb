"""images -> crops -> a trained network: what pretext tasks that compare crops have in common.

Crops are made by lightly's transforms in the loader's workers and move to the device as bytes, where the backbone's own
mean and standard deviation normalise them. Where a backbone is trained alone, the rest of the detector is not trained
here and is initialised anew in the next stage.
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
from ssldet.data.joining import without_labels
from ssldet.detectors.base import Detector, DetectorConfig, backbone_of
from ssldet.detectors.on_backbone import network_of
from ssldet.nn.backbones import Backbone
from ssldet.recipe import Within
from ssldet.source import Source
from ssldet.task import Evaluator, Objective, PretextTask, Stage, Views
from ssldet.types import Batch, Embedding, Gather, Problem, Sample

MARGIN = 8 / 7
"""Short side of an image over the side of the square that is cut from its middle to measure it: 256 over 224."""

Transform = Callable[[Image.Image], list[Tensor]]
"""A transform of lightly: an image -> its crops, `3 h w` in 0..1; crops of one size follow one another."""


@dataclass(frozen=True, kw_only=True)
class Crops(Problem):
    """Crops of a whole image, to be compared with one another.

    Attributes:
        pixels: One entry per crop size, the largest first. Within an entry, every image has the same number of crops.
    """

    pixels: Annotated[tuple[UInt8[Tensor, "*B _ 3 _ _"], ...], Gather.PIXELS]


def crops_of(batch: Batch) -> tuple[UInt8[Tensor, "B _ 3 _ _"], ...]:
    """Return the crops of a batch, one entry per crop size."""
    assert isinstance(batch.problem, Crops), "these samples carry no crops; were they made by another task's views?"
    return batch.problem.pixels


def with_fixed_norms(detector: DetectorConfig) -> DetectorConfig:
    """Freeze the backbone's norms: detectors train on too few images at a time for batch statistics of their own."""
    backbone = backbone_of(detector)
    assert backbone is not None, "a task that trains a backbone was checked against its detector"
    return replace(detector, backbone=replace(backbone, frozen_norm=True))  # type: ignore[call-arg]


def problems_with_learning(task: object, detector: DetectorConfig) -> list[str]:
    """Return what keeps a detector's backbone, or a part of it, from learning.

    Args:
        task: The task that trains it.
        detector: Any detector's configuration.
    """
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
    return [f"{type(task).__name__}: {line}" for line in wrong]


def backbone_in(detector: Detector) -> Backbone:
    """Return the backbone that a detector is built on; tasks that need one are checked against their detector."""
    backbone = network_of(detector)
    assert backbone is not None
    return backbone


@dataclass(frozen=True, kw_only=True)
class CropTask(PretextTask):
    """A task that compares crops of whole images.

    Attributes:
        eval_side: Side in pixels of the centre crop that is described outside training.
        neighbours: Number of nearest neighbours that vote in the probe.
    """

    headline: ClassVar[str] = "knn_top1"

    eval_side: Annotated[int, Within(8, 10_000)] = 224
    neighbours: Annotated[int, Within(1)] = 20

    @abstractmethod
    def transform(self) -> Transform:
        """Return the function that makes the crops of a training image; it may use any global random generator."""

    def views(self, *, training: bool = True) -> Views:
        """Return the function that makes the crops or, outside training, the centre crop."""
        return CropViews(transform=self.transform() if training else None, eval_side=self.eval_side)

    def evaluator(self, source: Source) -> Evaluator:
        """Return the nearest-neighbour probe on folder names."""
        return NearestNeighbours(self.neighbours)


def problems_with_crops(task: Any) -> list[str]:
    """Return what is wrong between the sizes and the areas of large and small crops.

    Args:
        task: Has the fields `large_size`, `small_size`, `small_crops`, `large_scale` and `small_scale`.
    """
    wrong = []
    if task.small_crops and task.small_size >= task.large_size:
        wrong.append(f"small_size: {task.small_size} must be less than large_size {task.large_size}")
    for name in ("large_scale", "small_scale"):
        low, high = getattr(task, name)
        if not 0 < low <= high <= 1:
            wrong.append(f"{name}: {low:g} to {high:g} must be shares of an area, the smaller first")
    return wrong


@dataclass(frozen=True, kw_only=True)
class BackboneTask(CropTask):
    """A task that trains the backbone alone, by comparing crops of whole images."""

    stage: ClassVar[Stage] = Stage(hands_over=with_fixed_norms)

    def rests(self, section: str) -> bool:
        """Return whether a section is anything but the backbone."""
        return section != "backbone"

    def stays_behind(self, section: str) -> bool:
        """Return whether a section is anything but the backbone."""
        return section != "backbone"

    def problems_with(self, detector: DetectorConfig) -> list[str]:
        """Return what keeps the backbone, or a part of it, from learning."""
        return problems_with_learning(self, detector)


@dataclass(frozen=True, kw_only=True)
class CropViews:
    """Makes crops of one image.

    Attributes:
        transform: Makes the crops; `None` takes the centre crop instead.
        eval_side: Side of the centre crop in pixels.
    """

    transform: Transform | None
    eval_side: int

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Make the crops of an image; labels, if it has any, are not read.

        In training the first crop replaces the image, which is not needed any more.
        """
        blank = without_labels(sample)
        if self.transform is None:
            category = Category(folder=PurePath(sample.key).parent.name)
            return replace(blank, image=middle(blank, self.eval_side), problem=category)
        photo = Image.fromarray(sample.image.permute(1, 2, 0).numpy())
        with lent(generator):
            made = self.transform(photo)
        groups = [list(crops) for _, crops in groupby(made, key=lambda crop: crop.shape)]
        # The values are multiples of 1/255, because the image is made of bytes: rounding loses nothing.
        crops = tuple(torch.stack(group).mul(255).round().to(torch.uint8) for group in groups)
        return replace(blank, image=crops[0][0], problem=Crops(pixels=crops))


def middle(sample: Sample, side: int) -> UInt8[Tensor, "3 h w"]:
    """Return the square from the middle of an image by which it is measured.

    Args:
        sample: The image.
        side: Side of the square in pixels, after it was cut out.
    """
    # Crop before resizing: a very long image would become huge.
    cut = max(1, round(min(sample.image.shape[1:]) / MARGIN))
    top, left = ((extent - cut) // 2 for extent in sample.image.shape[1:])
    square = replace(sample, image=sample.image[:, top : top + cut, left : left + cut])
    return resize(square, (side, side)).image


class BackboneObjective(Objective):
    """Describes images by the detector's backbone.

    Attributes:
        detector: The detector whose backbone is trained.
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
        """Return the vector of each image; the task trains no boxes."""
        return [Embedding(vector=vector) for vector in self.describe(batch.images).float()]


def memory(size: int, width: int, **choices: Any) -> MemoryBankModule:
    """Return lightly's memory bank with its buffers saved in checkpoints: an exact resume needs them.

    Args:
        size: Number of vectors that it holds.
        width: Length of a vector.
        choices: Further arguments of lightly's memory bank.
    """
    return saved(MemoryBankModule((size, width), gather_distributed=True, **choices))


def saved(bank: MemoryBankModule) -> MemoryBankModule:
    """Have the buffers of a memory bank saved in checkpoints, which lightly leaves out."""
    for name, buffer in list(bank.named_buffers()):
        bank.register_buffer(name, buffer, persistent=True)
    return bank
