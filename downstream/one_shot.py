"""images, one patch -> "where is more of this?": one-shot detection, as UP-DETR does it (Dai et al. 2021, section 4.3).

One object is cut out of an image and described by the detector's own backbone, like a patch in pretraining; the vector
is projected and added to every object query; each query then answers "such a thing, here" or "no object". Data and
measure follow CoAE (Hsieh et al. 2019), see `downstream/annotations/one_shot.py`. The code behind the published figures
was never released; what the paper leaves open is chosen here, each with the field that says so:

    topic                  published                            here
    head                   "matching", no detail                two logits: the class shown, or no object
    patch projection       not said whether it is handed over   handed over where the start has one (`inherits`)
    class head             not stated                           fresh, unless the start is a one-shot model
    masking of queries     not stated                           none: there is one patch, and no other to hide behind
    image augmentation     not stated                           DETR's (`scales`, `crop`, `flip`), as in fine-tuning
    queries in a test      CoAE's shuffle by Python's `random`  a shuffle by our own seed (`query_position`)
    queries of COCO        boxes that Mask R-CNN finds well     annotated boxes
    backbone               CoAE: trained without the classes    any; a self-supervised one has seen unlabelled cats
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from downstream.annotations.one_shot import (
    VOC_UNSEEN,
    EvaluationPairs,
    Listed,
    Measurable,
    TrainingPairs,
    square,
)
from downstream.detection import Detection, matcher_of, terms_of
from downstream.metrics.one_shot import OneShotAP
from ssldet.detectors.base import Detector
from ssldet.errors import DataError
from ssldet.losses.criterion import Criterion
from ssldet.postprocess import detections
from ssldet.queries import PatchQueries
from ssldet.recipe import Within
from ssldet.task import Evaluator, Objective
from ssldet.types import Batch, Detections, Losses, Predictions, Source


@dataclass(frozen=True, kw_only=True)
class OneShot(Detection):
    """Find all objects of the class that one patch shows. Beside these there are all fields of `Detection`.

    Attributes:
        unseen: Names of the classes that are never asked for in training; VOC's four, unless the data are others.
        patch_size: Side in pixels of the black square that a query is put into.
        query_flip: Chance that a query is mirrored in training.
        normalise_patches: Bring projected patch features to zero mean and unit variance, as in the pretraining that is
            started from, which goes before this field.
        absent_share: Share of training pairs that ask for a seen class which the image does not hold, so that the
            answer hangs on the query in every image; published training has none.
        query_position: Which of the shuffled queries evaluation takes; several positions are several evaluations.
        absent: In evaluation ask for classes that the image does not hold, too; published figures don't.
        metric: Whose AP at an overlap of one half: VOC's 11-point one, or COCO's.
    """

    cite: ClassVar[str] = "hsieh2019coae"
    headline: ClassVar[str] = "AP50_unseen"
    inherits: ClassVar[Mapping[str, tuple[str, ...]]] = {"patch_queries": ("normalise_patches",)}

    unseen: tuple[str, ...] = VOC_UNSEEN
    patch_size: Annotated[int, Within(8)] = 128
    query_flip: Annotated[float, Within(0, 1)] = 0.5
    normalise_patches: bool = False
    absent_share: Annotated[float, Within(0, 1)] = 0.0
    query_position: Annotated[int, Within(0)] = 0
    absent: bool = False
    metric: Literal["coco", "voc"] = "voc"

    def prepare(self, source: Source, *, training: bool = True) -> Source:
        """Return pairs of an image and a query patch: drawn ones to train on, or each once to measure on.

        Raises:
            DataError: The source carries no labels, or not the classes that are held out.
        """
        if not source.classes or not isinstance(source, Listed):
            raise DataError("no labelled boxes to cut queries from; use coco:…, voc:… or yolo:…")
        if training:
            return TrainingPairs(
                source,
                self.unseen,
                patch_size=self.patch_size,
                query_flip=self.query_flip,
                absent_share=self.absent_share,
            )
        if not isinstance(source, Measurable):
            raise DataError("no labels to measure against; evaluate on one coco:ANN.json:IMAGES or voc:ROOT:SPLIT")
        return EvaluationPairs(
            source, self.unseen, patch_size=self.patch_size, position=self.query_position, absent=self.absent
        )

    def objective(self, detector: Detector) -> "QueryDetection":
        """Return the module that asks the detector for what a patch shows."""
        return QueryDetection(self, detector)

    def evaluator(self, source: Source) -> Evaluator:
        """Return AP50 of seen and unseen classes on pairs."""
        return OneShotAP(source, self.metric, accelerate=self.accelerate)


class QueryDetection(Objective):
    """Asks the detector for all objects of the class that one patch shows, and teaches it to answer.

    Attributes:
        detector: Who is asked.
        patch_queries: Patch feature -> queries; the same part, by the same name, as in pretraining.
    """

    detr_names = MappingProxyType({"patch_queries.projection.": "patch2query."})

    def __init__(self, task: OneShot, detector: Detector) -> None:
        """Join detector, projection, matcher and loss terms.

        Args:
            task: The choices.
            detector: Who is taught.
        """
        super().__init__()
        self.task, self.detector = task, detector
        self.patch_queries = PatchQueries(
            detector.feature_channels, detector.width, num_patches=1, mask_ratio=0.0, normalise=task.normalise_patches
        )
        self.criterion = Criterion(matcher_of(task), terms_of(task))

    def forward(self, batch: Batch) -> Losses:
        """Ask and compare."""
        return self.criterion(self._ask(batch, _patches(batch)), batch.targets)

    @torch.no_grad()
    def detect(self, batch: Batch) -> list[Detections]:
        """Return every query's answer to the patch that each image came with; the label is always 0."""
        return self._answers(batch, _patches(batch))

    @torch.no_grad()
    def localise(self, batch: Batch, patches: Sequence[UInt8[Tensor, "3 _ _"]]) -> list[Detections]:
        """Look for what each of some patches shows, in every image of a batch.

        Args:
            batch: Where to look; its own patches are not used.
            patches: What to look for, of any size and number.

        Returns:
            The answers of all queries, for each image; labels are the numbers of the patches.
        """
        rounds = []
        for number, patch in enumerate(patches):
            query = square(patch, self.task.patch_size).to(batch.images.device)
            answers = self._answers(batch, query.expand(len(batch), 1, -1, -1, -1))
            rounds.append([replace(one, labels=torch.full_like(one.labels, number)) for one in answers])
        return [_join(answers) for answers in zip(*rounds, strict=True)]

    def _ask(self, batch: Batch, patches: UInt8[Tensor, "B 1 3 h w"]) -> Predictions:
        """Add the patch's feature to all of the learned queries."""
        queries = self.patch_queries(self._describe(patches), self.detector.default_queries(1).position[0])
        predictions: Predictions = self.detector(
            self.detector.normalise(batch.images, batch.padding), batch.padding, queries
        )
        return predictions

    def _describe(self, patches: UInt8[Tensor, "B 1 3 h w"]) -> Float[Tensor, "B 1 E"]:
        """Return the backbone's features of the patches, averaged over their cells."""
        return self.detector.features(self.detector.normalise(patches.flatten(0, 1))).mean(dim=(2, 3)).unsqueeze(1)

    def _answers(self, batch: Batch, patches: UInt8[Tensor, "B 1 3 h w"]) -> list[Detections]:
        return detections(self._ask(batch, patches), batch.original_sizes)


def _patches(batch: Batch) -> UInt8[Tensor, "B 1 3 h w"]:
    assert batch.patches is not None, "pairs come with a patch; was the source prepared by the task?"
    return batch.patches


def _join(parts: Sequence[Detections]) -> Detections:
    return Detections(
        boxes=torch.cat([part.boxes for part in parts]),
        scores=torch.cat([part.scores for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
    )
