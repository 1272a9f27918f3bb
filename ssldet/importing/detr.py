"""file with DETR's names, assumptions about it -> Opened: shared by importers of DETR and of models based on it.

A file that we wrote states its task and classes, which are used instead of the assumptions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ssldet.importing.base import Candidate, Opened
from ssldet.recipe import from_document, to_document
from ssldet.task import Task
from ssldet.weights.detectron2 import is_wrapper
from ssldet.weights.detr import DetrFile, detr_name, fill, from_detr, has_detr_names, look_into


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """Information that a file does not state, and that is assumed instead.

    Attributes:
        task: The task that the detector was trained on.
        classes: Class names in the order of the labels; empty where they are unknown.
        category_ids: The data's number of each class; empty where they are unknown.
    """

    task: Task
    classes: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()


def is_detr(candidate: Candidate) -> bool:
    """Tell whether a file has DETR's names, or those of its authors' model for detectron2.

    Args:
        candidate: Any file or folder.
    """
    return has_detr_names(candidate.names) or is_wrapper(candidate.names)


def open_detr(candidate: Candidate, assume: Callable[[DetrFile], Assumptions]) -> Opened:
    """Build the model that a file with DETR's names holds.

    Args:
        candidate: A file with DETR's names.
        assume: Returns assumptions about the file, from its tensors; what the file states is used instead.

    Raises:
        CheckpointError: Its tensors are not exactly those of such a model.
    """
    file = look_into(*candidate.read())
    assumed = assume(file)
    task = from_document(Task, file.stated["task"]) if "task" in file.stated else assumed.task  # type: ignore[type-abstract]
    objective = task.objective(file.config.build())
    heads = objective.detr_names
    ours = from_detr(file.state, heads)
    fill(objective, ours, candidate.path, named=partial(detr_name, heads=heads), fresh=file.fresh)
    classes = () if file.fresh else tuple(file.stated.get("classes", assumed.classes))
    info = {
        "task": to_document(task),
        "detector": to_document(file.config),
        "classes": list(classes),
        "category_ids": [] if file.fresh else list(file.stated.get("category_ids", assumed.category_ids)),
    }
    return Opened(objective=objective.eval(), task=task, classes=classes, info=info, fresh=file.fresh)
