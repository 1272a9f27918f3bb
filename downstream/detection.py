"""labelled images -> "what is where?": supervised detection with learned queries, as DETR (Carion et al. 2020).

Training works as in pretraining, with labels instead of patches. Known differences from the authors' code, none of
which keeps it from reaching the published figures:

    topic               their code                       here
    class numbers       raw COCO ids, 91 of them         contiguous; original ids return in every results file
    schedule, rates     command-line flags               `downstream/recipes/detection.py`
    difficult objects   no VOC                           trained on, ignored by metrics
    batch padding       also in evaluation               in training only: images of one size are evaluated together
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

import torch

from downstream.metrics.average_precision import MAX_DETS, BoxAP
from downstream.metrics.predictions import figures_of
from downstream.mosaic import MixedImages
from downstream.tiled_answers import answer_tiled
from downstream.tiles import TiledEvaluation, TrainingTiles, most_in_a_tile
from ssldet.data.augmentations import BUILT_IN
from ssldet.data.geometry import (
    DETRAugmentation,
    EvaluationSize,
    InOrder,
    ShortSide,
    Sizing,
    problems_of_crops,
    problems_of_short_sides,
)
from ssldet.data.own_transform import transform_named
from ssldet.data.scale_jitter import ScaleJitter
from ssldet.detectors.base import Detector
from ssldet.losses.set_prediction import set_prediction
from ssldet.postprocess import detections
from ssldet.recipe import Within
from ssldet.source import Measurable, Source
from ssldet.task import Evaluator, Needs, Objective, Task, Views
from ssldet.types import Batch, Detections, Losses, Predictions


@dataclass(frozen=True, kw_only=True)
class Detection(Task):
    """Find all objects of the labelled classes. Defaults are DETR's.

    Attributes:
        scales: Short sides in pixels, one of which is drawn for each training image.
        max_size: Limit of the long side in pixels, which takes precedence over the short side.
        eval_scale: Short side outside training.
        eval_rule: How images are sized outside training: by `eval_scale` and `max_size`, rounded as the authors of
            `detr` or as `transformers` do; `fixed` to `eval_size` or `within` it; or left at their `original` size.
        eval_size: Height and width for `fixed` and `within`.
        crop: Probability that a training image is cropped before it is resized.
        crop_scales: Short sides in pixels, to one of which an image is resized before it is cropped.
        crop_range: Smallest and largest side of a crop in pixels.
        flip: Probability that a training image is mirrored.
        augmentation: How training images change: `detr` mirrors, sizes and crops them as above; `scale_jitter` mirrors
            an image, scales it by any factor in `jitter_scale`, stretches it, and cuts it to `max_size`, which keeps
            batches small; `none` leaves them as in evaluation, without mosaic and mixup too. `module:Object`, or a
            registered name, is a transform of your own, such as one of `torchvision.transforms.v2`, followed by a
            resize to one of `scales`.
        jitter_scale: Smallest and largest factor of `scale_jitter`; at one, an image's long side is `max_size`.
        jitter_stretch: Largest factor by which `scale_jitter` stretches one side against the other.
        jitter_colour: Strength with which `scale_jitter` changes brightness, contrast and saturation.
        jitter_least_left: Share of an object that a window of `scale_jitter` must show for it to be a target.
        tile_size: Side in pixels, of the image as it is read, of the tiles into which larger images are cut: training
            sees one of them at a time, evaluation and prediction all of them; `none` takes images whole.
        tile_overlap: Least share of a tile that it has in common with the next one, outside training.
        tile_whole: Outside training, look at the whole image too, for objects larger than a tile.
        tile_least_left: Share of an object that a training tile must show for it to be a target.
        mosaic: Probability that a training image is joined from four.
        mixup: Probability that another training image is laid over one, half transparent.
        freeze_backbone: Do not train the backbone.
        class_weight: Weight of the class, in the loss and in the matching.
        box_l1_weight: Weight of the L1 distance of boxes, likewise.
        box_giou_weight: Weight of the generalised overlap, likewise.
        no_object_weight: Weight of queries without an object; choose less for small data with few objects per image.
        metric: The metric: COCO's AP, which the papers report on VOC too, or VOC's own AP.
        max_dets: Detections per image and class that count in COCO's AP; published figures have 100.
        untiled_because: Why a task that extends this one can't cut images into tiles; empty where it can.
        unmixed_because: Why it can't mix several images; likewise.
    """

    cite: ClassVar[str] = "carion2020detr"
    needs: ClassVar[Needs] = Needs(colours=False)
    headline: ClassVar[str] = "AP"
    untiled_because: ClassVar[str] = ""
    unmixed_because: ClassVar[str] = ""
    retired: ClassVar[Mapping[str, str]] = MappingProxyType({"accelerate": "the fast computation became the only one"})

    scales: tuple[int, ...] = tuple(range(480, 801, 32))
    max_size: Annotated[int, Within(8)] = 1333
    eval_scale: Annotated[int, Within(8, 10_000)] = 800
    eval_rule: Sizing = "detr"
    eval_size: tuple[int, ...] = ()
    crop: Annotated[float, Within(0, 1)] = 0.5
    crop_scales: tuple[int, ...] = (400, 500, 600)
    crop_range: tuple[int, int] = (384, 600)
    flip: Annotated[float, Within(0, 1)] = 0.5
    augmentation: Literal["detr", "scale_jitter", "none"] | str = "detr"
    jitter_scale: tuple[float, float] = (0.5, 2.0)
    jitter_stretch: Annotated[float, Within(1, 4)] = 1.0
    jitter_colour: Annotated[float, Within(0, 1)] = 0.0
    jitter_least_left: Annotated[float, Within(0, 1)] = 0.25
    tile_size: Annotated[int | None, Within(32)] = None
    tile_overlap: Annotated[float, Within(0, 0.9)] = 0.2
    tile_whole: bool = True
    tile_least_left: Annotated[float, Within(0, 1)] = 0.25
    mosaic: Annotated[float, Within(0, 1)] = 0.0
    mixup: Annotated[float, Within(0, 1)] = 0.0
    freeze_backbone: bool = False
    class_weight: Annotated[float, Within(0)] = 1.0
    box_l1_weight: Annotated[float, Within(0)] = 5.0
    box_giou_weight: Annotated[float, Within(0)] = 2.0
    no_object_weight: Annotated[float, Within(0, 1)] = 0.1
    metric: Literal["coco", "voc"] = "coco"
    max_dets: Annotated[int, Within(1)] = MAX_DETS

    def rests(self, section: str) -> bool:
        """Return whether a section is a mask head, or the backbone if that is frozen."""
        return section == "mask_head" or (section == "backbone" and self.freeze_backbone)

    def stays_behind(self, section: str) -> bool:
        """Return whether a section is a mask head, which this task does not train."""
        return section == "mask_head"

    def views(self, *, training: bool = True) -> Views:
        """Return the chosen augmentation or, outside training, a plain resize; both of tiles where there are any."""
        sizing = EvaluationSize(self.eval_rule, self.eval_scale, self.max_size, self.eval_size)
        if training:
            changed = self._augmentation(sizing)
            if self.tile_size is None:
                return changed
            return TrainingTiles(side=self.tile_size, least_left=self.tile_least_left, then=changed)
        if self.tile_size is None:
            return sizing
        return TiledEvaluation(
            side=self.tile_size, overlap=self.tile_overlap, with_whole=self.tile_whole, sizing=sizing
        )

    def try_augmentation(self, source: Source) -> None:
        """Let a run start only if a transform of the user's own can be had, and changes an image.

        Args:
            source: The training images.

        Raises:
            ConfigError: There is no such augmentation, it fails or returns nonsense.
        """
        if self.augmentation not in BUILT_IN:
            transform_named(self.augmentation, tuple(BUILT_IN)).try_on(source)

    def _augmentation(self, sizing: EvaluationSize) -> Views:
        if self.augmentation == "none":
            return sizing
        if self.augmentation == "scale_jitter":
            return ScaleJitter(
                side=self.max_size,
                scale=self.jitter_scale,
                stretch=self.jitter_stretch,
                flip=self.flip,
                least_left=self.jitter_least_left,
                colour=self.jitter_colour,
            )
        if self.augmentation not in BUILT_IN:
            own = transform_named(self.augmentation, tuple(BUILT_IN))
            return InOrder((own, ShortSide(self.scales, self.max_size)))
        return DETRAugmentation(
            scales=self.scales,
            max_size=self.max_size,
            crop_scales=self.crop_scales,
            crop_range=self.crop_range,
            crop=self.crop,
            flip=self.flip,
        )

    def prepare(self, source: Source, *, training: bool = True) -> Source:
        """Return the images; in training, some of them mixed from several, if that is wanted.

        Raises:
            ConfigError: There is no such augmentation, or it does not work.
        """
        if not training:
            return source
        self.try_augmentation(source)
        if self.augmentation == "none" or not (self.mosaic or self.mixup):
            return source
        return MixedImages(
            source,
            mosaic=self.mosaic,
            mixup=self.mixup,
            longest=self.max_size,
            least_left=self.jitter_least_left,
        )

    @property
    def in_parts(self) -> bool:
        """Whether images are cut into tiles."""
        return self.tile_size is not None

    def shown_at_once(self, source: Source) -> list[int]:
        """Return how many objects of each image lie in one of its tiles, at most, or in the image without tiles."""
        if self.tile_size is None or not isinstance(source, Measurable):
            return super().shown_at_once(source)
        sizes = {image["id"]: (image["height"], image["width"]) for image in source.ground_truth()["images"]}
        return [
            most_in_a_tile(source.targets_of(index), sizes[identity], self.tile_size, self.tile_overlap)
            for index, identity in enumerate(source.image_ids)
        ]

    def objective(self, detector: Detector) -> Objective:
        """Return the module that has the detector find all objects."""
        return SetPrediction(self, detector)

    def evaluator(self, source: Source) -> Evaluator:
        """Return the chosen average precision on a labelled source."""
        return BoxAP(source, figures_of(self.metric, max_dets=self.max_dets))

    def problems(self) -> list[str]:
        """Return what is wrong between fields."""
        wrong = problems_of_short_sides("scales", self.scales)
        wrong += problems_of_crops(self.crop_scales, self.crop_range)
        if not 0 < self.jitter_scale[0] <= self.jitter_scale[1]:
            wrong.append(f"jitter_scale: {self.jitter_scale} must be a smallest and a largest factor above 0")
        sized = self.eval_rule in {"fixed", "within"}
        if len(self.eval_size) != 2 * sized or min(self.eval_size, default=8) < 8:
            wanted = "a height and a width of 8 pixels or more" if sized else "empty, as no size is fixed"
            wrong.append(f"eval_size: {self.eval_size} must be {wanted} where eval_rule is {self.eval_rule!r}")
        if self.max_size < max((self.eval_scale, *self.scales)):
            wrong.append(f"max_size: {self.max_size} is below a short side; raise it or lower scales and eval_scale")
        whole = "images are cut into tiles" if self.in_parts else self.unmixed_because
        if whole and (self.mosaic or self.mixup):
            wrong.append(f"{'mosaic' if self.mosaic else 'mixup'}: {whole}; leave mosaic and mixup out")
        if self.tile_size is not None and self.untiled_because:
            wrong.append(f"tile_size: {self.untiled_because}; leave tiles out")
        if self.metric == "voc" and self.max_dets != MAX_DETS:
            wrong.append("max_dets: every detection counts in VOC's figures; leave it out")
        return wrong


class SetPrediction(Objective):
    """Finds all objects of a batch with the detector's own queries, and matches the answers with the labels.

    Attributes:
        detector: The detector that is trained.
    """

    def __init__(self, task: Detection, detector: Detector) -> None:
        """Build the matcher and the loss terms.

        Args:
            task: The task's choices.
            detector: The detector that is trained.
        """
        super().__init__()
        self.detector = detector
        self.criterion = set_prediction(task, no_object_weight=task.no_object_weight)

    def forward(self, batch: Batch) -> Losses:
        """Detect and compare with the labels."""
        return self.criterion(self.ask(batch), batch.targets)

    @torch.no_grad()
    def answer(self, batch: Batch) -> list[Detections]:
        """Return all detections, in pixels of the images on disk, without a threshold.

        Suppression is needed between tiles alone; see `downstream.tiled_answers`.
        """
        return answer_tiled(batch, lambda part: detections(self.ask(part), part.original_sizes))

    def ask(self, batch: Batch) -> Predictions:
        """Detect with the detector's own queries, in training and evaluation alike."""
        images = self.detector.normalise(batch.images, batch.padding)
        predictions: Predictions = self.detector(images, batch.padding)
        return predictions
