"""patches, images -> detections: the parts shared by tasks that give a detector patches to find in images.

Random query patch detection asks for patches of the image itself, one-shot detection for objects of another image; both
describe a patch by the detector's own features and add these to the object queries.
"""

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ssldet.data.photometric import apply_jitter
from ssldet.detectors.on_backbone import network_of
from ssldet.postprocess import answers_of_queries
from ssldet.queries import PatchQueries
from ssldet.task import Objective
from ssldet.types import Batch, Detections, Gather, ManyPatches, OnePatch, Pixels, Predictions, Problem, Targets


@dataclass(frozen=True, kw_only=True)
class Patches(Problem):
    """Patches to look for in an image.

    Attributes:
        pixels: All of one size, the same number for every image.
        jitter: Drawn photometric parameters of every patch, which the device applies; `None` leaves the patches as they
            are.
    """

    pixels: Annotated[UInt8[Tensor, "*B P 3 h w"] | Float[Tensor, "*B P c h w"], Gather.PIXELS]
    jitter: Annotated[Float[Tensor, "*B P J"] | None, Gather.STACK] = None


def patches_of(batch: Batch) -> Patches:
    """Return the patches that come with a batch."""
    assert isinstance(batch.problem, Patches), "these samples carry no patches; were they made by another task's views?"
    return batch.problem


def cut(image: Pixels, boxes_xyxy: Int[Tensor, "P 4"], size: int) -> ManyPatches:
    """Cut patches and resize each to a square.

    Args:
        image: Pixels of the image.
        boxes_xyxy: Absolute corners in whole pixels.
        size: Side of the squares in pixels.
    """
    return torch.stack([squeeze(image[:, y0:y1, x0:x1], size) for x0, y0, x1, y1 in boxes_xyxy.tolist()])


def squeeze(patch: OnePatch, size: int) -> Tensor:
    """Resize a patch to a square of `size` pixels, whatever its proportions."""
    return F.interpolate(patch[None], (size, size), mode="bilinear", antialias=True)[0]


def in_one_row(
    patches: ManyPatches, jitter: Float[Tensor, "B P J"] | None
) -> UInt8[Tensor, "R 3 h w"] | Float[Tensor, "R c h w"]:
    """Return the patches of all images, one after the other and changed as drawn; floating in 0..1 if they are changed.

    Args:
        patches: Pixels.
        jitter: Drawn photometric changes; `None` for the patches as they are.
    """
    pixels = patches.flatten(0, 1)
    return pixels if jitter is None else apply_jitter(pixels, jitter.flatten(0, 1))


def pooled(
    maps: Float[Tensor, "B E h w"],
    batch: Batch,
    boxes: Sequence[Float[Tensor, "P 4"]],
    cells: int = 4,
    samples: int = 2,
) -> Float[Tensor, "B P E"]:
    """Return the features of regions of images, averaged over RoIAlign's cells, from maps that describe the images.

    Args:
        maps: Of the whole canvas.
        batch: The images.
        boxes: Equally many regions of each image, as normalised xyxy.
        cells: Cells of a region along each side.
        samples: Points of a cell along each side at which maps are read; -1 reads one per cell of the map.
    """
    from torchvision.ops import roi_align  # here, because torchvision takes as long to import as torch

    # A share of an image is a smaller share of its canvas.
    shares = batch.sizes.to(maps) / torch.tensor(batch.images.shape[-2:]).to(maps)
    scale = (shares * torch.tensor(maps.shape[-2:]).to(maps)).flip(-1).repeat(1, 2)
    regions = [some.float() * each for some, each in zip(boxes, scale, strict=True)]
    found: Tensor = roi_align(maps.float(), regions, output_size=cells, sampling_ratio=samples, aligned=True)
    return found.mean(dim=(2, 3)).view(len(batch), -1, maps.shape[1])


