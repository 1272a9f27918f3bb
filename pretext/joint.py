"""images -> "where was this patch?" and "which other view shows it?": backbone and transformer trained together.

UP-DETR (Dai et al. 2021) freezes a backbone that was pretrained before, because its own task destroys one that learns
with it; its conclusion leaves training both together as future work. Here both start from random weights and learn from
the same patches: the detector finds them in their images, as in random query patch detection, and the backbone finds
the other view of each patch among views of many others, as in MoCo (He et al. 2020). A copy of the backbone, which
follows by a moving average, gives the keys of the contrast and the targets of the reconstruction. This task is ours.
Known differences from the two papers, each with the field that chooses:

    topic              UP-DETR               MoCo v2                  here
    backbone           pretrained, frozen    from random weights      learns, from random weights or given ones
    what is compared   -                     two crops of an image    two views of a patch: `view_shift`,
                                                                      `view_jitter`
    reconstruction     of the frozen CNN     -                        of the momentum backbone, of the other view;
                                                                      its own with `detach_target=false`
    negatives          -                     a queue of 65,536 keys   the same, of patches: `queue_length`
    loss               its own               InfoNCE                  the sum of both: `contrast_weight`
    published score    78.7 AP50 on VOC;     71.1 % of ImageNet,      none
                       74.0 with a backbone  linear
                       that learns

What goes wrong without the contrast (`contrast_weight=0`): where the target of the reconstruction comes from a backbone
that learns, features that are all the same are easy to reconstruct. `feature_std` and `effective_rank` in the log tell.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float, UInt8
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from torch import Tensor

from pretext.backbone_task import backbone_in, problems_with_learning, saved, with_fixed_norms
from pretext.keys import contrast, encode_apart
from pretext.proposals import whole_pixels
from pretext.random_query_patch import PatchDetection, PatchViews, RandomQueryPatch
from ssldet.boxes import to_absolute
from ssldet.collapse import effective_rank, spread
from ssldet.data.photometric import Jitter, draw_jitter
from ssldet.detectors.base import Detector, DetectorConfig
from ssldet.nn.momentum import follow, follower
from ssldet.patches import Patches, cut, in_one_row
from ssldet.recipe import Within
from ssldet.task import Needs, Stage, Views
from ssldet.types import Batch, Gather, Losses, Sample

RANKED = 128
"""Patches whose features are taken for the effective rank: few enough to cost nothing beside a step."""


@dataclass(frozen=True, kw_only=True)
class Joint(RandomQueryPatch):
    """Find the place of each patch, and its other view among those of many patches, from random weights.

    Fields of random query patch detection keep their meaning. The backbone learns, and `detach_target` takes the target
    of the reconstruction from the momentum backbone instead of the learning one.

    Attributes:
        freeze_backbone: Always false: this task trains the backbone, which `random_query_patch` can leave frozen.
        view_shift: How far the sides of a patch may move for its other view, as a share of its sides.
        view_jitter: Photometric change of the other view; `jitter` is that of the patch that is looked for.
        contrast_weight: Weight of the contrast in the loss; 0 leaves it out.
        temperature: Temperature of its similarities.
        contrast_hidden: Width of the projection head's hidden layer.
        contrast_width: Width of the projections.
        queue_length: Number of keys of earlier batches, which are the negatives.
        momentum: Share of the momentum backbone's weights that each step keeps.
        key_groups: Number of groups, over all devices together, in which keys are normalised by batch statistics of
            their own.
    """

    needs: ClassVar[Needs] = Needs(labels=False)
    stage: ClassVar[Stage] = Stage(hands_over=with_fixed_norms)

    freeze_backbone: bool = False
    view_shift: Annotated[float, Within(0, 0.5)] = 0.2
    view_jitter: Jitter = field(default_factory=Jitter)
    contrast_weight: Annotated[float, Within(0)] = 3.0
    temperature: Annotated[float, Within(1e-3)] = 0.2
    contrast_hidden: Annotated[int, Within(1, 65_536)] = 2048
    contrast_width: Annotated[int, Within(1, 65_536)] = 128
    queue_length: Annotated[int, Within(1, 2**24)] = 65536
    momentum: Annotated[float, Within(0, 1)] = 0.999
    key_groups: Annotated[int, Within(1)] = 8

    def views(self, *, training: bool = True) -> Views:
        """Return the function that cuts the patches, in training each a second time."""
        plain = PatchViews(task=self, training=training)
        return PairedPatchViews(plain=plain) if training else plain

    def objective(self, detector: Detector) -> "JointDetection":
        """Return the module that trains detector and backbone."""
        return JointDetection(self, detector)

    def problems(self) -> list[str]:
        """Return what is wrong between fields."""
        wrong = super().problems()
        if self.freeze_backbone:
            wrong.append("freeze_backbone: this task trains the backbone; for a frozen one use random_query_patch")
        return wrong

    def problems_with(self, detector: DetectorConfig) -> list[str]:
        """Return what keeps the backbone from learning, and whether the queries can't be divided among the patches."""
        return [*problems_with_learning(self, detector), *super().problems_with(detector)]


