"""labelled pixels -> "what is each pixel?": panoptic segmentation as DETR does it (Carion et al. 2020, section 4.4).

Boxes come first: the task `detection` on panoptic data, things and stuff alike. Then this task adds a section
`mask_head` to that detector and teaches it alone, or everything at once with `freeze_detector=false`. On data without
stuff (`coco:`) the same task is instance segmentation. Known differences from the authors' code:

    topic             their code                              here
    mask losses       over the padding too                    over the image (`padding_in_losses` for theirs)
    frozen detector   its dropout goes on                     at rest, as in evaluation
    class numbers     raw ids, things up to 90                contiguous; the data says what is a thing
    a mask's pixels   to the canvas, then to the file's size  straight to the file's size
    small segments, padding, attention maps: see `downstream/segmentation.py` and `DETRConfig.mask_attention`
"""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch

from downstream.detection import Detection, SetPrediction
from downstream.metrics.segmentation import SegmentationFigures
from downstream.segmentation import masks_of, segmentation_of, without_padding
from ssldet.detectors.base import Detector, DetectorConfig
from ssldet.errors import ConfigError
from ssldet.losses.masks import MaskDiceTerm, MaskFocalTerm
from ssldet.losses.set_prediction import set_prediction
from ssldet.postprocess import detections
from ssldet.recipe import Within, override
from ssldet.source import Source
from ssldet.task import Needs, Stage
from ssldet.types import Batch, Detections, Predictions


def _with_stuff_of(task: "Panoptic", source: Source) -> "Panoptic":
    """Return a task with the classes that the training set calls stuff; where it says nothing, none is."""
    return replace(task, stuff=tuple(label for label, thing in enumerate(source.is_thing) if not thing))


def _with_masks(detector: DetectorConfig) -> DetectorConfig:
    """Return a detector with a mask head, if its kind can have one."""
    return override(detector, {"masks": True}) if hasattr(detector, "masks") else detector


@dataclass(frozen=True, kw_only=True)
class Panoptic(Detection):
    """Tell every pixel of an image apart: a mask for each object, and one for each kind of background.

    Attributes:
        freeze_detector: Teach the mask head alone and leave the detector as it is.
        mask_focal_weight: Weight of the focal loss of masks.
        mask_dice_weight: Weight of the Dice loss of masks.
        padding_in_losses: Compare masks on padding too, as the authors' code does.
        least_score: Confidence from which a query takes part in telling pixels apart.
        largest_dropped: Segments up to this many pixels are dropped.
        stuff: Numbers of the classes that have no objects to count; taken from the data.
    """

    headline: ClassVar[str] = "PQ"
    needs: ClassVar[Needs] = Needs(masks=True)
    stage: ClassVar[Stage] = Stage(learns_from=_with_stuff_of, receives=_with_masks)

    freeze_detector: bool = True
    mask_focal_weight: Annotated[float, Within(0)] = 1.0
    mask_dice_weight: Annotated[float, Within(0)] = 1.0
    padding_in_losses: bool = False
    least_score: Annotated[float, Within(0, 1)] = 0.85
    largest_dropped: Annotated[int, Within(0)] = 4
    stuff: tuple[int, ...] = ()

    def rests(self, section: str) -> bool:
        """Return whether a section is not the mask head, and is frozen or rests in `detection` too."""
        return section != "mask_head" and (self.freeze_detector or super().rests(section))

    def stays_behind(self, section: str) -> bool:
        """Return False: all of the detector is handed over."""
        return False

    def objective(self, detector: Detector) -> "MaskPrediction":
        """Return the module that asks the detector for all segments."""
        return MaskPrediction(self, detector)

    def evaluator(self, source: Source) -> SegmentationFigures:
        """Return panoptic quality where every pixel is labelled, and AP of boxes and masks of things."""
        if self.metric != "coco":
            raise ConfigError("metric: masks are measured by COCO's figures only; leave metric=voc out")
        return SegmentationFigures(source, accelerate=self.accelerate)

    def problems_with(self, detector: DetectorConfig) -> list[str]:
        """Say that the detector draws no masks."""
        if getattr(detector, "masks", False):
            return []
        return ["freeze_detector: there is no mask head to teach; choose detector.masks=true"]


class MaskPrediction(SetPrediction):
    """Asks the detector's own queries for all segments of a batch, and compares the masks of those that were matched.

    Attributes:
        task: The choices.
    """

    def __init__(self, task: Panoptic, detector: Detector) -> None:
        """Join detector, matcher and loss terms.

        Args:
            task: The choices.
            detector: Who is taught.
        """
        super().__init__(task, detector)
        self.task = task
        terms = (
            MaskFocalTerm(weight=task.mask_focal_weight, padding=task.padding_in_losses),
            MaskDiceTerm(weight=task.mask_dice_weight, padding=task.padding_in_losses),
        )
        self.criterion = set_prediction(task, no_object_weight=task.no_object_weight, extra=terms, draw=detector.masks)

    @torch.no_grad()
    def answer(self, batch: Batch) -> list[Detections]:
        """Return every query's answer with its mask, and the segmentation, on the images on disk."""
        predictions = self.ask(batch)
        found = detections(predictions, batch.original_sizes)
        return [self._with_masks(found[number], predictions, batch, number) for number in range(len(batch))]

    def _with_masks(self, found: Detections, predictions: Predictions, batch: Batch, number: int) -> Detections:
        """Draw one image's masks; all images of a batch at once would take more memory and no less time."""
        query = torch.arange(len(found), device=found.boxes.device)
        logits = self.detector.masks(predictions, torch.full_like(query, number), query)
        height, width = batch.sizes[number].tolist()
        logits = without_padding(logits, (height, width), (batch.images.shape[2], batch.images.shape[3]))
        size = (int(batch.original_sizes[number, 0]), int(batch.original_sizes[number, 1]))
        kept = predictions.scores.says_object(predictions.logits[-1, number].float())
        kept &= found.scores > self.task.least_score
        segmentation = segmentation_of(
            logits[kept], found.labels[kept], size, stuff=self.task.stuff, largest_dropped=self.task.largest_dropped
        )
        return replace(found, masks=masks_of(logits, size), segmentation=segmentation)
