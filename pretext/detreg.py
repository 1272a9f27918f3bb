"""images -> "where may objects be, and what do they look like?": DETReg (Bar et al. 2022).

Region proposals stand for objects. The detector must say where they are, with its own queries, and each query that
answers a region must name the embedding that a frozen backbone gives the pixels of the region. Known differences
between the paper, the authors' code and this file, each with the field that chooses:

    topic             paper                     released code                    here
    regions           selective search          30 first, OpenCV's fast form     `proposals`
    order of regions  hierarchy times chance    the C library's chance           the same rule, seeded
    few regions       not stated                another image if below two       fewer targets, or none
    embedding         of the frozen SwAV        mean of the level of stride 8    `embedding_level`
    its loss          L1                        mean L1, last layer only         mean L1, last layer only
    classes           object or not             the class head of COCO, class 1  one class
    augmentation      not stated                DETR's at UP-DETR's scales       the same, 384 included
    borders           not stated                last row and column never cut    every border is reached
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pretext.proposals import Proposals
from pretext.region_recall import RegionRecall
from ssldet.boxes import to_normalised
from ssldet.data.geometry import DETRAugmentation, ShortSide
from ssldet.data.photometric import Jitter, apply_jitter, draw_jitter
from ssldet.detectors.base import Detector
from ssldet.losses.set_prediction import set_prediction
from ssldet.nn.heads import MLP
from ssldet.patches import cut
from ssldet.postprocess import detections
from ssldet.recipe import Within
from ssldet.source import Source
from ssldet.task import Evaluator, Objective, PretextTask, Views
from ssldet.types import Batch, Detections, Gather, Losses, Matches, Predictions, Problem, Sample, Targets

SIDES = (320, 336, 352, 368, 384, 400, 416, 432, 448, 464, 480)
"""Short sides of UP-DETR, which DETReg took over."""


@dataclass(frozen=True, kw_only=True)
class DETReg(PretextTask):
    """Find proposed regions and name their embeddings.

    Attributes:
        proposals: Where regions come from and which are taken.
        crop_size: Side in pixels of the square to which the pixels of a region are resized for the embedding.
        embedding_level: Level of the detector's features of which the embedding is the mean, counted from the coarsest:
            3 is the level of stride 8 of a ResNet, as in the released code; 1 is the last level. A detector with fewer
            levels gives its finest.
        jitter: Photometric change of the pixels of a region before they are described.
        scales: Short sides in pixels, one of which is drawn for each training image.
        max_size: Limit of the long side in pixels, which takes precedence over the short side.
        eval_scale: Short side outside training.
        crop: Probability that a training image is cropped before it is resized.
        crop_scales: Short sides in pixels, to one of which an image is resized before it is cropped.
        crop_range: Smallest and largest side of a crop in pixels.
        flip: Probability that a training image is mirrored.
        freeze_backbone: Do not train the backbone, which gives the embeddings.
        class_weight: Weight of "object or not", in the loss and in the matching.
        box_l1_weight: Weight of the L1 distance of boxes, likewise.
        box_giou_weight: Weight of the generalised overlap, likewise.
        embedding_weight: Weight of the embedding in the loss.
        no_object_weight: Weight of queries without a region, in losses that weigh them.
    """

    cite: ClassVar[str] = "bar2022detreg"
    headline: ClassVar[str] = "region_recall_30"

    proposals: Proposals = field(default_factory=Proposals)
    crop_size: Annotated[int, Within(8)] = 128
    embedding_level: Annotated[int, Within(1)] = 3
    jitter: Jitter = field(default_factory=Jitter)
    scales: tuple[int, ...] = SIDES
    max_size: Annotated[int, Within(8)] = 600
    eval_scale: Annotated[int, Within(8)] = 480
    crop: Annotated[float, Within(0, 1)] = 0.5
    crop_scales: tuple[int, ...] = (400, 500, 600)
    crop_range: tuple[int, int] = (384, 600)
    flip: Annotated[float, Within(0, 1)] = 0.5
    freeze_backbone: bool = True
    class_weight: Annotated[float, Within(0)] = 2.0
    box_l1_weight: Annotated[float, Within(0)] = 5.0
    box_giou_weight: Annotated[float, Within(0)] = 2.0
    embedding_weight: Annotated[float, Within(0)] = 1.0
    no_object_weight: Annotated[float, Within(0)] = 0.1

    def rests(self, section: str) -> bool:
        """Return whether a section is a mask head, or the backbone if that is frozen."""
        return section == "mask_head" or (section == "backbone" and self.freeze_backbone)

    def stays_behind(self, section: str) -> bool:
        """Return whether a section is a mask head, or the class head, whose classes differ from task to task."""
        return section in {"class_head", "mask_head"}

    def prepare(self, source: Source, *, training: bool = True) -> Source:
        """Return the images with the boxes of a file, if the proposals come from one."""
        return self.proposals.within(source)

    def views(self, *, training: bool = True) -> Views:
        """Return the function that proposes regions, cuts them out, and changes the image."""
        return RegionViews(task=self, training=training)

    def objective(self, detector: Detector) -> "RegionDetection":
        """Return the module that has the detector find the regions."""
        return RegionDetection(self, detector)

    def evaluator(self, source: Source) -> Evaluator:
        """Return the recall of regions."""
        return RegionRecall()

    def problems(self) -> list[str]:
        """Return what is wrong between fields."""
        wrong = []
        for name, scales in (("scales", self.scales), ("crop_scales", self.crop_scales)):
            if not scales or min(scales) < 8:
                wrong.append(f"{name}: {scales} must name at least one short side of 8 pixels or more")
        if not 8 <= self.crop_range[0] <= self.crop_range[1]:
            wrong.append(f"crop_range: {self.crop_range} must be a smallest and a largest side of 8 pixels or more")
        return wrong


@dataclass(frozen=True, kw_only=True)
class Regions(Problem):
    """The pixels of the regions of an image, which are described but not shown to the detector.

    Attributes:
        pixels: One square for each target, then zeros.
        jitter: Drawn photometric parameters of every square; `None` leaves them as they are.
    """

    pixels: Annotated[UInt8[Tensor, "*B P 3 h w"], Gather.PIXELS]
    jitter: Annotated[Float[Tensor, "*B P J"] | None, Gather.STACK] = None


@dataclass(frozen=True, kw_only=True)
class RegionViews:
    """Proposes regions on the whole image and cuts them out of it, and then flips, crops and resizes the image.

    Attributes:
        task: The task's choices.
        training: `False` leaves out every change but one size.
    """

    task: DETReg
    training: bool

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return an image with its regions; labels, if it has any, are not read."""
        task, size = self.task, (sample.image.shape[1], sample.image.shape[2])
        boxes = task.proposals.propose(sample, generator)
        numbers = torch.arange(len(boxes))
        whole = replace(sample, targets=Targets(boxes=to_normalised(boxes, size), labels=numbers), problem=None)
        framed = self._frame()(whole, generator)
        # A crop of the image may have left regions out, or parts of them; their pixels are those of the whole image.
        left = framed.targets.labels
        pixels = torch.zeros(task.proposals.count, 3, task.crop_size, task.crop_size, dtype=torch.uint8)
        if len(left):
            pixels[: len(left)] = cut(sample.image, _whole_pixels(boxes[left], size), task.crop_size)
        jitter = None
        if self.training and max(task.jitter.probability, task.jitter.grey, task.jitter.blur) > 0:
            jitter = draw_jitter(task.proposals.count, task.jitter, generator)
        targets = replace(framed.targets, labels=torch.zeros_like(left))
        return replace(framed, targets=targets, problem=Regions(pixels=pixels, jitter=jitter))

    def _frame(self) -> Views:
        task = self.task
        if not self.training:
            return ShortSide((task.eval_scale,), task.max_size)
        return DETRAugmentation(
            scales=task.scales,
            max_size=task.max_size,
            crop_scales=task.crop_scales,
            crop_range=task.crop_range,
            crop=task.crop,
            flip=task.flip,
        )


