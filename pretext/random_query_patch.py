"""images -> "where was this patch?": random query patch detection, the pretext task of UP-DETR (Dai et al. 2021).

Patches are cut from an image at random, described by the detector's own backbone and added to its object queries; the
detector must say where in the image each patch lies. Such boxes need no annotator, and the whole transformer learns.
Known differences between the paper, the authors' released code and this file, each with the field that chooses:

    topic               paper                        released code                    here
    matching            over all queries             over all queries                 `matching`; see below
    masking             10 % of query patches        10 % of single queries           `masking`, `mask_ratio`
    query shuffle       yes                          no                               `shuffle`
    "no match" weight   M / N                        0.1                              `no_match`
    classes             matched or not               a third logit that never wins    `num_classes` of the detector
    reconstruction      of the frozen CNN's vector   target not detached              `detach_target`
    augmentation        SimCLR's without flip        half as strong, no crop          `jitter`
    image scale         short side in 320..480       ten sizes, 384 left out          `image_sides`
    transformer         norms not stated             norm before each branch          `pre_norm` of the detector
    borders             not stated                   right and bottom never reached   every border is reached

The matching decides what is learned. Over all queries, a query that was given patch 1 may be matched with patch 2, so
the detector can learn boxes without regard to the content of the patches. If a patch is matched only with its own
queries, the detector has to use the content. Field defaults are those of the released code, because its weights were
trained with them; our recipes for small machines match within own groups.
"""

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pretext.patch_iou import TEMPLATE_MEANINGS, PatchIoU, template_matching
from ssldet.boxes import cxcywh_to_xyxy, to_normalised
from ssldet.data.geometry import problems_of_short_sides, resize_short_side
from ssldet.data.photometric import Jitter, draw_jitter
from ssldet.detectors.base import Detector, DetectorConfig, backbone_of
from ssldet.losses.set_prediction import set_prediction
from ssldet.losses.terms import FeatureReconstruction, Term
from ssldet.nn.heads import MLP
from ssldet.patches import Patches, PatchObjective, cut, most_confident, patches_of, pooled, squeeze
from ssldet.queries import PatchQueries, problems_of_shares
from ssldet.recipe import Within
from ssldet.source import Source
from ssldet.task import Evaluator, Needs, PretextTask, Views
from ssldet.types import Batch, Detections, Losses, OnePatch, Sample, Targets

RELEASED_SIDES = (320, 336, 352, 368, 400, 416, 432, 448, 464, 480)
"""Short sides of the released code."""


