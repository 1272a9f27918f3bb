"""files of Deformable DETR's authors -> Opened: detection."""

from downstream.detection import Detection
from ssldet.errors import CheckpointError
from ssldet.importing.base import Candidate, Importer, Opened
from ssldet.recipe import to_document
from ssldet.weights.coco import coco_numbering
from ssldet.weights.deformable_detr import recognise
from ssldet.weights.deformable_detr_names import from_authors, is_authors
from ssldet.weights.detr import DEFAULT_HEADS, fill


def open_file(candidate: Candidate) -> Opened:
    """Build the detector that a file of Deformable DETR's authors holds.

    Args:
        candidate: A file with their names.

    Raises:
        CheckpointError: It holds something else, or more or less than such a detector.
    """
    theirs, origin = candidate.read()
    options = origin.options
    try:
        state = from_authors(theirs, str(candidate.path))
        config = recognise(
            state,
            heads=int(options.get("nheads", DEFAULT_HEADS)),
            num_queries=options.get("num_queries"),
            output_stride=16 if options.get("dilation") is True else 32,
            dropout=float(options.get("dropout", 0.1)),
        )
    except CheckpointError as error:
        raise CheckpointError(f"{candidate.path}: {error}") from error
    detector = config.build()
    fill(detector, state, candidate.path)
    classes, category_ids = coco_numbering(config.num_classes)
    task = Detection()
    info = {
        "task": to_document(task),
        "detector": to_document(config),
        "classes": list(classes),
        "category_ids": list(category_ids),
    }
    return Opened(objective=task.objective(detector).eval(), task=task, classes=classes, info=info)


def _is_theirs(candidate: Candidate) -> bool:
    return is_authors(candidate.names)


IMPORTER = Importer(reads="files of Deformable DETR's authors", recognises=_is_theirs, open=open_file)
