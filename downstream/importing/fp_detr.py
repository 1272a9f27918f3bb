"""detection files of FP-DETR's authors -> Opened: detection. No published file could be tried."""

from downstream.detection import Detection
from ssldet.errors import CheckpointError
from ssldet.importing.base import Candidate, Importer, Opened
from ssldet.recipe import to_document
from ssldet.weights.coco import coco_numbering
from ssldet.weights.detr import fill
from ssldet.weights.fp_detr import from_authors, is_authors, is_detector, recognise


def open_file(candidate: Candidate) -> Opened:
    """Build the detector that a file of FP-DETR's authors holds.

    Args:
        candidate: A file with their names.

    Raises:
        CheckpointError: It holds something else, or more or less than such a detector.
    """
    theirs, _ = candidate.read()
    try:
        state = from_authors(theirs)
        config = recognise(state)
    except CheckpointError as error:
        raise CheckpointError(f"{candidate.path}: {error}") from error
    detector = config.build()
    fill(detector, state, candidate.path)
    classes, category_ids = coco_numbering(config.num_classes)
    task = Detection(class_weight=2.0)
    info = {
        "task": to_document(task),
        "detector": to_document(config),
        "classes": list(classes),
        "category_ids": list(category_ids),
    }
    return Opened(objective=task.objective(detector).eval(), task=task, classes=classes, info=info)


def _is_theirs(candidate: Candidate) -> bool:
    return is_authors(candidate.names) and is_detector(candidate.names)


IMPORTER = Importer(reads="detection files of FP-DETR's authors", recognises=_is_theirs, open=open_file)
