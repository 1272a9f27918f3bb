"""images -> two views -> "where in this view is that region of the other?": Siamese DETR (Chen et al. 2023).

Regions that both views show are described in one view and looked for in the other, in both directions. A matched query
must also name the feature of its region, and the encoder must say the same of both views. Known differences between the
paper, the authors' code and this file, each with the field that chooses:

    topic               paper                    released code                  here
    regions             EdgeBoxes                computed beforehand            `proposals`
    first region        -                        all that both views show       the same
    too few regions     -                        copies moved by up to 10 %     the same; random ones if there is none
    without a region    -                        another image                  as above
    size of the views   -                        both of one size               each its own, on a canvas of its own
    query features      RoIAlign, 7 by 7         of the last level; Deformable  of the last level; finer ones say where
                                                 DETR joins three levels        a two-stage Deformable DETR looks
                        middle of cells          half a cell before it          aligned
    box disturbance     yes                      up to 10 % of the sides        `disturbance`
    attention mask      no                       no                             `grouped_attention`
    matching            over all queries         over all queries               `matching`
    global term         as in BYOL               stopped gradient, no momentum  stopped gradient, no momentum
    its projector       as in BYOL               three layers, norm after each  two layers, as in BYOL
    its weight          -                        10; 0.3 on COCO                `global_weight`
    classes             matched or not           a third logit                  `num_classes` of the detector
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead
from torch import Tensor

from pretext.patch_iou import PatchIoU
from pretext.proposal_task import ProposalTask
from pretext.proposals import whole_pixels
from pretext.two_views import Box, common_regions, draw_two_views
from ssldet import chance
from ssldet.boxes import cxcywh_to_xyxy, to_normalised
from ssldet.data.geometry import crop, flip, resize_short_side
from ssldet.data.photometric import apply_jitter, draw_jitter
from ssldet.detectors.base import Detector, DetectorConfig
from ssldet.losses.set_prediction import set_prediction
from ssldet.losses.terms import FeatureReconstruction
from ssldet.nn.heads import MLP
from ssldet.patches import PatchObjective, cut, most_confident, pooled, squeeze
from ssldet.queries import PatchQueries, problems_of_shares
from ssldet.recipe import Within
from ssldet.source import Source
from ssldet.task import Evaluator, Views
from ssldet.types import Batch, Detections, Gather, Losses, Predictions, Problem, Sample, Targets

POOLED = 7
"""Cells along each side to which RoIAlign brings a region before their mean is taken."""


@dataclass(frozen=True, kw_only=True)
class SiameseDETR(ProposalTask):
    """Find the regions of one view in another view of the same image.

    Sizes and jitter are drawn for each view, flips for both at once; jitter also for the pixels of each region.

    Attributes:
        num_patches: Number of regions per image, the part that both views show counted as the first.
        patch_size: Side in pixels of the square to which the pixels of a region are resized for the feature to name.
        smallest_area: Area of the smallest region, as a share of the part that both views show.
        view_area: Smallest and largest area of a view as a share of the image.
        view_overlap: Least intersection over union of the two views.
        scales: Short sides in pixels, one of which is drawn for each view; 384 is left out, as in the released code.
        disturbance: How far the sides of a region may move before it is described, as a share of its sides.
        grouped_attention: Keep queries of different regions from attending to one another.
        matching: Match a region with any query (`global`), or only with its own queries (`own_group`).
        normalise_patches: Normalise projected features of regions to zero mean and unit variance.
        region_weight: Weight of the region's feature in the loss.
        global_weight: Weight of the agreement of both views in the loss.
        no_match_weight: Weight of queries without a match.
    """

    cite: ClassVar[str] = "chen2023siamesedetr"
    headline: ClassVar[str] = "patch_iou"

    num_patches: Annotated[int, Within(1)] = 10
    patch_size: Annotated[int, Within(8)] = 128
    smallest_area: Annotated[float, Within(0, 1)] = 0.05
    view_area: tuple[float, float] = (0.5, 1.0)
    view_overlap: Annotated[float, Within(0, 1)] = 0.5
    scales: tuple[int, ...] = (320, 336, 352, 368, 400, 416, 432, 448, 464, 480)
    disturbance: Annotated[float, Within(0, 0.4)] = 0.1
    grouped_attention: bool = False
    matching: Literal["global", "own_group"] = "global"
    normalise_patches: bool = False
    region_weight: Annotated[float, Within(0)] = 3.0
    global_weight: Annotated[float, Within(0)] = 10.0
    no_match_weight: Annotated[float, Within(0)] = 0.1

    def views(self, *, training: bool = True) -> Views:
        """Return the function that makes two views and their common regions."""
        return TwoViews(task=self, training=training)

    def objective(self, detector: Detector) -> "CrossViewDetection":
        """Return the module that has the detector find the regions of each view in the other."""
        return CrossViewDetection(self, detector)

    def evaluator(self, source: Source) -> Evaluator:
        """Return the metric of the overlap of answers with the true boxes."""
        return PatchIoU()

    def problems(self) -> list[str]:
        """Return what is wrong between fields."""
        wrong = super().problems()
        if not 0 < self.view_area[0] <= self.view_area[1] <= 1:
            wrong.append(f"view_area: {self.view_area} must be a smallest and a largest share, above 0 and at most 1")
        return wrong

    def problems_with(self, detector: DetectorConfig) -> list[str]:
        """Return a message if the detector's queries can't be divided equally among the regions."""
        return problems_of_shares(detector.num_queries, self.num_patches)


@dataclass(frozen=True, kw_only=True)
class Pair(Problem):
    """The other view of an image, and the pixels of the regions that both show.

    Attributes:
        other: The second view; its targets are the same regions in the same order.
        pixels: The regions, one square each.
        jitter: Drawn photometric parameters of every square, for each view; `None` leaves them as they are.
    """

    other: Annotated[Sample | Batch, Gather.SAMPLE]
    pixels: Annotated[UInt8[Tensor, "*B P 3 h w"], Gather.PIXELS]
    jitter: Annotated[Float[Tensor, "*B 2 P J"] | None, Gather.STACK] = None


@dataclass(frozen=True, kw_only=True)
class TwoViews:
    """Makes two views of an image with the same regions in both.

    Attributes:
        task: The task's choices.
        training: `False` takes the whole image and its middle, as they are.
    """

    task: SiameseDETR
    training: bool

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the first view with the second as its problem; labels, if there are any, are not read."""
        task, size = self.task, (sample.image.shape[1], sample.image.shape[2])
        proposed = task.proposals.propose(sample, generator)
        whole = replace(sample, targets=_targets(to_normalised(proposed, size), groups=False), problem=None)
        if self.training and float(torch.rand((), generator=generator)) < task.flip:
            whole = flip(whole)
        first, second = self._places(size, generator)
        boxes = cxcywh_to_xyxy(whole.targets.boxes) * torch.tensor([size[1], size[0]] * 2)
        regions = common_regions(boxes, first, second, task.num_patches, task.smallest_area, generator)
        seen = replace(whole, targets=_targets(to_normalised(regions, size)))
        views = [self._view(seen, place, generator) for place in (first, second)]
        strong = self.training and task.jitter.changes_pixels
        tables = [draw_jitter(task.num_patches, task.jitter, generator) for _ in views] if strong else None
        pixels = cut(whole.image, whole_pixels(regions, size), task.patch_size)
        pair = Pair(other=views[1], pixels=pixels, jitter=None if tables is None else torch.stack(tables))
        return replace(views[0], problem=pair)

    def _places(self, size: tuple[int, int], generator: torch.Generator) -> tuple[Box, Box]:
        height, width = size
        if self.training:
            return draw_two_views(size, self.task.view_area, self.task.view_overlap, generator)
        margins = width // 8, height // 8
        return (0, 0, width, height), (margins[0], margins[1], width - margins[0], height - margins[1])

    def _view(self, sample: Sample, place: Box, generator: torch.Generator) -> Sample:
        left, top, right, bottom = place
        view = crop(sample, top, left, bottom - top, right - left)
        # A region may touch the edge of a view, where rounding must not tell it from those of the other view.
        assert len(view.targets) == len(sample.targets)
        side = self.task.eval_scale
        if self.training:
            side = self.task.scales[int(torch.randint(len(self.task.scales), (), generator=generator))]
        view = resize_short_side(view, side, self.task.max_size)
        if not self.training:
            return view
        table = draw_jitter(1, self.task.jitter, generator)
        image = apply_jitter(view.image[None], table)[0]
        return replace(view, image=image.mul(255).round().to(torch.uint8))


