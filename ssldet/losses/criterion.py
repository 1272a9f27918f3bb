"""Predictions, Targets -> Losses: match once, then compute every term of an open list."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ssldet import ranks
from ssldet.boxes import cxcywh_to_xyxy, elementwise_iou
from ssldet.losses.terms import Mean, Term
from ssldet.matching import Matcher
from ssldet.types import Losses, Matches, Predictions, Targets, concatenate

Draw = Callable[[Predictions, Int[Tensor, " N"], Int[Tensor, " N"]], Float[Tensor, "N h w"]]
"""Predictions, images, queries -> masks: `Detector.masks`."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What losses are divided by, so that the mean of the gradients of all ranks is the gradient of the whole batch.

    Attributes:
        boxes: Targets of all ranks, at least one, divided by the number of ranks.
        shares: For each term, the weight by which this rank's mean counts, 1 on average; empty with one process. The
            terms of the proposals follow.
    """

    boxes: float
    shares: tuple[float, ...] = ()

    def of_proposals(self, terms: int) -> "Counts":
        """Return the same for the proposals, which come after this many terms."""
        return replace(self, shares=self.shares[terms:])


class Criterion:
    """Computes all terms for all decoder layers at once, in 32 bits whatever the detector ran in.

    Attributes:
        matcher: Predictions, Targets -> Matches.
        terms: Parts of the loss; a task may add its own.
        draw: Draws the masks of matched queries, for terms that compare masks; `None` where no term does.
        proposals: Criterion of the encoder's proposals of a two-stage detector, compared with the same targets.
    """

    def __init__(
        self,
        matcher: Matcher,
        terms: Sequence[Term],
        *,
        draw: Draw | None = None,
        proposals: "Criterion | None" = None,
    ) -> None:
        """Set up the criterion.

        Args:
            matcher: Decides which prediction answers which target.
            terms: Parts of the loss; their names must differ.
            draw: Draws the masks of matched queries.
            proposals: Criterion of an encoder's proposals; `None` leaves proposals without a loss.
        """
        self.matcher, self.terms, self.draw, self.proposals = matcher, tuple(terms), draw, proposals
        names = [term.name for term in self.terms]
        if len(set(names)) != len(names):
            raise ValueError(f"two loss terms share a name: {names}")

    def __call__(self, predictions: Predictions, targets: list[Targets], *, counted: bool = True) -> Losses:
        """Match predictions with targets and compute all terms; every rank must call this equally often.

        Args:
            predictions: Outputs of the detector.
            targets: What there was to find, one entry per image.
            counted: False where the images only stand in for none, so that they don't count in the means of all ranks.

        Returns:
            Every term of the predictions and, with the prefix `proposal_`, of the encoder's proposals if there are any.
        """
        # Before anything that can fail on one rank: the others would wait for its count.
        proposals, objects = _apart(predictions.proposals, targets)
        counts = self._count(predictions, targets, proposals, objects, counted=counted)
        losses = self._compare(predictions, targets, counts)
        if proposals is None or self.proposals is None:
            return losses
        proposed = self.proposals._compare(proposals, objects, counts.of_proposals(len(self.terms)))
        return Losses(
            terms=losses.terms | {f"proposal_{name}": term for name, term in proposed.terms.items()},
            weights=losses.weights | {f"proposal_{name}": weight for name, weight in proposed.weights.items()},
            metrics=losses.metrics,
        )

    def _count(
        self,
        predictions: Predictions,
        targets: list[Targets],
        proposals: Predictions | None,
        objects: list[Targets],
        *,
        counted: bool,
    ) -> "Counts":
        """Count what the losses are divided by, over all ranks, in one exchange."""
        boxes = float(sum(map(len, targets)))
        if not ranks.connected():
            return Counts(boxes=max(boxes, 1.0))
        own = self._divisors(predictions, targets)
        if proposals is not None and self.proposals is not None:
            own += self.proposals._divisors(proposals, objects)
        mine = [(divisor or 0.0) if counted else 0.0 for divisor in own]
        total, *everywhere = ranks.totals([boxes, *mine], predictions.boxes.device)
        world = ranks.world()
        shares = [
            1.0 if divisor is None or not of_all else world * of_this / of_all
            for divisor, of_this, of_all in zip(own, mine, everywhere, strict=True)
        ]
        return Counts(boxes=max(total, 1.0) / world, shares=tuple(shares))

    def _divisors(self, predictions: Predictions, targets: list[Targets]) -> list[float | None]:
        """Return the sum of weights that each term divides by on this rank; `None` for one that divides by boxes."""
        matched = self.matcher.count(predictions, targets)
        return [term.divisor(predictions, matched) if isinstance(term, Mean) else None for term in self.terms]

    def _compare(self, predictions: Predictions, targets: list[Targets], counts: "Counts") -> Losses:
        with torch.autocast(predictions.boxes.device.type, enabled=False):
            matches = self.matcher(predictions, targets)
        if self.draw is not None:
            # Of the last layer only, which gives the detections; in the precision of the detector that draws them.
            last = matches.layer == len(predictions.logits) - 1
            masks = self.draw(predictions, matches.image[last], matches.query[last])
            predictions = replace(predictions, masks=masks)
        with torch.autocast(predictions.boxes.device.type, enabled=False):
            joined = concatenate(targets, masks=predictions.masks is not None)
            predictions = _on_pixels(predictions, joined)
            values = [term(predictions, joined, matches, counts.boxes) for term in self.terms]
            if counts.shares:
                values = [value * share for value, share in zip(values, counts.shares, strict=False)]
            return Losses(
                terms={term.name: value for term, value in zip(self.terms, values, strict=True)},
                weights={term.name: term.weight for term in self.terms},
                metrics=measure(predictions, targets, matches),
            )


def _apart(proposals: Predictions | None, targets: list[Targets]) -> tuple[Predictions | None, list[Targets]]:
    """Return proposals and their targets, where each group of an image stands as an image of its own.

    Proposals only tell objects from background: all targets are of class 0.
    """
    objects = [Targets(boxes=entry.boxes, labels=torch.zeros_like(entry.labels)) for entry in targets]
    if proposals is None or proposals.groups is None:
        return proposals, objects
    groups = int(proposals.groups[-1]) + 1

    def by_group(part: Tensor) -> Tensor:
        return part.view(1, len(targets) * groups, part.shape[2] // groups, part.shape[3])

    apart = replace(
        proposals,
        logits=by_group(proposals.logits),
        boxes=by_group(proposals.boxes),
        states=by_group(proposals.states),
        groups=None,
    )
    return apart, [
        share for entry, full in zip(objects, targets, strict=True) for share in _shares(entry, full, groups)
    ]


def _shares(objects: Targets, targets: Targets, groups: int) -> list[Targets]:
    """Return the objects that each group may answer: its own, and those that any may."""
    if targets.groups is None:
        return [objects] * groups
    own = [targets.groups == group for group in range(groups)]
    return [Targets(boxes=objects.boxes[chosen], labels=objects.labels[chosen]) for chosen in own]


def _on_pixels(predictions: Predictions, targets: Targets) -> Predictions:
    """Resize drawn masks to the size of the true ones."""
    if predictions.masks is None or targets.masks is None:
        return predictions
    cells = predictions.masks.float().unsqueeze(1)
    pixels = F.interpolate(cells, size=targets.masks.shape[1:], mode="bilinear", align_corners=False)
    return replace(predictions, masks=pixels.squeeze(1))


@torch.no_grad()
def measure(predictions: Predictions, targets: list[Targets], matches: Matches) -> dict[str, Float[Tensor, ""]]:
    """Return metrics of the last layer for the log; they are no part of the loss.

    Args:
        predictions: Outputs of the detector.
        targets: What there was to find, one entry per image.
        matches: Which prediction answers which target.

    Returns:
        `class_error`: share of matched queries, 0..1, whose most likely class is not the target's.
        `matched_iou`: mean overlap of matched boxes.
        `cardinality_error`: mean difference between the predicted and the true number of objects.
    """
    joined = concatenate(targets)
    logits, boxes = predictions.logits[-1], predictions.boxes[-1].float()
    # Weights instead of a selection: the number of matches of one layer is not known without waiting for the device.
    last = (matches.layer == len(predictions.logits) - 1).float()
    count = last.sum().clamp(min=1)
    labels = predictions.scores.most_likely(logits[matches.image, matches.query])
    matched = cxcywh_to_xyxy(boxes[matches.image, matches.query])
    overlap = elementwise_iou(matched, cxcywh_to_xyxy(joined.boxes[matches.target]))
    objects = predictions.scores.says_object(logits).sum(1)
    true = torch.tensor([len(entry) for entry in targets], device=logits.device)
    return {
        "class_error": (last * (labels != joined.labels[matches.target])).sum() / count,
        "matched_iou": (last * overlap).sum() / count,
        "cardinality_error": (objects - true).abs().float().mean(),
    }