@dataclass(frozen=True, kw_only=True)
class RandomQueryPatch(PretextTask):
    """Find the place from which each patch was cut.

    Attributes:
        num_patches: Number of patches per image (M); one is the paper's single-query pretraining (section 3.1).
        patch_source: Describe a patch by the backbone's features of its pixels (`crop`), or by what the features of the
            whole image are there (`feature_map`). The latter needs a frozen backbone; a step of ResNet-50 on a CPU is
            1.4 times as fast. But it is another task: patches are not jittered, and know what lies around them.
        patch_size: Side in pixels of the square to which every patch is resized, whatever its proportions.
        smallest_pixels: Shortest side of a patch, in pixels of the image on disk. A patch is shorter than the image by
            at least as much, too.
        smallest_share: Shortest side of a patch as a share of the image's side; the larger of the two limits counts.
        largest_share: Longest side of a patch as a share of the image's side.
        image_sides: Short sides, one of which is drawn for each image.
        longest_side: Limit of the long side, which takes precedence over the short side.
        eval_side: Short side outside training.
        jitter: Photometric change of the patches; the image stays as it is, and nothing is ever flipped.
        masking: Whether patch features are hidden at random for single queries (`query`) or for all queries of a patch
            (`patch`).
        mask_ratio: Probability of being hidden.
        grouped_attention: Keep queries of different patches from attending to one another.
        shuffle: Assign the query embeddings to the patches in a new order at every step.
        normalise_patches: Normalise projected patch features to zero mean and unit variance; meant for use with the
            detector's `normalise_features`, and helps small models.
        matching: Match a patch with any query (`global`), or only with its own queries (`own_group`).
        reconstruction: Also reconstruct the patch's feature from the decoder's state.
        detach_target: Keep gradients from reaching the target of the reconstruction. This has no effect while the
            backbone is frozen; otherwise the target can collapse, as the paper's 62.0 in table 5(c) suggests.
        freeze_backbone: Do not train the backbone, which the paper requires (table 5: 78.7 AP50 frozen, 74.0 not).
        no_match: Weight of queries without a match: `constant`, or the paper's `M/N`.
        no_match_weight: The weight if `no_match` is `constant`.
        class_weight: Weight of "matched or not", in the loss and in the matching.
        box_l1_weight: Weight of the L1 distance of boxes, likewise.
        box_giou_weight: Weight of the generalised overlap, likewise.
        reconstruction_weight: Weight of the reconstruction in the loss.
    """

    cite: ClassVar[str] = "dai2021updetr"
    needs: ClassVar[Needs] = Needs(labels=False, colours=False)
    headline: ClassVar[str] = "patch_iou"

    num_patches: Annotated[int, Within(1, 10_000)] = 10
    patch_source: Literal["crop", "feature_map"] = "crop"
    patch_size: Annotated[int, Within(8, 10_000)] = 128
    smallest_pixels: Annotated[int, Within(1)] = 8
    smallest_share: Annotated[float, Within(0, 1)] = 0.0
    largest_share: Annotated[float, Within(0, 1)] = 1.0
    image_sides: tuple[int, ...] = RELEASED_SIDES
    longest_side: Annotated[int, Within(8, 100_000)] = 600
    eval_side: Annotated[int, Within(8, 10_000)] = 480
    jitter: Jitter = field(default_factory=Jitter)
    masking: Literal["query", "patch"] = "query"
    mask_ratio: Annotated[float, Within(0, 1)] = 0.1
    grouped_attention: bool = True
    shuffle: bool = False
    normalise_patches: bool = False
    matching: Literal["global", "own_group"] = "global"
    reconstruction: bool = True
    detach_target: bool = True
    freeze_backbone: bool = True
    no_match: Literal["constant", "M/N"] = "constant"
    no_match_weight: Annotated[float, Within(0)] = 0.1
    class_weight: Annotated[float, Within(0)] = 1.0
    box_l1_weight: Annotated[float, Within(0)] = 5.0
    box_giou_weight: Annotated[float, Within(0)] = 2.0
    reconstruction_weight: Annotated[float, Within(0)] = 1.0

    def rests(self, section: str) -> bool:
        """Return whether a section is a mask head, or the backbone if that is frozen."""
        return section == "mask_head" or (section == "backbone" and self.freeze_backbone)

    def stays_behind(self, section: str) -> bool:
        """Return whether a section is a mask head, or the class head, whose classes differ from task to task."""
        return section in {"class_head", "mask_head"}

    def views(self, *, training: bool = True) -> Views:
        """Return the function that cuts the patches."""
        return PatchViews(task=self, training=training)

    def objective(self, detector: Detector) -> "PatchDetection":
        """Return the module that has the detector find the patches."""
        return PatchDetection(self, detector)

    def evaluator(self, source: Source) -> Evaluator:
        """Return the metric of the overlap of answers with the true boxes."""
        return PatchIoU()

    def problems(self) -> list[str]:
        """Return what is wrong between fields."""
        wrong = problems_of_short_sides("image_sides", self.image_sides)
        if self.patch_source == "feature_map" and not self.freeze_backbone:
            wrong.append("patch_source: a feature map describes patches only if freeze_backbone is true; use 'crop'")
        if self.smallest_share > self.largest_share:
            wrong.append(
                f"smallest_share: {self.smallest_share:g} is above largest_share {self.largest_share:g}; swap them"
            )
        return wrong

    def problems_with(self, detector: DetectorConfig) -> list[str]:
        """Return what the detector lacks: a backbone with a feature map, queries that patches can share equally."""
        wrong = problems_of_shares(detector.num_queries, self.num_patches)
        if self.patch_source == "feature_map" and backbone_of(detector) is None:
            wrong.append("patch_source: this detector has no backbone whose feature map describes patches; use 'crop'")
        return wrong


