"""weights -> Criterion: DETR's set prediction loss, for pretext and labelled tasks."""

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

from ssldet.losses.criterion import Criterion, Draw
from ssldet.losses.terms import BoxGIoUTerm, BoxL1Term, ClassTerm, Term
from ssldet.matching import BoxGIoUCost, BoxL1Cost, ClassCost, Matcher


@runtime_checkable
class Weights(Protocol):
    """Weights that loss and matching share; tasks have them among their fields."""

    @property
    def class_weight(self) -> float:
        """Weight of the class."""
        ...

    @property
    def box_l1_weight(self) -> float:
        """Weight of the L1 distance of boxes."""
        ...

    @property
    def box_giou_weight(self) -> float:
        """Weight of the generalised overlap of boxes."""
        ...


def set_prediction(
    weights: Weights,
    *,
    no_object_weight: float,
    scope: Literal["global", "own_group"] = "global",
    extra: Sequence[Term] = (),
    draw: Draw | None = None,
) -> Criterion:
    """Return a criterion of class, L1 distance and generalised overlap, with a matcher of the same three costs.

    Proposals of an encoder, where a detector makes any, are compared by the same three terms; they have no groups.

    Args:
        weights: Weights of the three costs and terms.
        no_object_weight: Weight of queries without a target in the class term.
        scope: Queries that may answer a target: all of them, or those of the target's own group.
        extra: Further terms of a task; proposals are not compared by them.
        draw: Draws masks, for terms that compare them.
    """
    costs = (
        ClassCost(weight=weights.class_weight),
        BoxL1Cost(weight=weights.box_l1_weight),
        BoxGIoUCost(weight=weights.box_giou_weight),
    )
    terms: tuple[Term, ...] = (
        ClassTerm(weight=weights.class_weight, no_object_weight=no_object_weight),
        BoxL1Term(weight=weights.box_l1_weight),
        BoxGIoUTerm(weight=weights.box_giou_weight),
    )
    proposals = Criterion(Matcher(costs), terms)
    return Criterion(Matcher(costs, scope=scope), [*terms, *extra], draw=draw, proposals=proposals)
