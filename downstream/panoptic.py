"""labelled pixels -> "what is each pixel?": panoptic segmentation as DETR does it (Carion et al. 2020, section 4.4).

Boxes are trained first, with the task `detection` on panoptic data, for things and stuff alike. Then this task adds a
section `mask_head` to that detector and trains it alone, or everything at once with `freeze_detector=false`. On data
without stuff (`coco:`) the same task is instance segmentation. Known differences from the authors' code:

    topic             their code                              here
    mask losses       over the padding too                    over the image (`padding_in_losses` for theirs)
    frozen detector   its dropout stays on                    in evaluation mode
    class numbers     raw ids, things up to 90                contiguous; the data says which classes are things
    resizing masks    to the canvas, then to the file's size  directly to the file's size
    small segments, padding, attention maps: see `downstream/segmentation.py` and `DETRConfig.mask_attention`
"""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

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
    """Return a task with the stuff classes of the training set; without such a statement no class is stuff."""
    return replace(task, stuff=tuple(label for label, thing in enumerate(source.is_thing) if not thing))


def _with_masks(detector: DetectorConfig) -> DetectorConfig:
    """Return a detector with a mask head, if its kind can have one."""
    return override(detector, {"masks": True}) if hasattr(detector, "masks") else detector


@dataclass(frozen=True, kw_only=True)
class Panoptic(Detection):
    """Assign every pixel of an image to a segment: one per object, and one per class of background.

    Attributes:
        freeze_detector: Train the mask head alone and leave the detector unchanged.
        mask_focal_weight: Weight of the focal loss of masks.
        mask_dice_weight: Weight of the Dice loss of masks.
        padding_in_losses: Compare masks on padding too, as the authors' code does.
        least_score: Smallest confidence with which a query takes part in the segmentation.
        largest_dropped: Segments of up to this many pixels are dropped.
        stuff: Labels of the classes without countable objects; taken from the data.
    """

    headline: ClassVar[str] = "PQ"
    needs: ClassVar[Needs] = Needs(masks=True, colours=False)
    unmixed_because: ClassVar[str] = "masks say what each pixel is, and mixed pixels are two things"
    untiled_because: ClassVar[str] = "the masks and segments of tiles can't be merged"
    stage: ClassVar[Stage] = Stage(learns_from=_with_stuff_of, receives=_with_masks)

    freeze_detector: bool = True
    mask_focal_weight: Annotated[float, Within(0)] = 1.0
    mask_dice_weight: Annotated[float, Within(0)] = 1.0
    padding_in_losses: bool = False
    least_score: Annotated[float, Within(0, 1)] = 0.85
    largest_dropped: Annotated[int, Within(0)] = 4
    stuff: tuple[int, ...] = ()

    def rests(self, section: str) -> bool:
        """Return whether a section is not the mask head, and is frozen here or not trained by `detection` either."""
        return section != "mask_head" and (self.freeze_detector or super().rests(section))

    def stays_behind(self, section: str) -> bool:
        """Return `False`, since all of the detector is handed over."""
        return False

    def objective(self, detector: Detector) -> "MaskPrediction":
        """Return the module that has the detector find all segments."""
        return MaskPrediction(self, detector)

    def evaluator(self, source: Source) -> SegmentationFigures:
        """Return panoptic quality if every pixel is labelled, and AP of boxes and masks of things.

        Args:
            source: Images with their segments.

        Raises:
            ConfigError: Another metric than COCO's is asked for.
        """
        if self.metric != "coco":
            raise ConfigError("metric: masks are measured by COCO's figures only; leave metric=voc out")
        return SegmentationFigures(source, max_dets=self.max_dets)

    def problems_with(self, detector: DetectorConfig) -> list[str]:
        """Return a message if the detector has no mask head."""
        if getattr(detector, "masks", False):
            return []
        return ["freeze_detector: there is no mask head to teach; choose detector.masks=true"]


class MaskPrediction(SetPrediction):
    """Finds all segments of a batch with the detector's own queries, and compares the masks of the matched queries.

    Attributes:
        task: The task's choices.
    """

    def __init__(self, task: Panoptic, detector: Detector) -> None:
        """Build the matcher and the loss terms.

        Args:
            task: The task's choices.
            detector: The detector that is trained.
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
        """Return every detection with its mask, and the segmentation, in pixels of the images on disk."""
        predictions = self.ask(batch)
        boxes = detections(predictions, batch.original_sizes)
        queries = predictions.scores.detected(predictions.logits[-1].float()).queries
        return [
            self._with_masks(boxes[number], queries[number], predictions, batch, number) for number in range(len(batch))
        ]

    def _with_masks(
        self, answer: Detections, query: Int[Tensor, " N"], predictions: Predictions, batch: Batch, number: int
    ) -> Detections:
        """Predict the masks of one image; all images of a batch at once would take more memory and no less time."""
        logits = self.detector.masks(predictions, torch.full_like(query, number), query)
        height, width = batch.sizes[number].tolist()
        logits = without_padding(logits, (height, width), (batch.images.shape[2], batch.images.shape[3]))
        size = (int(batch.original_sizes[number, 0]), int(batch.original_sizes[number, 1]))
        kept = predictions.scores.says_object(predictions.logits[-1, number].float())[query]
        kept &= answer.scores > self.task.least_score
        segmentation = segmentation_of(
            logits[kept], answer.labels[kept], size, stuff=self.task.stuff, largest_dropped=self.task.largest_dropped
        )
        return replace(answer, masks=masks_of(logits, size), segmentation=segmentation)
