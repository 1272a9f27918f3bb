"""images -> "what does the teacher see in each cell?": dense distillation into the backbone and the encoder.

A frozen backbone, the teacher, describes every cell of an image. From the student's last level, and from each level of
its encoder's memory, a linear head has to name the teacher's vector of the same place; only directions are compared.
A new backbone, or a transformer that is cold because its backbone was exchanged, thus learns on unlabelled images what
a better backbone knows. Decoder, queries and heads do not take part, and start afresh in the next stage.

This is ours. Its relatives distil into the backbone (LightlyTrain's distillation), or into the encoder while labels are
learned (RT-DETRv4, Liao et al. 2025). Known differences, each with the field that chooses:

    topic              relatives                                 here
    what is aligned    backbone, or encoder                      both: `backbone_weight`, `encoder_weight`
    teacher            DINOv2 or DINOv3                          any backbone with any weights: `teacher`
    loss               RT-DETRv4: cosine of cells                one minus the cosine of cells, mean over what is image
    sizes              the student is resized, or pooled         the teacher is resized to each map of the student
    labels             RT-DETRv4: boxes are learned beside it    none
    published score    RT-DETRv4: 55.4 AP (L) against 54.0 of    none of this task
                       its detector without it, with labels
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pretext.networks import resting_network
from pretext.proposal_task import SIDES
from ssldet.data.geometry import DETRAugmentation, ShortSide, problems_of_crops, problems_of_short_sides
from ssldet.detectors.base import Detector, DetectorConfig, backbone_of
from ssldet.errors import DataError, DivergedError
from ssldet.nn.backbones import BackboneConfig
from ssldet.nn.padding import resize_padding
from ssldet.recipe import Within
from ssldet.source import Source
from ssldet.task import Evaluator, Objective, PretextTask, Stage, Views
from ssldet.types import Answer, Batch, Losses, Sample, Targets

PARTS = ("backbone", "encoder")
"""Parts of a detector that are aligned, in this order wherever numbers of both stand together."""
ENCODING = frozenset({"backbone", "projection", "encoder"})
"""Sections that take part in the encoder's memory."""


def _with_fixed_norms(detector: DetectorConfig) -> DetectorConfig:
    """Freeze the norms of a backbone that learned; a detector without one stays as it is."""
    backbone = backbone_of(detector)
    if backbone is None:
        return detector
    return replace(detector, backbone=replace(backbone, frozen_norm=True))  # type: ignore[call-arg]


@dataclass(frozen=True, kw_only=True)
class Distillation(PretextTask):
    """Name what a frozen teacher sees in each cell of an image.

    Attributes:
        teacher: Network and weights of the teacher, which is loaded and never trained. It is no part of checkpoints, so
            that its weights must be at hand wherever the task is.
        freeze_backbone: Train only what turns the backbone's features into the encoder's memory.
        backbone_weight: Weight of the backbone's last level in the loss; 0 leaves it out.
        encoder_weight: Weight of the encoder's memory in the loss; 0 leaves it out.
        scales: Short sides in pixels, one of which is drawn for each training image.
        max_size: Limit of the long side in pixels, which takes precedence over the short side.
        eval_scale: Short side outside training.
        flip: Probability that a training image is mirrored.
        crop: Probability that a training image is cropped before it is resized.
        crop_scales: Short sides in pixels, to one of which an image is resized before it is cropped.
        crop_range: Smallest and largest side of a crop in pixels.
    """

    cite: ClassVar[str] = "liao2025rtdetrv4"
    headline: ClassVar[str] = "agreement"
    stage: ClassVar[Stage] = Stage(hands_over=_with_fixed_norms)

    teacher: BackboneConfig = field(
        default_factory=lambda: BackboneConfig(name="timm/vit_small_patch14_reg4_dinov2", weights="lvd142m")
    )
    freeze_backbone: bool = False
    backbone_weight: Annotated[float, Within(0)] = 1.0
    encoder_weight: Annotated[float, Within(0)] = 1.0
    scales: tuple[int, ...] = SIDES
    max_size: Annotated[int, Within(8)] = 600
    eval_scale: Annotated[int, Within(8)] = 480
    flip: Annotated[float, Within(0, 1)] = 0.5
    crop: Annotated[float, Within(0, 1)] = 0.5
    crop_scales: tuple[int, ...] = (400, 500, 600)
    crop_range: tuple[int, int] = (384, 600)

    def rests(self, section: str) -> bool:
        """Return whether a section takes no part in the memory, or is a backbone that is frozen."""
        return section not in ENCODING or (section == "backbone" and self.freeze_backbone)

    def stays_behind(self, section: str) -> bool:
        """Return whether a section takes no part in the memory, so that it has learned nothing."""
        return section not in ENCODING

    def views(self, *, training: bool = True) -> Views:
        """Return the function that flips, crops and resizes the image."""
        return PlainViews(task=self, training=training)

    def objective(self, detector: Detector) -> "DenseAlignment":
        """Return the module that aligns the detector's maps with the teacher's."""
        return DenseAlignment(self, detector)

    def evaluator(self, source: Source) -> Evaluator:
        """Return the agreement with the teacher."""
        return Agreement()

    def problems(self) -> list[str]:
        """Return what is wrong between fields."""
        wrong = problems_of_short_sides("scales", self.scales)
        wrong += problems_of_crops(self.crop_scales, self.crop_range)
        if not self.encoder_weight and (self.freeze_backbone or not self.backbone_weight):
            wrong.append(
                "encoder_weight: nothing is left to align; set it, or backbone_weight with freeze_backbone=false"
            )
        return wrong

    def problems_with(self, detector: DetectorConfig) -> list[str]:
        """Return a message for a detector without a backbone, or one that could learn and keeps its norms."""
        backbone = backbone_of(detector)
        if backbone is None:
            return [f"teacher: {type(detector).__name__} has no backbone to align with another; use 'detr'"]
        if backbone.weights is None and backbone.frozen_norm and not self.freeze_backbone:
            return [
                "freeze_backbone: a backbone without weights learns with its norms; set "
                "detector.backbone.frozen_norm=false and detector.backbone.frozen_stages=0"
            ]
        return []


