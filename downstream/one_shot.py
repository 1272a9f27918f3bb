"""images, one patch -> objects of its class: one-shot detection, as UP-DETR does it (Dai et al. 2021, section 4.3).

One object is cut out of an image and described by the detector's own backbone, like a patch in pretraining; the vector
is projected and added to every object query; each query then answers "an object of this class, here" or "no object".
Data and metric follow CoAE (Hsieh et al. 2019), see `downstream/annotations/one_shot.py`. The code behind the published
figures was never released; the table lists our choices where the paper states none, with the field that sets them:

    topic                  published                            here
    head                   "matching", no detail                two logits: the class shown, or no object
    patch projection       not said whether it is handed over   handed over if the start has one (`stage`)
    class head             not stated                           fresh, unless the start is a one-shot model
    masking of queries     not stated                           none, since there is only one patch
    image augmentation     not stated                           DETR's (`scales`, `crop`, `flip`), as in fine-tuning
    queries in a test      CoAE's shuffle by Python's `random`  shuffled with our own seed (`query_position`)
    queries of COCO        boxes that Mask R-CNN finds well     annotated boxes
    backbone               CoAE: trained without the classes    any; a self-supervised one has seen unlabelled cats
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from downstream.annotations.one_shot import (
    VOC_UNSEEN,
    EvaluationPairs,
    TrainingPairs,
    square,
)
from downstream.detection import Detection
from downstream.metrics.one_shot import OneShotAP
from ssldet.detectors.base import Detector
from ssldet.errors import DataError
from ssldet.losses.set_prediction import set_prediction
from ssldet.patches import PatchObjective, patches_of
from ssldet.queries import PatchQueries
from ssldet.recipe import Within
from ssldet.source import Measurable, Source
from ssldet.task import Evaluator, Stage
from ssldet.types import Batch, Detections, Losses, ManyPatches, OnePatch


@dataclass(frozen=True, kw_only=True)
class OneShot(Detection):
    """Find all objects of the class that one patch shows. All fields of `Detection` exist too.

    Attributes:
        unseen: Names of the classes that no training query shows; the default is VOC's four.
        patch_size: Side in pixels of the black square into which a query patch is put.
        query_flip: Probability that a query patch is mirrored in training.
        normalise_patches: Normalise projected patch features to zero mean and unit variance. If the run starts from a
            pretrained model, that model's value takes precedence over this field.
        absent_share: Share of training pairs whose query shows a seen class that the image does not contain, so that
            the right answer depends on the query in every image; published training has none.
        query_position: Position among the shuffled queries of the one that evaluation uses; other positions give other
            evaluations.
        absent: In evaluation also use queries of classes that the image does not contain; published figures do not.
        metric: The metric at an overlap of one half: VOC's 11-point AP, or COCO's AP.
    """

    cite: ClassVar[str] = "hsieh2019coae"
    headline: ClassVar[str] = "AP50_unseen"
    unmixed_because: ClassVar[str] = "one-shot detection pairs each image with a query of its own"
    untiled_because: ClassVar[str] = "one-shot detection asks about an image as a whole"
    stage: ClassVar[Stage] = Stage(parts={"patch_queries": ("normalise_patches",)})

    unseen: tuple[str, ...] = VOC_UNSEEN
    patch_size: Annotated[int, Within(8, 10_000)] = 128
    query_flip: Annotated[float, Within(0, 1)] = 0.5
    normalise_patches: bool = False
    absent_share: Annotated[float, Within(0, 1)] = 0.0
    query_position: Annotated[int, Within(0)] = 0
    absent: bool = False
    metric: Literal["coco", "voc"] = "voc"

    def prepare(self, source: Source, *, training: bool = True) -> Source:
        """Return pairs of an image and a query patch: randomly drawn for training, or each pair once for evaluation.

        Raises:
            DataError: The source has no labels, or lacks a class that is held out.
        """
        if not source.classes:
            raise DataError("no labelled boxes to cut queries from; use coco:…, voc:… or yolo:…")
        if training:
            self.try_augmentation(source)
            return TrainingPairs(
                source,
                self.unseen,
                patch_size=self.patch_size,
                query_flip=0.0 if self.augmentation == "none" else self.query_flip,
                absent_share=self.absent_share,
            )
        if not isinstance(source, Measurable):
            raise DataError("no labels to measure against; evaluate on one coco:ANN.json:IMAGES or voc:ROOT:SPLIT")
        return EvaluationPairs(
            source, self.unseen, patch_size=self.patch_size, position=self.query_position, absent=self.absent
        )

    def objective(self, detector: Detector) -> "QueryDetection":
        """Return the module that has the detector find what a patch shows."""
        return QueryDetection(self, detector)

    def evaluator(self, source: Source) -> Evaluator:
        """Return AP50 of seen and unseen classes on pairs."""
        return OneShotAP(source, self.metric, max_dets=self.max_dets)


class QueryDetection(PatchObjective):
    """Trains the detector to find all objects of the class that one patch shows.

    Attributes:
        detector: The detector that is trained.
        patch_queries: Patch feature -> queries; it has the same name as in pretraining, so that it is handed over.
    """

    detr_names = MappingProxyType({"patch_queries.projection.": "patch2query."})

    def __init__(self, task: OneShot, detector: Detector) -> None:
        """Build the projection, the matcher and the loss terms.

        Args:
            task: The task's choices.
            detector: The detector that is trained.
        """
        super().__init__()
        self.task, self.detector = task, detector
        self.patch_queries = PatchQueries(
            detector.feature_channels, detector.width, num_patches=1, mask_ratio=0.0, normalise=task.normalise_patches
        )
        self.criterion = set_prediction(task, no_object_weight=task.no_object_weight)

    def forward(self, batch: Batch) -> Losses:
        """Detect and compare with the labels."""
        predictions = self.ask(batch, self.describe(patches_of(batch).pixels))
        return self.criterion(predictions, batch.targets)

    @torch.no_grad()
    def answer(self, batch: Batch) -> list[Detections]:
        """Return every query's answer for the patch that comes with each image; the label is always 0."""
        return self.answers(batch, self.describe(patches_of(batch).pixels))

    def describe(
        self, patches: ManyPatches, jitter: Float[Tensor, "B P J"] | None = None
    ) -> tuple[Float[Tensor, "B P _"], ...]:
        """Return the last level only: another object of the class need not look the same in detail."""
        return super().describe(patches, jitter)[-1:]

    def fit_patch(self, patch: OnePatch) -> Tensor:
        """Put a patch into a black square."""
        return square(patch, self.task.patch_size)
