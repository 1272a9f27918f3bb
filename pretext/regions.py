"""images -> regions that may be objects, in a changed image: what tasks that learn from region proposals share."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pretext.proposal_task import ProposalTask
from pretext.proposals import MeasuredRegions, Regions, whole_pixels
from pretext.region_recall import AT, RegionRecall
from ssldet.boxes import to_normalised
from ssldet.data.geometry import DETRAugmentation, ShortSide, problems_of_crops
from ssldet.data.photometric import apply_jitter, draw_jitter
from ssldet.detectors.base import Detector
from ssldet.patches import cut
from ssldet.postprocess import answers_of_queries
from ssldet.recipe import Within
from ssldet.source import Source
from ssldet.task import Evaluator, Needs, Objective, Views
from ssldet.types import Batch, Detections, Predictions, Sample, Targets


@dataclass(frozen=True, kw_only=True)
class RegionTask(ProposalTask):
    """A task that has a detector find proposed regions with its own queries.

    Attributes:
        crop_size: Side in pixels of the square to which the pixels of a region are resized to be described.
        embedding_level: Level of the detector's features whose mean describes a region, counted from the coarsest: 3 is
            the level of stride 8 of a ResNet, 1 is the last level. A detector with fewer levels gives its finest.
        crop: Probability that a training image is cropped before it is resized.
        crop_scales: Short sides in pixels, to one of which an image is resized before it is cropped.
        crop_range: Smallest and largest side of a crop in pixels.
        class_weight: Weight of the class, in the loss and in the matching.
        no_object_weight: Weight of queries without a region, in losses that weigh them.
    """

    headline: ClassVar[str] = "region_recall_30"
    needs: ClassVar[Needs] = Needs(labels=False, measures_labels=True)

    crop_size: Annotated[int, Within(8)] = 128
    embedding_level: Annotated[int, Within(1)] = 3
    crop: Annotated[float, Within(0, 1)] = 0.5
    crop_scales: tuple[int, ...] = (400, 500, 600)
    crop_range: tuple[int, int] = (384, 600)
    class_weight: Annotated[float, Within(0)] = 2.0
    no_object_weight: Annotated[float, Within(0)] = 0.1

    def views(self, *, training: bool = True) -> Views:
        """Return the function that proposes regions, cuts them out, and changes the image."""
        return RegionViews(task=self, training=training)

    def evaluator(self, source: Source) -> Evaluator:
        """Return the recall of regions."""
        return RegionRecall()

    def problems(self) -> list[str]:
        """Return what is wrong between fields."""
        return [*super().problems(), *problems_of_crops(self.crop_scales, self.crop_range)]


@dataclass(frozen=True, kw_only=True)
class RegionViews:
    """Proposes regions on the whole image and cuts them out of it, and then flips, crops and resizes the image.

    Attributes:
        task: The task's choices.
        training: `False` leaves out every change but one size.
    """

    task: RegionTask
    training: bool

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return an image with its regions; labels are read outside training only, to measure."""
        task, size = self.task, (sample.image.shape[1], sample.image.shape[2])
        objects = sample.targets.boxes
        # Before the draws of the regions, so that the first candidates are these.
        candidates = self._candidates(sample, generator) if len(objects) and not self.training else torch.zeros(0, 4)
        boxes = task.proposals.propose(sample, generator)
        numbers = torch.arange(len(boxes))
        whole = replace(sample, targets=Targets(boxes=to_normalised(boxes, size), labels=numbers), problem=None)
        framed = self._frame()(whole, generator)
        # A crop of the image may have left regions out, or parts of them; their pixels are those of the whole image.
        left = framed.targets.labels
        pixels = torch.zeros(task.proposals.count, 3, task.crop_size, task.crop_size, dtype=torch.uint8)
        if len(left):
            pixels[: len(left)] = cut(sample.image, whole_pixels(boxes[left], size), task.crop_size)
        jitter = None
        if self.training and task.jitter.changes_pixels:
            jitter = draw_jitter(task.proposals.count, task.jitter, generator)
        targets = replace(framed.targets, labels=torch.zeros_like(left))
        if self.training:
            return replace(framed, targets=targets, problem=Regions(pixels=pixels, jitter=jitter))
        measured = MeasuredRegions(pixels=pixels, jitter=jitter, objects=objects, candidates=candidates)
        return replace(framed, targets=targets, problem=measured)

    def _candidates(self, sample: Sample, generator: torch.Generator) -> Float[Tensor, "N 4"]:
        """Return as many proposals as recall looks at, by the draws to come, which are left to come."""
        again = torch.Generator()
        again.set_state(generator.get_state())
        found = replace(self.task.proposals, count=max(AT)).propose(sample, again)
        return to_normalised(found, (sample.image.shape[1], sample.image.shape[2]))

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


class RegionObjective(Objective):
    """Detects with the detector's own queries, and describes the regions of a batch.

    Attributes:
        detector: The detector that is trained.
    """

    def __init__(self, task: RegionTask, detector: Detector) -> None:
        """Choose the level that describes regions.

        Args:
            task: The task's choices.
            detector: The detector that is trained.
        """
        super().__init__()
        self.detector = detector
        self._level = max(0, len(detector.level_channels) - task.embedding_level)

    @property
    def embedding_channels(self) -> int:
        """Length of what describes a region."""
        return self.detector.level_channels[self._level]

    def look_at(self, images: Float[Tensor, "B c H W"]) -> tuple[Float[Tensor, "B _ _ _"], ...]:
        """Return all levels, of which the task chooses one."""
        return self.detector.levels(images)

    @torch.no_grad()
    def describe(self, batch: Batch) -> Float[Tensor, "R E"]:
        """Return what describes every region of a batch, image after image: the mean feature of its pixels."""
        regions = batch.problem
        assert isinstance(regions, Regions), "these samples carry no regions; were they made by another task's views?"
        counts = torch.tensor([len(targets) for targets in batch.targets], device=regions.pixels.device)
        real = torch.arange(regions.pixels.shape[1], device=counts.device) < counts[:, None]
        pixels = regions.pixels[real]
        if regions.jitter is not None:
            pixels = apply_jitter(pixels, regions.jitter[real])
        level = self.look_at(self.detector.normalise(pixels))[self._level]
        return level.mean(dim=(2, 3)).float()

    @torch.no_grad()
    def answer(self, batch: Batch) -> Sequence[Detections]:
        """Return every query's answer; its score says how much it takes what it found for an object."""
        return answers_of_queries(self.ask(batch, self.detector), batch.original_sizes)

    def ask(self, batch: Batch, detector: Detector) -> Predictions:
        """Detect with a detector's own queries.

        Args:
            batch: Where to look.
            detector: The detector that is trained, or one that it learns from.
        """
        images = detector.normalise(batch.images, batch.padding)
        predictions: Predictions = detector(images, batch.padding)
        return predictions