@dataclass(frozen=True, kw_only=True)
class PatchViews:
    """Cuts the patches of one image from the original pixels, and then resizes the image.

    Attributes:
        task: The task's choices.
        training: `False` leaves out the jitter and always takes the same size.
    """

    task: RandomQueryPatch
    training: bool

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return an image with its patches and their boxes; labels, if it has any, are not read."""
        task, (height, width) = self.task, sample.image.shape[1:]
        boxes_xyxy = draw_boxes(task, height, width, generator)
        numbers = torch.arange(task.num_patches)
        targets = Targets(boxes=to_normalised(boxes_xyxy.float(), (height, width)), labels=numbers, groups=numbers)
        side, jitter = task.eval_side, None
        if self.training:
            side = task.image_sides[int(torch.randint(len(task.image_sides), (), generator=generator))]
            if task.patch_source == "crop" and task.jitter.changes_pixels:
                jitter = draw_jitter(task.num_patches, task.jitter, generator)
        patches = Patches(pixels=cut(sample.image, boxes_xyxy, task.patch_size), jitter=jitter)
        return resize_short_side(replace(sample, targets=targets, problem=patches), side, task.longest_side)


def draw_boxes(task: RandomQueryPatch, height: int, width: int, generator: torch.Generator) -> Int[Tensor, "P 4"]:
    """Draw absolute xyxy boxes: first width and height, each uniformly, then a place at which the box fits.

    Args:
        task: States the number and the sizes of the boxes.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        generator: Source of all random numbers.
    """
    starts, ends = [], []
    for extent in (width, height):
        low = min(extent, max(task.smallest_pixels, math.ceil(task.smallest_share * extent)))
        high = max(low, min(extent - task.smallest_pixels, math.floor(task.largest_share * extent)))
        length = torch.randint(low, high + 1, (task.num_patches,), generator=generator)
        # The last place counts too, so that a patch may touch the right and the bottom border.
        free = torch.rand(task.num_patches, generator=generator, dtype=torch.float64) * (extent - length + 1)
        starts.append(free.long())
        ends.append(starts[-1] + length)
    return torch.stack([*starts, *ends], dim=1)


class PatchDetection(PatchObjective):
    """Trains the detector to find the patches of a batch.

    Attributes:
        detector: The detector that is trained.
        patch_queries: Patch features -> queries; discarded after pretraining.
        reconstruction: Decoder states -> patch features; discarded after pretraining. `None` if the task does without
            the reconstruction.
    """

    detr_names = MappingProxyType({"patch_queries.projection.": "patch2query.", "reconstruction.": "feature_align."})
    probe_meanings = TEMPLATE_MEANINGS

    def __init__(self, task: RandomQueryPatch, detector: Detector) -> None:
        """Build the heads, the matcher and the loss terms.

        Args:
            task: The task's choices.
            detector: The detector that is trained.
        """
        super().__init__()
        self.task, self.detector = task, detector
        self.patch_queries = PatchQueries(
            detector.feature_channels,
            detector.width,
            num_patches=task.num_patches,
            masking=task.masking,
            mask_ratio=task.mask_ratio,
            shuffle=task.shuffle,
            grouped_attention=task.grouped_attention,
            normalise=task.normalise_patches,
        )
        self.reconstruction: MLP | None = None
        extra: list[Term] = []
        if task.reconstruction:
            self.reconstruction = MLP(detector.width, detector.width, detector.feature_channels, depth=2)
            extra = [FeatureReconstruction(head=self.reconstruction, weight=task.reconstruction_weight)]
        share = task.num_patches / detector.num_queries if task.no_match == "M/N" else task.no_match_weight
        self.criterion = set_prediction(task, no_object_weight=share, scope=task.matching, extra=extra)

    def forward(self, batch: Batch) -> Losses:
        """Detect the patches and compare with their boxes, in the order of the paper's figure 2."""
        images = self.detector.normalise(batch.images, batch.padding)
        with self._looking_once():
            features = self._features(batch, images, patches_of(batch).jitter)
            predictions = self.ask(batch, features, images)
        embeddings = features[-1].detach() if self.task.detach_target else features[-1]
        return self.criterion(predictions, self._targets(batch.targets, embeddings))

    def fit_patch(self, patch: OnePatch) -> Tensor:
        """Resize a patch to the task's square."""
        return squeeze(patch, self.task.patch_size)

    @torch.no_grad()
    def answer(self, batch: Batch) -> list[Detections]:
        """Return one detection per patch, in order: the most confident of the patch's own queries.

        Labels are the numbers of the patches.
        """
        images = self.detector.normalise(batch.images, batch.padding)
        with self._looking_once():
            features = self._features(batch, images)
            return [most_confident(one, features[-1].shape[1]) for one in self.answers(batch, features, images)]

    def probe(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Find the patches by their nearest feature, without a transformer.

        Returns:
            `template_iou`, and `constant_iou` of the best constant box. Their order does not tell whether the task can
            be learned: random weights can exceed the constant box, and pretrained ones stay below it.
        """
        return template_matching((batch, *self.describe_all(batch)) for batch in batches)

    @torch.no_grad()
    def describe_all(self, batch: Batch) -> tuple[Float[Tensor, "B E h w"], Float[Tensor, "B P E"]]:
        """Return the backbone's features of the images and of their jittered patches."""
        images = self.detector.normalise(batch.images, batch.padding)
        with self._looking_once():
            patches = self._features(batch, images, patches_of(batch).jitter)[-1]
            return self.detector.features(images), patches

    def _features(
        self, batch: Batch, images: Float[Tensor, "B c H W"], jitter: Float[Tensor, "B P J"] | None = None
    ) -> tuple[Float[Tensor, "B P _"], ...]:
        """Return what describes the patches of a batch, one entry per level, from fine to coarse.

        Args:
            batch: Images with their patches.
            images: The same images, normalised.
            jitter: Drawn photometric changes of the patches' pixels; `None` for the patches as they are.
        """
        if self.task.patch_source == "feature_map":
            boxes = [cxcywh_to_xyxy(one.boxes) for one in batch.targets]
            return tuple(pooled(level, batch, boxes) for level in self.look_at(images))
        return self.describe(patches_of(batch).pixels, jitter)

    def _looking_once(self) -> AbstractContextManager[None]:
        """Let the backbone look once at images whose feature map describes patches."""
        return self.looking_once() if self.task.patch_source == "feature_map" else nullcontext()

    def _targets(self, targets: list[Targets], features: Float[Tensor, "B P E"]) -> list[Targets]:
        """Return the patches as targets, with what is to be reconstructed, if anything is."""
        return self.as_found(targets, features if self.task.reconstruction else None)