class PatchObjective(Objective):
    """Asks a detector to find patches in images.

    Attributes:
        detector: The detector.
        patch_queries: Patch features -> queries.
    """

    patch_queries: PatchQueries

    @abstractmethod
    def fit_patch(self, patch: OnePatch) -> Tensor:
        """Resize a patch of any size to the size that the task uses."""

    def looking_once(self) -> AbstractContextManager[None]:
        """Let the backbone look only once at each tensor inside."""
        backbone = network_of(self.detector)
        return nullcontext() if backbone is None else backbone.remembering()

    def describe(
        self, patches: ManyPatches, jitter: Float[Tensor, "B P J"] | None = None
    ) -> tuple[Float[Tensor, "B P _"], ...]:
        """Return the levels of the detector that describe patches, averaged over their cells, from fine to coarse.

        Args:
            patches: Pixels.
            jitter: Drawn photometric changes; `None` for the patches as they are.
        """
        levels = self.look_at(self.detector.normalise(in_one_row(patches, jitter)))
        return tuple(level.mean(dim=(2, 3)).view(*patches.shape[:2], -1) for level in levels)

    def ask(
        self,
        batch: Batch,
        features: tuple[Float[Tensor, "B P _"], ...],
        images: Float[Tensor, "B c H W"] | None = None,
    ) -> Predictions:
        """Add the features of the patches to the detector's own queries, and detect.

        Args:
            batch: Where to look.
            features: Features of the patches to find in each image, one entry per level, from fine to coarse; the last
                one makes the queries, and proposals are compared with those of the level that they are made of.
            images: The images of the batch, normalised, where they are already.
        """
        own = self.detector.default_queries(1)
        queries = self.patch_queries(features[-1], own, self.detector.patches_join, looks=features)
        images = self.detector.normalise(batch.images, batch.padding) if images is None else images
        predictions: Predictions = self.detector(images, batch.padding, queries)
        return predictions

    def answers(
        self,
        batch: Batch,
        features: tuple[Float[Tensor, "B P _"], ...],
        images: Float[Tensor, "B c H W"] | None = None,
    ) -> list[Detections]:
        """Return a detection per query; labels are the numbers of the patches, boxes are in pixels on disk.

        Args:
            batch: Where to look.
            features: Features of the patches to find in each image, as for `ask`.
            images: The images of the batch, normalised, where they are already.
        """
        predictions = self.ask(batch, features, images)
        per_image = answers_of_queries(predictions, batch.original_sizes)
        assert predictions.groups is not None
        return [replace(one, labels=predictions.groups.to(one.labels)) for one in per_image]

    def as_found(self, targets: Sequence[Targets], features: Float[Tensor, "B P E"] | None) -> list[Targets]:
        """Return patches as targets: of the detector's last class, which stands for "matched", with their features.

        Args:
            targets: The patches of each image.
            features: What the state of a matched query is to name; `None` where it names nothing.
        """
        matched, named = self.detector.num_classes - 1, [None] * len(targets) if features is None else features
        return [
            replace(one, labels=torch.full_like(one.labels, matched), embeddings=embeddings)
            for one, embeddings in zip(targets, named, strict=True)
        ]

    @torch.no_grad()
    def localise(self, batch: Batch, patches: Sequence[OnePatch]) -> list[Detections]:
        """Find any patches in every image of a batch (UP-DETR, figure 5).

        Args:
            batch: Where to look; its own patches are not used.
            patches: What to look for, of any size and number.

        Returns:
            For each image a detection per query; labels are the numbers of the patches.
        """
        rounds = []
        at_once = self.patch_queries.num_patches
        for start in range(0, len(patches), at_once):
            chosen = torch.stack([self.fit_patch(patch) for patch in patches[start : start + at_once]])
            features = self.describe(chosen[None].to(batch.images.device))
            answers = self.answers(batch, tuple(level.expand(len(batch), -1, -1) for level in features))
            rounds.append([replace(one, labels=one.labels + start) for one in answers])
        return [_join(answers) for answers in zip(*rounds, strict=True)]


def _join(parts: Sequence[Detections]) -> Detections:
    return Detections(
        boxes=torch.cat([part.boxes for part in parts]),
        scores=torch.cat([part.scores for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
    )


def most_confident(answers: Detections, patches: int) -> Detections:
    """Return one detection per patch, in order: the most confident of the patch's own queries.

    Args:
        answers: A detection per query; equally many consecutive queries belong to each patch.
        patches: Number of patches.
    """
    each = len(answers) // patches
    best = answers.scores.view(patches, each).argmax(1) + each * torch.arange(patches, device=answers.scores.device)
    return Detections(boxes=answers.boxes[best], scores=answers.scores[best], labels=answers.labels[best])
