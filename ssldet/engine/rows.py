"""tensors whose rows are classes or queries -> the same tensors for a detector with others, row by row."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from torch import Tensor

from ssldet.classes import ClassRows
from ssldet.detectors.base import Detector
from ssldet.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class QueryRows:
    """How learned queries were handed over to a detector with another number of them.

    Attributes:
        theirs: Queries of the model that handed over.
        ours: Queries of the detector that received.
    """

    theirs: int
    ours: int

    def __str__(self) -> str:
        """Say which queries were kept, cut or new."""
        if self.ours < self.theirs:
            return f"the first {self.ours} of {self.theirs} kept, the other {self.theirs - self.ours} left behind"
        return f"{self.theirs} kept, {self.ours - self.theirs} new ones with fresh weights, as the detector draws them"

    def to_json(self) -> dict[str, int]:
        """Return plain values."""
        return asdict(self)


def class_tensors(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], detector: Detector, rows: ClassRows
) -> dict[str, Tensor]:
    """Return the tensors of the class head with each known class's row, and that of "no object", in its new place.

    Args:
        state: State of another detector, by the same names.
        own: State of the detector that receives.
        detector: Receives; is not changed.
        rows: Which class is which.

    Raises:
        CheckpointError: A head has another number of rows than there are names.
    """
    extra = detector.scores.extra_rows
    ours = [
        *(place for place, row in enumerate(rows.rows) if row is not None),
        *range(len(rows.ours), len(rows.ours) + extra),
    ]
    theirs = [*(row for row in rows.rows if row is not None), *range(len(rows.theirs), len(rows.theirs) + extra)]
    moved: dict[str, Tensor] = {}
    for name, value in own.items():
        given = state.get(name)
        if section_of(detector, name) != "class_head" or given is None or given.shape[1:] != value.shape[1:]:
            continue
        for side, tensor, count in (("here", value, len(rows.ours)), ("there", given, len(rows.theirs))):
            if len(tensor) != count + extra:
                no_object = " and 'no object'" if extra else ""
                raise CheckpointError(
                    f"{name} has {len(tensor)} rows {side}, which are not {count} classes{no_object}; name as many "
                    "classes as the head has"
                )
        moved[name] = value.clone()
        moved[name][ours] = given[theirs].to(value)
    return moved


def query_tensors(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], detector: Detector
) -> tuple[dict[str, Tensor], QueryRows | None]:
    """Return the tensors of learned queries with as many of the given rows as there is room for, in their order.

    New queries keep the weights that the detector was built with. Copies of given ones would answer like these, and
    equal answers part only slowly.

    Args:
        state: State of another detector, by the same names.
        own: State of the detector that receives.
        detector: Receives; is not changed.

    Returns:
        The tensors by name, and how many queries there were and are; nothing where the numbers are the same.
    """
    moved: dict[str, Tensor] = {}
    counts: QueryRows | None = None
    for name, value in own.items():
        given = state.get(name)
        if section_of(detector, name) != "queries" or given is None or not given.dim() or not value.dim():
            continue
        if given.shape[1:] == value.shape[1:] and len(value) == detector.num_queries != len(given):
            both = min(len(value), len(given))
            moved[name] = value.clone()
            moved[name][:both] = given[:both].to(value)
            counts = QueryRows(theirs=len(given), ours=len(value))
    return moved, counts


def section_of(detector: Detector, name: str) -> str:
    """Return the section that a tensor of the detector's state belongs to; empty for none."""
    for section, parts in detector.sections.items():
        if name.startswith(tuple(f"{part}." for part in parts)):
            return section
    return ""
