"""file with DETR's names, and what to assume of it -> Opened: shared by importers of DETR and of what builds on it.

A file that we wrote states its task and classes, and these go before whatever is assumed.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ssldet.errors import CheckpointError
from ssldet.importing.base import Candidate, Opened
from ssldet.recipe import from_document, to_document
from ssldet.task import Task
from ssldet.weights.detectron2 import is_wrapper
from ssldet.weights.detr import DetrFile, fill, from_detr, has_detr_names, look_into


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """What is taken for true of a file that doesn't say it.

    Attributes:
        task: Who taught the detector.
        classes: Class names in the order of the labels; empty where they are unknown.
        category_ids: The data's number of each class; empty likewise.
    """

    task: Task
    classes: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()


def is_detr(candidate: Candidate) -> bool:
    """Say whether a file has DETR's names, or those of its authors' model for detectron2.

    Args:
        candidate: Any file or folder.
    """
    return has_detr_names(candidate.names) or is_wrapper(candidate.names)


def open_detr(candidate: Candidate, assume: Callable[[DetrFile], Assumed]) -> Opened:
    """Build the model that a file with DETR's names holds.

    Args:
        candidate: Such a file.
        assume: Says what the file is, from its tensors, as far as it doesn't say so itself.

    Raises:
        CheckpointError: It holds something else, or more or less than such a model.
    """
    file = look_into(*candidate.read())
    assumed = assume(file)
    task = from_document(Task, file.stated["task"]) if "task" in file.stated else assumed.task  # type: ignore[type-abstract]
    objective = task.objective(file.config.build())
    try:
        ours = from_detr(file.state, objective.detr_names)
    except CheckpointError as error:
        raise CheckpointError(f"{candidate.path}: {error}") from error
    fill(objective, ours, candidate.path)
    classes = tuple(file.stated.get("classes", assumed.classes))
    info = {
        "task": to_document(task),
        "detector": to_document(file.config),
        "classes": list(classes),
        "category_ids": list(file.stated.get("category_ids", assumed.category_ids)),
    }
    return Opened(objective=objective.eval(), task=task, classes=classes, info=info)
