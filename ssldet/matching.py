"""Predictions, Targets -> Matches: the cheapest assignment of predictions to targets, for all layers and images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ssldet.boxes import cxcywh_to_xyxy, pairwise_giou
from ssldet.errors import ConfigError, DataError, DivergedError
from ssldet.types import Matches, Predictions, Targets


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedTargets:
    """The targets of a batch, padded to the largest number in one image.

    Attributes:
        boxes: Normalised cxcywh; zeros in the padding.
        labels: Class of each box; zero in the padding.
        embeddings: Feature vector of each target, where the task has them.
    """

    boxes: Float[Tensor, "B T 4"]
    labels: Int[Tensor, "B T"]
    embeddings: Float[Tensor, "B T E"] | None = None


@runtime_checkable
class CostTerm(Protocol):
    """One part of the cost of matching a prediction with a target."""

    @property
    def weight(self) -> float:
        """Its factor in the total cost."""
        ...

    def __call__(self, predictions: Predictions, targets: PaddedTargets) -> Float[Tensor, "L B Q T"]:
        """Return the unweighted cost of every pair within each image."""
        ...


@dataclass(frozen=True, kw_only=True)
class ClassCost:
    """Cost of the class, as the detector's class scores define it; for DETR minus the probability of the target's.

    Attributes:
        weight: Factor in the total cost.
    """

    weight: float = 1.0

    def __call__(self, predictions: Predictions, targets: PaddedTargets) -> Float[Tensor, "L B Q T"]:
        """Return the cost; NaN for a label that the detector does not have, which the matcher reports."""
        return predictions.scores.cost(predictions.logits.float(), targets.labels)


@dataclass(frozen=True, kw_only=True)
class BoxL1Cost:
    """Distance of normalised cxcywh boxes, summed over the four numbers.

    Attributes:
        weight: Factor in the total cost.
    """

    weight: float = 5.0

    def __call__(self, predictions: Predictions, targets: PaddedTargets) -> Float[Tensor, "L B Q T"]:
        """Return the cost."""
        boxes, wanted = predictions.boxes.float(), targets.boxes.float()
        if boxes.is_cuda:
            # `cdist` is several times slower than the difference of all pairs there, and several times faster on CPUs.
            return (boxes.unsqueeze(-2) - wanted.unsqueeze(-3)).abs_().sum(-1)
        return torch.cdist(boxes, wanted, p=1)


@dataclass(frozen=True, kw_only=True)
class BoxGIoUCost:
    """Minus the generalised overlap of the boxes.

    Attributes:
        weight: Factor in the total cost.
    """

    weight: float = 2.0

    def __call__(self, predictions: Predictions, targets: PaddedTargets) -> Float[Tensor, "L B Q T"]:
        """Return the cost."""
        return -pairwise_giou(cxcywh_to_xyxy(predictions.boxes.float()), cxcywh_to_xyxy(targets.boxes.float()))


class Matcher:
    """Optimal assignment of every image's targets to its queries, solved for each decoder layer separately.

    Where an image (or a group) has more targets than queries, as many are matched as there are queries.

    Attributes:
        costs: Parts of the cost; a task may add its own.
        scope: `global` lets any query answer any target. `own_group` lets a target be answered only by queries of the
            group that `Targets.groups` names: the query that was shown a patch must find that patch itself.
    """

    def __init__(
        self, costs: Sequence[CostTerm] | None = None, scope: Literal["global", "own_group"] = "global"
    ) -> None:
        """Choose the parts of the cost.

        Args:
            costs: Parts of the cost; `None` takes DETR's: class 1, L1 5, generalised overlap 2.
            scope: Queries that may answer a target: all of them, or those of the target's own group.
        """
        self.costs = (ClassCost(), BoxL1Cost(), BoxGIoUCost()) if costs is None else tuple(costs)
        self.scope = scope

    # The assignment is solved on the host, so no graph can hold it: the break is here, and nowhere inside.
    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch says no types
    @torch.no_grad()
    def __call__(self, predictions: Predictions, targets: list[Targets]) -> Matches:
        """Match predictions with targets.

        Args:
            predictions: Outputs of the detector.
            targets: What there was to find, one entry per image.

        Returns:
            The matches, ordered by layer and image.

        Raises:
            DivergedError: A cost is not finite.
            DataError: A label is not one of the detector's classes.
            ConfigError: The scope needs groups that predictions or targets do not have.
        """
        counts = np.array([len(entry) for entry in targets])
        device = predictions.boxes.device
        padded = _pad(targets)
        with torch.autocast(device.type, enabled=False):
            parts = [term.weight * term(predictions, padded) for term in self.costs]
            cost, of_target = _to_host(torch.stack(parts).sum(0), targets)
        if not np.isfinite(cost).all():
            _raise_cause(cost, targets, predictions.scores.num_classes(predictions.logits.shape[-1]))
        if self.scope == "global":
            matched = _gather(_solve_images(cost, counts))
        else:
            matched = _within_groups(cost, *_groups(predictions, of_target))
        first = np.concatenate([[0], np.cumsum(counts)])
        matched[3] += first[matched[1]]
        layer, image, query, target = torch.from_numpy(matched).to(device)
        return Matches(layer=layer, image=image, query=query, target=target)

    def count(self, predictions: Predictions, targets: list[Targets]) -> int:
        """Return how many targets will be matched in each layer, which is known before any cost.

        Args:
            predictions: Outputs of the detector.
            targets: What there was to find, one entry per image.
        """
        queries = predictions.logits.shape[2]
        if self.scope == "global":
            return sum(min(len(entry), queries) for entry in targets)
        if predictions.groups is None:
            return 0  # which `__call__` refuses, in words
        room = predictions.groups.cpu().bincount()
        matched = 0
        for entry in targets:
            if entry.groups is not None and len(entry):
                wanted = entry.groups.cpu().bincount(minlength=len(room))[: len(room)]
                matched += int(torch.minimum(wanted, room).sum())
        return matched


def _pad(targets: list[Targets]) -> PaddedTargets:
    present = [entry.embeddings for entry in targets if entry.embeddings is not None]
    return PaddedTargets(
        boxes=pad_sequence([entry.boxes for entry in targets], batch_first=True),
        labels=pad_sequence([entry.labels for entry in targets], batch_first=True),
        embeddings=pad_sequence(present, batch_first=True) if len(present) == len(targets) else None,
    )


def _to_host(cost: Float[Tensor, "L B Q T"], targets: list[Targets]) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return the costs and, if all images have them, the groups of targets, in one transfer: the only wait of a step.

    Args:
        cost: The cost of every pair.
        targets: What there was to find; groups are padded with -1.
    """
    present = [entry.groups for entry in targets if entry.groups is not None]
    if len(present) < len(targets):
        return cost.cpu().numpy(), None
    groups = pad_sequence(present, batch_first=True, padding_value=-1)
    # As floating-point numbers, which hold whole numbers up to 2^24 exactly.
    together = torch.cat([cost.flatten(), groups.flatten().to(cost)]).cpu().numpy()
    return together[: cost.numel()].reshape(cost.shape), together[cost.numel() :].reshape(groups.shape).astype(np.int64)