@dataclass(frozen=True, kw_only=True)
class PlainViews:
    """Flips, crops and resizes an image; nothing is to be found in it.

    Attributes:
        task: The task's choices.
        training: `False` leaves out every change but one size.
    """

    task: Distillation
    training: bool

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the image as student and teacher see it; labels, if it has any, are not read."""
        task = self.task
        whole = replace(sample, targets=Targets.none(), problem=None)
        if not self.training:
            return ShortSide((task.eval_scale,), task.max_size)(whole, generator)
        frame = DETRAugmentation(
            scales=task.scales,
            max_size=task.max_size,
            crop_scales=task.crop_scales,
            crop_range=task.crop_range,
            crop=task.crop,
            flip=task.flip,
        )
        return frame(whole, generator)


class DenseAlignment(Objective):
    """Trains a detector's backbone and encoder to name the teacher's cells.

    Attributes:
        detector: The detector that is trained.
        heads: Part that is aligned -> a linear map from its cells to the teacher's channels; discarded after
            pretraining.
    """

    def __init__(self, task: Distillation, detector: Detector) -> None:
        """Build the heads.

        Args:
            task: The task's choices.
            detector: The detector that is trained.
        """
        super().__init__()
        self.task, self.detector = task, detector
        channels = resting_network(task.teacher).channels
        widths = {"backbone": detector.feature_channels, "encoder": detector.width}
        self._weights = {"backbone": task.backbone_weight, "encoder": task.encoder_weight}
        if task.freeze_backbone:
            self._weights["backbone"] = 0.0
        self.heads = nn.ModuleDict(
            {part: nn.Conv2d(widths[part], channels, 1) for part in PARTS if self._weights[part]}
        )

    def forward(self, batch: Batch) -> Losses:
        """Compare the student's maps with the teacher's, cell by cell."""
        alike = {part: self._mean(aligned) for part, aligned in self._align(batch).items()}
        return Losses(
            terms={part: (1 - cosine).reshape(1) for part, cosine in alike.items()},
            weights={part: self._weights[part] for part in alike},
            metrics={f"{part}_agreement": cosine.detach() for part, cosine in alike.items()},
        )

    @torch.no_grad()
    def answer(self, batch: Batch) -> list["Aligned"]:
        """Return how far student and teacher agree about each image."""
        aligned = self._align(batch)
        return [_of_image([aligned.get(part, []) for part in PARTS], image) for image in range(len(batch))]

    def _align(self, batch: Batch) -> dict[str, list["Cells"]]:
        """Return for each part what student and teacher say of the cells of every map."""
        levels = self.detector.levels(self.detector.normalise(batch.images, batch.padding))
        maps = {"backbone": levels[-1:], "encoder": ()}
        if "encoder" in self.heads:
            maps["encoder"] = self.detector.memory(levels, batch.padding)
            assert maps["encoder"], f"{type(self.detector).__name__} tells nothing of its encoder's memory"
        with torch.no_grad():
            teacher = resting_network(self.task.teacher, batch.images.device)
            taught = teacher(teacher.normalise(batch.images, batch.padding)).float()
        return {
            part: [_compare(head, level, taught, batch.padding) for level in maps[part]] for part, head in self._each()
        }

    def _each(self) -> list[tuple[str, nn.Module]]:
        return list(self.heads.items())

    def _mean(self, aligned: Sequence["Cells"]) -> Float[Tensor, ""]:
        """Return the mean cosine over all cells that hold image, whatever their map."""
        total = torch.stack([(cells.cosines * cells.shows).sum() for cells in aligned]).sum()
        return total / torch.stack([cells.shows.sum() for cells in aligned]).sum().clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class Cells:
    """What student and teacher say of the cells of one map.

    Attributes:
        cosines: Cosine of what the student names and the teacher's vector.
        directions: The teacher's vectors, scaled to length one.
        shows: 1 for cells that hold image, else 0.
    """

    cosines: Float[Tensor, "B h w"]
    directions: Float[Tensor, "B E h w"]
    shows: Float[Tensor, "B h w"]


def _compare(
    head: nn.Module, level: Float[Tensor, "B _ h w"], taught: Float[Tensor, "B E _ _"], padding: Bool[Tensor, "B H W"]
) -> Cells:
    """Let a head name the teacher's vectors of one map, to whose cells the teacher's are resized."""
    with torch.autocast(level.device.type, enabled=False):
        named = head(level.float())
        resized = F.interpolate(taught, level.shape[-2:], mode="bilinear", antialias=True)
        return Cells(
            cosines=F.cosine_similarity(named, resized, dim=1),
            directions=F.normalize(resized, dim=1),
            shows=(~resize_padding(padding, level)).float(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Aligned(Answer):
    """How far student and teacher agree about one image; the parts in the order of `PARTS`.

    Attributes:
        cosines: Sum of the cosines of all cells, for each part.
        cells: Number of cells, for each part; 0 for one that is not aligned.
        directions: Sum of the teacher's directions over all cells, for each part.
    """

    cosines: Float[Tensor, " N"]
    cells: Float[Tensor, " N"]
    directions: Float[Tensor, "N E"]


def _of_image(parts: Sequence[Sequence[Cells]], image: int) -> Aligned:
    some = next(part[0] for part in parts if part)
    cosines, cells = (some.cosines.new_zeros(len(parts)) for _ in range(2))
    directions = some.directions.new_zeros(len(parts), some.directions.shape[1])
    for number, maps in enumerate(parts):
        for level in maps:
            shows = level.shows[image]
            cosines[number] += (level.cosines[image] * shows).sum()
            cells[number] += shows.sum()
            directions[number] += (level.directions[image] * shows).sum((1, 2))
    return Aligned(cosines=cosines, cells=cells, directions=directions)


class Agreement:
    """Mean cosine between what the student names and what the teacher sees.

    The baseline is the best constant vector: the same answer for every cell of every image, chosen to agree best with
    the very cells that it is measured on.
    """

    def __init__(self) -> None:
        """Start without images."""
        self._found: list[Aligned] = []

    def update(self, answers: list[Aligned], batch: Batch) -> None:
        """Take in one batch.

        Args:
            answers: One entry per image.
            batch: What was asked; nothing of it is needed.

        Raises:
            DivergedError: A cosine is not finite.
        """
        if not all(bool(answer.cosines.isfinite().all()) for answer in answers):
            raise DivergedError("what the student names is not finite: the model has diverged; lower optim.lr")
        self._found += answers

    def results(self) -> dict[str, Any]:
        """Return the figures of the images so far.

        Returns:
            `agreement`, that of the encoder, or of the backbone where only this is aligned; `agreement_constant`, that
            of the best constant vector; then both for each part, as `encoder_agreement` and so on.

        Raises:
            DataError: There was no image.
        """
        if not self._found:
            raise DataError("no image to measure the agreement with the teacher on; give at least one")
        cells = torch.stack([one.cells for one in self._found]).double().sum(0)
        cosines = torch.stack([one.cosines for one in self._found]).double().sum(0)
        directions = torch.stack([one.directions for one in self._found]).double().sum(0)
        found: dict[str, float] = {}
        for number in (number for number in reversed(range(len(PARTS))) if cells[number]):
            # The mean of vectors of length one is as long as their mean cosine with their own mean direction.
            here = {"": cosines[number], "_constant": directions[number].norm()}
            measured = {word: float(total / cells[number]) for word, total in here.items()}
            if not found:
                found |= {f"agreement{word}": value for word, value in measured.items()}
            found |= {f"{PARTS[number]}_agreement{word}": value for word, value in measured.items()}
        return found
