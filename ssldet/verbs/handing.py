"""a trained model, a detector -> the detector with sections of the model, and a report of every tensor."""

from collections.abc import Sequence
from pathlib import Path

from ssldet.classes import match_classes
from ssldet.detectors.base import Detector
from ssldet.engine.checkpoint import TransferReport, transfer_sections
from ssldet.importing.base import Opened
from ssldet.task import transferred_sections
from ssldet.verbs.opening import open_model

HANDED_OVER = "handed_over"
"""Key of the record of an earlier stage: the sections that the next one took from it."""


def transfer(
    start: str | Path | Opened,
    detector: Detector,
    sections: Sequence[str] | None = None,
    *,
    classes: Sequence[str] = (),
    expects_fresh: Sequence[str] = (),
) -> TransferReport:
    """Copy sections of a trained model into a detector; the report names every tensor that was not copied.

    The class head is copied whole where class names are the same, row by row where some of them are, and stays fresh
    where none are, or where the file does not hold it. Of another number of queries, the first are copied; further ones
    stay fresh.

    Args:
        start: A run folder, a weights file or folder that `load` reads, or an opened one.
        detector: Changed in place.
        sections: Sections to copy; `None` takes those that the task of the model transfers, and those that it left
            alone but had been handed itself: a decoder outlives a stage that aligns the encoder only.
        classes: Names of the detector's classes, in its order.
        expects_fresh: Sections among these that stay fresh all the same.

    Raises:
        CheckpointError: A tensor is missing, unexpected, of another shape or not finite; nothing has been changed then.
    """
    opened = start if isinstance(start, Opened) else open_model(start)
    handed = _worth_handing(opened) if sections is None else tuple(sections)
    fresh, rows = {*expects_fresh, *opened.fresh}, None
    if "class_head" in set(handed) - fresh and tuple(classes) != opened.classes:
        matched = match_classes(opened.classes, classes)
        rows = matched if matched.found else None
        fresh |= set() if matched.found else {"class_head"}
    state = opened.objective.detector.state_dict()
    return transfer_sections(state, detector, handed, expects_fresh=sorted(fresh), class_rows=rows)


def _worth_handing(opened: Opened) -> tuple[str, ...]:
    """Return the sections of a model that some stage has taught."""
    detector = opened.objective.detector
    taught = set(transferred_sections(opened.task, detector))
    lineage = opened.info.get("lineage")
    if lineage:
        taught |= set(lineage[-1].get(HANDED_OVER, ()))
    return tuple(section for section in detector.sections if section in taught)
