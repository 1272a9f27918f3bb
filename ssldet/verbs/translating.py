"""labels of a model -> those of the data that it is measured on: classes are brought together by their names."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from ssldet.classes import match_classes
from ssldet.errors import DataError
from ssldet.escapes import printable
from ssldet.types import Detections, Segmentation

log = logging.getLogger(__name__)


SHOWN = 3
"""Classes that a warning names."""


def translation(known: Sequence[str], wanted: Sequence[str], numbered: int = 0) -> Callable[[Detections], Detections]:
    """Return what brings a model's labels into the order of the data's classes, by name; others are dropped.

    Args:
        known: Class names of the model.
        wanted: Class names of the data.
        numbered: Classes that a model without names tells apart by number; 0 where it tells none apart.

    Raises:
        DataError: They have no class in common, so that every measure would be zero.
    """
    if not known and wanted and numbered:
        return _relabelling(_assumed(wanted, numbered))
    if not known or not wanted or tuple(known) == tuple(wanted):
        return lambda found: found
    matched = match_classes(known, wanted)
    if not matched.found:
        raise DataError(
            f"the model finds {', '.join(known[:5])}… and the data asks for {', '.join(wanted[:5])}…: no class in "
            "common; evaluate on data with the model's classes, or fine-tune on this data first"
        )
    if missing := matched.fresh:
        log.warning("the model was not trained on %d classes of the data: %s", len(missing), ", ".join(missing[:10]))
    places = torch.full((len(known),), -1)
    for place, row in enumerate(matched.rows):
        if row is not None:
            places[row] = place
    return _relabelling(places)


def _assumed(wanted: Sequence[str], numbered: int) -> Int[Tensor, " C"]:
    """Return the data's class for each number of a model without names, and say what is assumed."""
    pairs = ", ".join(f"{number} is {printable(name)}" for number, name in enumerate(wanted[:SHOWN]))
    counts = "" if numbered == len(wanted) else f"; it has {numbered} classes and the data {len(wanted)}"
    log.warning(
        "the model does not name its classes, which are taken for those of the data in their order: %s%s%s; if that is "
        "wrong, list the data's categories in the model's order, or name the model's by id2label of its config.json",
        *(pairs, ", …" if len(wanted) > SHOWN else "", counts),
    )
    places = torch.full((numbered,), -1)
    places[: len(wanted)] = torch.arange(min(numbered, len(wanted)))
    return places


def _relabelling(places: Int[Tensor, " C"]) -> Callable[[Detections], Detections]:
    """Return what gives detections the label at the place of their own, and drops those without one."""

    def translate(found: Detections) -> Detections:
        labels = places[found.labels]
        keep = labels >= 0
        segmentation = None if found.segmentation is None else _renumber(found.segmentation, places)
        return replace(found, labels=labels, segmentation=segmentation).only(keep)

    return translate


def _renumber(found: Segmentation, places: Int[Tensor, " C"]) -> Segmentation:
    """Return a segmentation with other labels; segments without one become void."""
    labels = places[found.labels]
    keep = labels >= 0
    numbers = torch.cat([torch.zeros(1, dtype=torch.int64), keep.cumsum(0) * keep])
    return replace(
        found,
        segments=numbers[found.segments.long()],
        labels=labels[keep],
        crowd=None if found.crowd is None else found.crowd[keep],
    )