def _whole_pixels(boxes_xyxy: Float[Tensor, "R 4"], size: tuple[int, int]) -> Tensor:
    """Return the pixels that boxes touch, at least one along each side."""
    height, width = size
    corner = torch.tensor([width, height])
    starts = boxes_xyxy[:, :2].floor().long().clamp(min=0).minimum(corner - 1)
    ends = boxes_xyxy[:, 2:].ceil().long().minimum(corner).maximum(starts + 1)
    return torch.cat([starts, ends], dim=1)


class RegionDetection(Objective):
    """Trains the detector to find the regions of a batch and to name their embeddings.

    Attributes:
        detector: The detector that is trained.
        embedding: Decoder states -> embeddings; discarded after pretraining.
    """

    def __init__(self, task: DETReg, detector: Detector) -> None:
        """Build the head, the matcher and the loss terms.

        Args:
            task: The task's choices.
            detector: The detector that is trained.
        """
        super().__init__()
        self.task, self.detector = task, detector
        self._level = max(0, len(detector.level_channels) - task.embedding_level)
        self.embedding = MLP(detector.width, detector.width, detector.level_channels[self._level], depth=3)
        term = EmbeddingDistance(head=self.embedding, weight=task.embedding_weight)
        self.criterion = set_prediction(task, no_object_weight=task.no_object_weight, extra=[term])

    def forward(self, batch: Batch) -> Losses:
        """Detect the regions and compare with their boxes and embeddings."""
        embeddings = torch.split(self.describe(batch), [len(targets) for targets in batch.targets])
        pairs = zip(batch.targets, embeddings, strict=True)
        return self.criterion(self.ask(batch), [replace(targets, embeddings=vectors) for targets, vectors in pairs])

    @torch.no_grad()
    def describe(self, batch: Batch) -> Float[Tensor, "R E"]:
        """Return the embedding of every region of a batch, image after image."""
        regions = batch.problem
        assert isinstance(regions, Regions), "these samples carry no regions; were they made by another task's views?"
        counts = torch.tensor([len(targets) for targets in batch.targets], device=regions.pixels.device)
        real = torch.arange(regions.pixels.shape[1], device=counts.device) < counts[:, None]
        pixels = regions.pixels[real]
        if regions.jitter is not None:
            pixels = apply_jitter(pixels.float() / 255, regions.jitter[real])
        level = self.detector.levels(self.detector.normalise(pixels))[self._level]
        return level.mean(dim=(2, 3))

    @torch.no_grad()
    def answer(self, batch: Batch) -> Sequence[Detections]:
        """Return every query's answer; its score says how much it takes what it found for an object."""
        return detections(self.ask(batch), batch.original_sizes)

    def ask(self, batch: Batch) -> Predictions:
        """Detect with the detector's own queries."""
        images = self.detector.normalise(batch.images, batch.padding)
        predictions: Predictions = self.detector(images, batch.padding)
        return predictions


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddingDistance:
    """Mean absolute difference between what a matched query of the last layer names and its region's embedding.

    Attributes:
        head: Decoder states -> embeddings.
        weight: Weight of the term in the total loss.
    """

    name: ClassVar[str] = "embedding"
    head: nn.Module
    weight: float = 1.0

    def __call__(
        self, predictions: Predictions, targets: Targets, matches: Matches, num_boxes: float
    ) -> Float[Tensor, " L"]:
        """Return the mean over channels, summed over matches and divided by `num_boxes`; 0 but for the last layer."""
        assert targets.embeddings is not None
        last = len(predictions.states) - 1
        named: Tensor = self.head(predictions.states[last].float())
        distance = (named[matches.image, matches.query] - targets.embeddings.float()[matches.target]).abs().mean(-1)
        values = distance.new_zeros(last + 1)
        values[last] = torch.where(matches.layer == last, distance, 0).sum() / num_boxes
        return values
