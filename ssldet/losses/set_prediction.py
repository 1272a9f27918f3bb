"""weights -> Criterion: set prediction as DETR has it, built once for pretext and labelled tasks alike."""

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

from ssldet.losses.criterion import Criterion, Draw
from ssldet.losses.terms import BoxGIoUTerm, BoxL1Term, ClassTerm, Term
from ssldet.matching import BoxGIoUCost, BoxL1Cost, ClassCost, Matcher


@runtime_checkable
class Weights(Protocol):
    """Weights that count in the loss and in the matching alike; tasks have them among their fields."""

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
    """Return what matches predictions with targets and compares them: class, L1 distance and generalised overlap.

    Proposals of an encoder, where a detector makes any, are compared by the same three terms; they have no groups.

    Args:
        weights: Of the three costs and terms.
        no_object_weight: Weight of queries without a target, see `ClassTerm`.
        scope: Which queries may answer a target, see `Matcher`.
        extra: Further terms of a task, on the answers alone.
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
