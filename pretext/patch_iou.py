"""answers, true boxes -> mean overlap of found patches, next to baselines that need no detector."""

from collections.abc import Iterable
from types import MappingProxyType

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ssldet.boxes import cxcywh_to_xyxy, elementwise_iou, pairwise_iou, to_absolute
from ssldet.errors import DataError, DivergedError
from ssldet.types import Batch, Detections

GRID = 8
"""Candidate boxes of template matching have their corners on a grid of this many steps along each side."""

TEMPLATE_MEANINGS = MappingProxyType(
    {
        "template_iou": "mean overlap of the patches with the boxes whose backbone features are most similar",
        "constant_iou": "mean overlap of the patches with one box for all of them, whatever the images show",
    }
)
"""What each number of `template_matching` is."""


class PatchIoU:
    """Mean overlap of the answer to each patch with the place where it was cut.

    The baseline is the best constant box: one box for every patch of every image, chosen to score best on the very
    boxes that it is scored on.
    """

    def __init__(self) -> None:
        """Start without patches."""
        self._overlaps: list[Float[Tensor, " P"]] = []
        self._truth: list[Float[Tensor, "P 4"]] = []

    def update(self, detections: list[Detections], batch: Batch) -> None:
        """Take in one batch.

        Args:
            detections: One answer per patch, labelled with the number of the patch; absolute xyxy in pixels of the
                image on disk.
            batch: Its targets are the true boxes of the patches, in order.

        Raises:
            DivergedError: A box is not finite.
        """
        for answers, targets, size in zip(detections, batch.targets, batch.original_sizes.tolist(), strict=True):
            if not bool(answers.boxes.isfinite().all()):
                raise DivergedError("a found box is not finite: the model has diverged; lower optim.lr")
            truth = to_absolute(targets.boxes, tuple(size))
            cut_at = truth[answers.labels.to(truth.device)]
            self._overlaps.append(elementwise_iou(answers.boxes.to(truth), cut_at).cpu())
            self._truth.append(targets.boxes.cpu())

    def results(self) -> dict[str, float | dict[str, float]]:
        """Return the figures of the patches so far.

        Returns:
            `patch_iou`, the mean overlap; `patch_iou_constant`, that of the best constant box; `patch_found`, the
            share of overlaps of at least 0.5.

        Raises:
            DataError: There was no image.
        """
        if not self._overlaps:
            raise DataError("no image to measure the patch overlap on; give at least one")
        overlaps, truth = torch.cat(self._overlaps), torch.cat(self._truth)
        _, constant = best_constant_box(truth)
        share_found = (overlaps >= 0.5).float().mean()
        return {
            "patch_iou": float(overlaps.mean()),
            "patch_iou_constant": constant,
            "patch_found": float(share_found),
        }


def best_constant_box(boxes_cxcywh: Float[Tensor, "N 4"]) -> tuple[Float[Tensor, "4"], float]:
    """Return the normalised cxcywh box with the largest mean overlap with all of these, and that overlap.

    The search tries a grid of centres and sizes, then improves the best box by local steps that become ever smaller.

    Args:
        boxes_cxcywh: Normalised cxcywh boxes.
    """
    truth = cxcywh_to_xyxy(boxes_cxcywh)

    def score(candidates: Tensor) -> Tensor:
        # One centre at a time: all pairs at once would be large for a whole validation set.
        return torch.cat([pairwise_iou(cxcywh_to_xyxy(some), truth).mean(1) for some in candidates.chunk(25)])

    places, sides = torch.linspace(0.2, 0.8, 5), torch.linspace(0.1, 1.0, 7)
    candidates = torch.cartesian_prod(places, places, sides, sides).to(truth)
    steps = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 4).to(truth)
    scores = score(candidates)
    best, step = candidates[scores.argmax()], 0.1
    while step > 0.002:
        candidates = (best + step * steps).clamp(0.001, 1)
        around = score(candidates)
        # The middle of the neighbourhood is the best box so far: if it stays the best, finer steps are needed.
        if around.argmax() == len(steps) // 2 or around.max() <= scores.max() + 1e-6:
            step /= 2
        best, scores = candidates[around.argmax()], around
    return best, float(scores.max())


@torch.no_grad()
def template_matching(
    described: Iterable[tuple[Batch, Float[Tensor, "B E h w"], Float[Tensor, "B P E"]]],
) -> dict[str, float]:
    """Find each patch in the box whose mean image feature is most similar to its own: a baseline for any training.

    Args:
        described: Batches, each with the features of its images and of its patches.

    Returns:
        `template_iou`, and `constant_iou` of the best constant box; nothing if there is no batch.
    """
    overlaps: list[Tensor] = []
    truth: list[Tensor] = []
    candidates = _candidates()
    for batch, cells, patches in described:
        centre = cells.mean(dim=(0, 2, 3))
        canvas = cells.new_tensor(batch.images.shape[2:])
        for number, targets in enumerate(batch.targets):
            valid = batch.sizes[number].to(canvas) / canvas
            pooled = _average(cells[number], candidates.to(cells) * valid.flip(0).repeat(2)) - centre
            like = F.normalize(patches[number] - centre, dim=-1) @ F.normalize(pooled, dim=-1).T
            chosen = candidates.to(cells)[like.argmax(1)]
            overlaps.append(elementwise_iou(chosen, cxcywh_to_xyxy(targets.boxes)).cpu())
            truth.append(targets.boxes.cpu())
    if not overlaps:
        return {}
    _, constant = best_constant_box(torch.cat(truth))
    return {"template_iou": float(torch.cat(overlaps).mean()), "constant_iou": constant}


def _candidates() -> Float[Tensor, "N 4"]:
    """Return all normalised xyxy boxes with corners on the grid."""
    spans = torch.combinations(torch.arange(GRID + 1)).float() / GRID
    pairs = torch.cartesian_prod(torch.arange(len(spans)), torch.arange(len(spans)))
    across, down = spans[pairs[:, 0]], spans[pairs[:, 1]]
    return torch.stack([across[:, 0], down[:, 0], across[:, 1], down[:, 1]], dim=1)


def _average(cells: Float[Tensor, "E h w"], boxes_xyxy: Float[Tensor, "N 4"]) -> Float[Tensor, "N E"]:
    """Return the mean feature inside each box; a cell counts by the share of it that the box covers."""
    down = _cover(boxes_xyxy[:, 1], boxes_xyxy[:, 3], cells.shape[1])
    across = _cover(boxes_xyxy[:, 0], boxes_xyxy[:, 2], cells.shape[2])
    return torch.einsum("nh,nw,ehw->ne", down, across, cells)


def _cover(start: Float[Tensor, " N"], end: Float[Tensor, " N"], cells: int) -> Float[Tensor, "N h"]:
    edges = torch.linspace(0, 1, cells + 1, device=start.device)
    inside = torch.minimum(end[:, None], edges[1:]) - torch.maximum(start[:, None], edges[:-1])
    covered = inside.clamp(min=0)
    return covered / covered.sum(1, keepdim=True).clamp(min=1e-9)