@dataclass(frozen=True, kw_only=True)
class PairedPatches(Patches):
    """Patches to look for in an image, and another view of each.

    Attributes:
        others: The other views, in the same order and of the same size.
        other_jitter: Drawn photometric parameters of every other view; `None` leaves them as they are.
    """

    others: Annotated[UInt8[Tensor, "*B P 3 h w"], Gather.PIXELS]
    other_jitter: Annotated[Float[Tensor, "*B P J"] | None, Gather.STACK] = None


@dataclass(frozen=True, kw_only=True)
class PairedPatchViews:
    """Cuts the patches of one image, and each again with its sides moved.

    Attributes:
        plain: Cuts the patches.
    """

    plain: PatchViews

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return an image with two views of each patch; labels, if it has any, are not read."""
        made, task = self.plain(sample, generator), self.plain.task
        assert isinstance(task, Joint)
        assert isinstance(made.problem, Patches)
        size = (sample.image.shape[1], sample.image.shape[2])
        boxes = to_absolute(made.targets.boxes, size).round()
        sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        moved = boxes + task.view_shift * sides * (2 * torch.rand(boxes.shape, generator=generator) - 1)
        limits = boxes.new_tensor([size[1], size[0]] * 2)
        others = cut(sample.image, whole_pixels(moved.clamp(min=0).minimum(limits), size), task.patch_size)
        jitter, change = None, task.view_jitter
        if change.changes_pixels:
            jitter = draw_jitter(task.num_patches, change, generator)
        plain = made.problem
        pairs = PairedPatches(pixels=plain.pixels, jitter=plain.jitter, others=others, other_jitter=jitter)
        return replace(made, problem=pairs)


class JointDetection(PatchDetection):
    """Trains detector and backbone to find the patches of a batch, and each patch's other view.

    Attributes:
        detector: The detector that is trained.
        key_backbone: Moving average of the backbone; discarded after pretraining, like all attributes below.
        head: Features of patches -> projections.
        key_head: Moving average of the head.
        loss: The contrastive loss, which holds the queue.
    """

    task: Joint

    def __init__(self, task: Joint, detector: Detector) -> None:
        """Build the heads, and the copies that follow backbone and head.

        Args:
            task: The task's choices.
            detector: The detector that is trained.
        """
        super().__init__(task, detector)
        self.head = MoCoProjectionHead(detector.feature_channels, task.contrast_hidden, task.contrast_width)
        self.key_backbone, self.key_head = follower(backbone_in(detector)), follower(self.head)
        self.loss = NTXentLoss(task.temperature, (task.queue_length, task.contrast_width), gather_distributed=True)
        saved(self.loss.memory_bank)

    def begin(self, step: int, total_steps: int) -> None:
        """Move the momentum backbone towards the trained one, and its head likewise."""
        follow(self.key_backbone, backbone_in(self.detector), self.task.momentum)
        follow(self.key_head, self.head, self.task.momentum)

    def forward(self, batch: Batch) -> Losses:
        """Detect the patches, compare with boxes and momentum features, and contrast each patch with its other view."""
        pairs = batch.problem
        assert isinstance(pairs, PairedPatches), "these samples carry no pairs; were they made by another task's views?"
        features = self.describe(pairs.pixels, pairs.jitter)
        followed = self._follow(pairs)
        predictions = self.ask(batch, features)
        last = features[-1]
        embeddings = followed.view_as(last) if self.task.detach_target else last
        losses = self.criterion(predictions, self._targets(batch.targets, embeddings))
        loss, similarities = self._contrast(last.flatten(0, 1), followed)
        vectors = last.detach().flatten(0, 1)
        health = {
            "feature_std": spread(vectors),
            "target_std": spread(followed),
            "effective_rank": effective_rank(vectors[:RANKED]),
        }
        return Losses(
            terms={**losses.terms, "contrast": loss.reshape(1)},
            weights={**losses.weights, "contrast": self.task.contrast_weight},
            metrics={**losses.metrics, **health, **similarities},
        )

    def _follow(self, pairs: PairedPatches) -> Float[Tensor, "N E"]:
        """Describe the other views by the momentum backbone, image after image."""
        return encode_apart(in_one_row(pairs.others, pairs.other_jitter), self.task.key_groups, self._encode)

    def _encode(self, groups: Sequence[Tensor]) -> Float[Tensor, "N E"]:
        parts = [self.key_backbone(self.detector.normalise(part)) for part in groups]
        return torch.cat([part.mean(dim=(2, 3)) for part in parts]).float()

    def _contrast(
        self, features: Float[Tensor, "N E"], followed: Float[Tensor, "N E"]
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """Return the loss of finding each patch's other view among the queue, and the mean similarities."""
        with torch.autocast(features.device.type, enabled=False):
            queries = self.head(features.float())
            with torch.no_grad():
                keys = self.key_head(followed)
        return contrast(self.loss, queries, keys)
