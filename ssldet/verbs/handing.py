"""a trained model, a detector -> the detector with what the model can give it, and a report of every tensor."""

from collections.abc import Sequence
from pathlib import Path

from ssldet.classes import match_classes
from ssldet.detectors.base import Detector
from ssldet.engine.checkpoint import TransferReport
from ssldet.engine.checkpoint import transfer as hand_sections
from ssldet.importing.base import Opened
from ssldet.task import transferred_sections
from ssldet.verbs.opening import open_model


def transfer(
    start: str | Path | Opened,
    detector: Detector,
    sections: Sequence[str] | None = None,
    *,
    classes: Sequence[str] = (),
    expects_fresh: Sequence[str] = (),
) -> TransferReport:
    """Hand sections of a trained model over to a detector; nothing goes missing without a word.

    The class head goes along row by row where class names are known on both sides, whole where they are the same, and
    starts anew where they have nothing in common.

    Args:
        start: A run folder, a weights file or folder that `load` reads, or an opened one.
        detector: Receives, in place.
        sections: What to hand over; none takes what the task that taught the model promises.
        classes: Names of the detector's classes, in its order.
        expects_fresh: Sections of those that start anew all the same.

    Raises:
        CheckpointError: Something is missing, too many, of another shape or not finite; nothing has been changed then.
    """
    opened = start if isinstance(start, Opened) else open_model(start)
    handed = transferred_sections(opened.task, opened.objective.detector) if sections is None else tuple(sections)
    fresh, rows = set(expects_fresh), None
    if "class_head" in set(handed) - fresh and tuple(classes) != opened.classes:
        matched = match_classes(opened.classes, classes)
        rows = matched if matched.found else None
        fresh |= set() if matched.found else {"class_head"}
    state = opened.objective.detector.state_dict()
    return hand_sections(state, detector, handed, expects_fresh=sorted(fresh), class_rows=rows)