def _groups(predictions: Predictions, of_target: NDArray[Any] | None) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the group of each query, and of each target of each image."""
    if predictions.groups is None or of_target is None:
        missing = "the queries" if predictions.groups is None else "the targets"
        raise ConfigError(f"matching within own groups needs groups, but {missing} have none; use scope='global'")
    return predictions.groups.cpu().numpy(), of_target


def _solve_images(cost: NDArray[Any], counts: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for layer in range(len(cost)):
        for image, count in enumerate(counts):
            yield _solve(cost[layer, image, :, :count], layer, image)


def _within_groups(cost: NDArray[Any], of_query: NDArray[Any], of_target: NDArray[Any]) -> NDArray[Any]:
    """Return rows of layer, image, query and target (counted within its image)."""
    allowed = (of_query[:, None] == of_target[:, None, :]) & (of_target >= 0)[:, None, :]
    same_group = (of_target[:, :, None] == of_target[:, None, :]) & (of_target >= 0)[:, None, :]
    if (same_group.sum(-1) <= 1).all():
        # One target per group: the assignment is the cheapest query of the group.
        best = np.where(allowed, cost, np.inf).argmin(2)
        layer, image, target = np.nonzero(np.broadcast_to(allowed.any(1), best.shape))
        return np.stack([layer, image, best[layer, image, target], target])
    return _gather(_solve_groups(cost, of_query, of_target))


def _solve_groups(cost: NDArray[Any], of_query: NDArray[Any], of_target: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for layer in range(len(cost)):
        for image, groups in enumerate(of_target):
            for group in np.unique(groups[groups >= 0]):
                queries, members = np.nonzero(of_query == group)[0], np.nonzero(groups == group)[0]
                found = _solve(cost[layer, image][np.ix_(queries, members)], layer, image)
                found[2], found[3] = queries[found[2]], members[found[3]]
                yield found


def _solve(cost: NDArray[Any], layer: int, image: int) -> NDArray[Any]:
    from scipy.optimize import linear_sum_assignment

    query, target = linear_sum_assignment(cost)
    return np.stack([np.full_like(query, layer), np.full_like(query, image), query, target])


def _gather(parts: Iterator[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate([np.zeros((4, 0), np.int64), *parts], axis=1)


def _raise_cause(cost: NDArray[Any], targets: list[Targets], num_classes: int) -> None:
    """Raise an error that says what made a cost not finite."""
    for image, entry in enumerate(targets):
        for label in entry.labels.tolist():
            if not 0 <= label < num_classes:
                raise DataError(
                    f"image {image} of the batch has label {label}, but the detector knows classes 0 to "
                    f"{num_classes - 1}; set detector.num_classes={label + 1} or more, or renumber the labels"
                )
        if not bool(entry.boxes.isfinite().all()):
            raise DataError(f"image {image} of the batch has a target box that is not finite; mend its annotation")
    layer, image = np.argwhere(~np.isfinite(cost))[0][:2]
    raise DivergedError(
        f"the matching cost of decoder layer {layer}, image {image} of the batch is not finite: the model has "
        "diverged; go back to an earlier checkpoint or lower optim.lr"
    )
