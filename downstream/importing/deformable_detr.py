"""files of Deformable DETR's authors -> Opened: detection, or the task that a file of ours states."""

from downstream.detection import Detection
from ssldet.importing.base import Candidate, Importer, Opened
from ssldet.recipe import from_document, to_document
from ssldet.task import Task
from ssldet.weights.coco import coco_numbering
from ssldet.weights.deformable_detr import detector_from_authors
from ssldet.weights.deformable_detr_names import is_authors


def open_file(candidate: Candidate) -> Opened:
    """Build the detector that a file of Deformable DETR's authors holds.

    Args:
        candidate: A file with their names.

    Raises:
        CheckpointError: It holds something else, or more or less than such a detector.
    """
    file = detector_from_authors(*candidate.read())
    task = from_document(Task, file.stated["task"]) if "task" in file.stated else Detection()  # type: ignore[type-abstract]
    classes, category_ids = ((), ()) if file.fresh else coco_numbering(file.config.num_classes)
    if not file.fresh:
        classes = tuple(file.stated.get("classes", classes))
        category_ids = tuple(file.stated.get("category_ids", category_ids))
    info = {
        "task": to_document(task),
        "detector": to_document(file.config),
        "classes": list(classes),
        "category_ids": list(category_ids),
    }
    objective = task.objective(file.detector).eval()
    return Opened(objective=objective, task=task, classes=classes, info=info, fresh=file.fresh)


def _is_theirs(candidate: Candidate) -> bool:
    return is_authors(candidate.names)


IMPORTER = Importer(reads="files of Deformable DETR's authors", recognises=_is_theirs, open=open_file)