def _targets(boxes: Float[Tensor, "R 4"], *, groups: bool = True) -> Targets:
    numbers = torch.arange(len(boxes))
    return Targets(boxes=boxes, labels=numbers, groups=numbers if groups else None)


class CrossViewDetection(PatchObjective):
    """Trains the detector to find the regions of each view in the other.

    Attributes:
        detector: The detector that is trained.
        patch_queries: Features of regions -> queries; discarded after pretraining, like all attributes below.
        reconstruction: Decoder states -> features of regions.
        projector: Encoder output of a view -> what the other view's must predict.
        predictor: Projection of a view -> projection of the other view.
    """

    detr_names: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"patch_queries.projection.": "patch2query.", "reconstruction.": "feature_align."}
    )

    def __init__(self, task: SiameseDETR, detector: Detector) -> None:
        """Build the heads, the matcher and the loss terms.

        Args:
            task: The task's choices.
            detector: The detector that is trained.
        """
        super().__init__()
        self.task, self.detector = task, detector
        width, channels = detector.width, detector.feature_channels
        self.patch_queries = PatchQueries(
            channels,
            width,
            num_patches=task.num_patches,
            mask_ratio=0.0,
            grouped_attention=task.grouped_attention,
            normalise=task.normalise_patches,
        )
        self.reconstruction = MLP(width, width, channels, depth=2)
        self.projector = BYOLProjectionHead(width, width, width)
        self.predictor = BYOLPredictionHead(width, width, width)
        extra = [FeatureReconstruction(head=self.reconstruction, weight=task.region_weight)]
        self.criterion = set_prediction(task, no_object_weight=task.no_match_weight, scope=task.matching, extra=extra)

    def forward(self, batch: Batch) -> Losses:
        """Look for the regions of each view in the other, and compare what the encoder says of both views."""
        pair, other = _pair_of(batch)
        views = (batch, other)
        images = [self.detector.normalise(view.images, view.padding) for view in views]
        jitter = (None, None) if pair.jitter is None else pair.jitter.unbind(1)
        named = [self.describe(pair.pixels, some)[-1].detach() for some in jitter]
        with self.looking_once():
            regions = [self.pool(view, some) for view, some in zip(views, images, strict=True)]
            directions = ((0, 1), (1, 0))
            predictions = [self.ask(views[there], regions[here], images[there]) for here, there in directions]
        losses = [
            self.criterion(predictions[here], self.as_found(views[there].targets, named[here]))
            for here, there in directions
        ]
        joined = _mean(losses[0], losses[1])
        agreement = self._agreement(predictions[0], predictions[1])
        return Losses(
            terms={**joined.terms, "global": agreement.reshape(1)},
            weights={**joined.weights, "global": self.task.global_weight},
            metrics=joined.metrics,
        )

    def pool(self, batch: Batch, images: Float[Tensor, "B c H W"] | None = None) -> tuple[Float[Tensor, "B P _"], ...]:
        """Return the levels that describe the regions of a view, averaged by RoIAlign, from fine to coarse.

        Args:
            batch: A view with its regions; in training, each side of a region is moved a little.
            images: The images of the view, normalised, where they are already.
        """
        images = self.detector.normalise(batch.images, batch.padding) if images is None else images
        moved = self.training and self.task.disturbance
        moves = chance.uniform(len(batch), self.task.num_patches, 4, device=batch.images.device) if moved else None
        regions = []
        for image, targets in enumerate(batch.targets):
            boxes = cxcywh_to_xyxy(targets.boxes)
            if moves is not None:
                sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
                boxes = (boxes + sides * self.task.disturbance * (2 * moves[image] - 1)).clamp(0, 1)
            regions.append(boxes)
        return tuple(pooled(level, batch, regions, POOLED, samples=-1) for level in self.look_at(images))

    def fit_patch(self, patch: UInt8[Tensor, "3 _ _"]) -> UInt8[Tensor, "3 h w"]:
        """Resize a patch to the task's square."""
        return squeeze(patch, self.task.patch_size)

    @torch.no_grad()
    def answer(self, batch: Batch) -> list[Detections]:
        """Return one detection per region of the second view, in order: where it is in the first.

        Labels are the numbers of the regions.
        """
        features = self.pool(_pair_of(batch)[1])
        return [most_confident(answers, self.task.num_patches) for answers in self.answers(batch, features)]

    def _agreement(self, one: Predictions, other: Predictions) -> Float[Tensor, ""]:
        """Return how far each view's prediction is from the other's projection: 0 if alike, 4 if opposite."""
        assert one.image_states is not None, f"{type(self.detector).__name__} tells nothing of its encoder's output"
        assert other.image_states is not None
        with torch.autocast(one.boxes.device.type, enabled=False):
            projected = [self.projector(some.image_states.float()) for some in (one, other)]  # type: ignore[union-attr]
            predicted = [self.predictor(some) for some in projected]
            alike = [
                F.cosine_similarity(predicted[here], projected[1 - here].detach(), dim=1).mean() for here in (0, 1)
            ]
        return 2 - (alike[0] + alike[1])


def _pair_of(batch: Batch) -> tuple[Pair, Batch]:
    """Return what comes with a batch, and the second views among it."""
    pair = batch.problem
    assert isinstance(pair, Pair), "these samples carry no second view; were they made by another task's views?"
    assert isinstance(pair.other, Batch)
    return pair, pair.other


def _mean(one: Losses, other: Losses) -> Losses:
    return Losses(
        terms={name: (term + other.terms[name]) / 2 for name, term in one.terms.items()},
        weights=one.weights,
        metrics={name: (value + other.metrics[name]) / 2 for name, value in one.metrics.items()},
    )
