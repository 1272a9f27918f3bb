"""images -> two views -> "where in the first view lies the second?": a pretext task with a problem of its own."""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from downstream.detection import Detection
from pretext.patch_iou import PatchIoU
from sketches.patch_transformer import PatchTransformerConfig
from ssldet.boxes import to_normalised
from ssldet.data.geometry import resize_short_side
from ssldet.detectors.base import Detector
from ssldet.engine.run import Budget, CheckpointConfig, DataConfig, OptimConfig, Run
from ssldet.losses.set_prediction import set_prediction
from ssldet.postprocess import answers_of_queries
from ssldet.recipe import Within
from ssldet.source import Source
from ssldet.task import Evaluator, Objective, PretextTask, Views
from ssldet.types import Batch, Detections, Gather, Losses, Predictions, Problem, Queries, Sample, Targets


@dataclass(frozen=True, kw_only=True)
class Pair(Problem):
    """A second view of the image, on a canvas of its own.

    Attributes:
        other: The second view.
        share: Share of the first view's sides that it shows.
    """

    other: Annotated[Sample | Batch, Gather.SAMPLE]
    share: Annotated[Float[Tensor, "*B 2"], Gather.STACK]


@dataclass(frozen=True, kw_only=True)
class FindTheCrop(PretextTask):
    """Where in an image was this crop cut?

    Attributes:
        side: Short side of both views in pixels.
        class_weight: Weight of the class.
        box_l1_weight: Weight of the L1 distance of boxes.
        box_giou_weight: Weight of the generalised overlap.
    """

    cite: ClassVar[str] = "nobody2026sketches"
    headline: ClassVar[str] = "patch_iou"

    side: Annotated[int, Within(8)] = 32
    class_weight: Annotated[float, Within(0)] = 1.0
    box_l1_weight: Annotated[float, Within(0)] = 5.0
    box_giou_weight: Annotated[float, Within(0)] = 2.0

    def stays_behind(self, section: str) -> bool:
        """Return whether a section is the class head."""
        return section == "class_head"

    def views(self, *, training: bool = True) -> Views:
        """Return the function that cuts the second view."""
        return CropOut(side=self.side)

    def objective(self, detector: Detector) -> Objective:
        """Return the module that looks for the second view in the first."""
        return CropFinder(self, detector)

    def evaluator(self, source: Source) -> Evaluator:
        """Return the overlap of the answer with the place of the crop."""
        return PatchIoU()


@dataclass(frozen=True, kw_only=True)
class CropOut:
    """Cuts one crop out of an image.

    Attributes:
        side: Short side of both views in pixels.
    """

    side: int

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Make a problem of an image."""
        height, width = sample.image.shape[1:]
        share = 0.4 + 0.3 * torch.rand(2, generator=generator)
        rows, columns = max(8, int(share[0] * height)), max(8, int(share[1] * width))
        top = int(torch.randint(height - rows + 1, (), generator=generator))
        left = int(torch.randint(width - columns + 1, (), generator=generator))
        box = torch.tensor([[left, top, left + columns, top + rows]]).float()
        targets = Targets(boxes=to_normalised(box, (height, width)), labels=torch.zeros(1, dtype=torch.int64))
        cut = replace(sample, image=sample.image[:, top : top + rows, left : left + columns], targets=no_targets())
        pair = Pair(other=resize_short_side(cut, self.side, 4 * self.side), share=share)
        return resize_short_side(replace(sample, targets=targets, problem=pair), self.side, 4 * self.side)


def no_targets() -> Targets:
    """Return nothing to find."""
    return Targets(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))


class CropFinder(Objective):
    """Adds the description of the second view to every query and asks for its place in the first."""

    def __init__(self, task: FindTheCrop, detector: Detector) -> None:
        """Join detector, projection and losses."""
        super().__init__()
        self.detector = detector
        self.describes = nn.Linear(detector.feature_channels, detector.width)
        self.criterion = set_prediction(task, no_object_weight=0.1)

    def forward(self, batch: Batch) -> Losses:
        """Ask and compare."""
        return self.criterion(self._ask(batch), batch.targets)

    @torch.no_grad()
    def answer(self, batch: Batch) -> list[Detections]:
        """Return the most confident answer."""
        found = answers_of_queries(self._ask(batch), batch.original_sizes)
        best = [one.only(one.scores == one.scores.max()) for one in found]
        return [
            replace(one.only(torch.arange(len(one)) == 0), labels=torch.zeros(1, dtype=torch.int64)) for one in best
        ]

    def _ask(self, batch: Batch) -> Predictions:
        assert isinstance(batch.problem, Pair)
        other = batch.problem.other
        assert isinstance(other, Batch)
        seen = self.detector.features(self.detector.normalise(other.images, other.padding)).mean((2, 3))
        learned = self.detector.default_queries(len(batch))
        asked = Queries(content=learned.content, position=learned.position + self.describes(seen)[:, None])
        predictions: Predictions = self.detector(
            self.detector.normalise(batch.images, batch.padding), batch.padding, asked
        )
        return predictions


def tiny() -> Run:
    """Pretrain for a few steps."""
    return Run(
        task=FindTheCrop(),
        detector=PatchTransformerConfig(),
        data=DataConfig(batch_size=4, workers=0),
        optim=OptimConfig(lr=1e-3),
        budget=Budget(steps=6),
        checkpoint=CheckpointConfig(every_steps=2),
        log_every=1,
        evaluate_every=3,
        device="cpu",
    )


def boxes() -> Run:
    """Fine-tune for a few steps."""
    task = Detection(scales=(32,), max_size=128, eval_scale=32, crop=0.0)
    return replace(tiny(), task=task, detector=PatchTransformerConfig(num_classes=2), evaluate_every=0)
