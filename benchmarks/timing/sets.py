"""Sets of queries, matched, compared and attending in groups, against the way that the first implementations had.

They matched and compared one decoder layer after the other, each query with the targets of all images, and hid the
queries of other groups by a mask.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from benchmarks.timing.clock import Ratio, ratio
from ssldet.boxes import cxcywh_to_xyxy, pairwise_giou
from ssldet.losses.set_prediction import set_prediction
from ssldet.nn.transformer import Attention
from ssldet.types import Predictions, Targets

NO_OBJECT = 0.1
"""Weight of queries without a target."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights of the three terms, DETR's."""

    class_weight: float = 1.0
    box_l1_weight: float = 5.0
    box_giou_weight: float = 2.0


WEIGHTS = Weights()


def measure_sets(repeats: int, amounts: Sequence[tuple[int, int]] = ((100, 10), (300, 30))) -> Iterator[Ratio]:
    """Yield the rows of matching with its loss, and of attention within groups.

    Args:
        repeats: Rounds of each row.
        amounts: Queries and targets of each image.
    """
    for queries, targets in amounts:
        yield _criterion(*drawn(6, 32, queries, targets), repeats)
    yield from _attention(repeats)


def _criterion(predictions: Predictions, wanted: list[Targets], repeats: int) -> Ratio:
    criterion = set_prediction(WEIGHTS, no_object_weight=NO_OBJECT)
    layers, batch, queries, _ = predictions.boxes.shape
    place = f"{layers} layers, {batch} images, {queries} queries, {len(wanted[0])} targets"
    return ratio(
        (f"matching and loss: {place}", _with_gradient(predictions, lambda some: criterion(some, wanted).total)),
        (
            "layer by layer, each query with the targets of all images",
            _with_gradient(predictions, lambda some: plain_loss(some, wanted)),
        ),
        repeats,
    )


def drawn(layers: int, batch: int, queries: int, targets: int) -> tuple[Predictions, list[Targets]]:
    """Return random predictions of one class, and random targets.

    Args:
        layers: Decoder layers.
        batch: Images.
        queries: Queries of each image.
        targets: Targets of each image.
    """
    predictions = Predictions(
        logits=torch.randn(layers, batch, queries, 2),
        boxes=torch.rand(layers, batch, queries, 4) * 0.5 + 0.2,
        states=torch.zeros(layers, batch, queries, 2),
    )
    labels = torch.zeros(targets, dtype=torch.long)
    return predictions, [Targets(boxes=torch.rand(targets, 4) * 0.5 + 0.2, labels=labels) for _ in range(batch)]


def plain_loss(predictions: Predictions, wanted: Sequence[Targets]) -> Tensor:
    """Return DETR's loss, summed over layers.

    Args:
        predictions: Of all layers.
        wanted: Targets of each image.
    """
    layers = zip(predictions.logits, predictions.boxes, strict=True)
    return torch.stack([_of_layer(logits, boxes, wanted) for logits, boxes in layers]).sum()


def _of_layer(logits: Tensor, boxes: Tensor, wanted: Sequence[Targets]) -> Tensor:
    images, queries = _matched(logits.detach(), boxes.detach(), wanted)
    targets = torch.cat([one.boxes for one in wanted])
    labels = torch.ones(logits.shape[:2], dtype=torch.long)
    labels[images, queries] = torch.cat([one.labels for one in wanted])
    found = boxes[images, queries]
    overlap = pairwise_giou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(targets)).diagonal()
    loss: Tensor = (
        WEIGHTS.class_weight * F.cross_entropy(logits.transpose(1, 2), labels, torch.tensor([1.0, NO_OBJECT]))
        + WEIGHTS.box_l1_weight * (found - targets).abs().sum() / len(targets)
        + WEIGHTS.box_giou_weight * (1 - overlap).sum() / len(targets)
    )
    return loss


def _matched(logits: Tensor, boxes: Tensor, wanted: Sequence[Targets]) -> tuple[Tensor, Tensor]:
    """Return the image and the query of each target, in the order of the targets."""
    targets, labels = torch.cat([one.boxes for one in wanted]), torch.cat([one.labels for one in wanted])
    answers, chances = boxes.flatten(0, 1), logits.flatten(0, 1).softmax(-1)
    cost = (
        WEIGHTS.box_l1_weight * torch.cdist(answers, targets, p=1)
        - WEIGHTS.class_weight * chances[:, labels]
        - WEIGHTS.box_giou_weight * pairwise_giou(cxcywh_to_xyxy(answers), cxcywh_to_xyxy(targets))
    ).view(*logits.shape[:2], -1)
    images, queries = [], []
    for number, part in enumerate(torch.split(cost, [len(one) for one in wanted], -1)):
        rows, columns = map(torch.as_tensor, linear_sum_assignment(part[number]))
        queries.append(rows[columns.argsort()])
        images.append(torch.full_like(rows, number))
    return torch.cat(images), torch.cat(queries)


def _with_gradient(predictions: Predictions, loss: Callable[[Predictions], Tensor]) -> Callable[[], object]:
    def once() -> None:
        leaves = {name: getattr(predictions, name).clone().requires_grad_() for name in ("logits", "boxes")}
        torch.autograd.backward(loss(Predictions(states=predictions.states, **leaves)))

    return once


def _attention(repeats: int, queries: int = 1000, groups: int = 100) -> Iterator[Ratio]:
    whole = Attention(256, 8, 0.0).requires_grad_(False)
    states = torch.randn(2, queries, 256)
    group = torch.arange(queries) // (queries // groups)
    apart = (group[:, None] != group[None]).unsqueeze(0)
    heads = torch.randn(2, 8, queries, 32)
    parts = heads.transpose(1, 2).reshape(2 * groups, queries // groups, 8, 32).transpose(1, 2)
    place = f"2 images, {queries} queries in {groups} groups"
    yield ratio(
        (f"attention within groups: {place}", lambda: F.scaled_dot_product_attention(parts, parts, parts)),
        ("a mask", lambda: F.scaled_dot_product_attention(heads, heads, heads, attn_mask=~apart)),
        repeats,
    )
    yield ratio(
        (f"the same with its projections: {place}", lambda: whole(states, states, states, groups=groups)),
        ("a mask", lambda: whole(states, states, states, hidden=apart)),
        repeats,
    )
