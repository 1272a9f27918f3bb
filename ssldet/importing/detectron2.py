"""checkpoint of our model in detectron2 -> Opened: our tensors, and the task and detector stated in it or beside it."""

from ssldet.detectors.base import DetectorConfig
from ssldet.engine.checkpoint import load_exactly
from ssldet.importing.base import Candidate, Importer, Opened
from ssldet.importing.safetensors import is_ours
from ssldet.recipe import from_document
from ssldet.task import Task
from ssldet.weights.detectron2 import has_our_names, stated_about


def is_from_detectron2(candidate: Candidate) -> bool:
    """Tell whether a file has our tensors without our header.

    Args:
        candidate: Any file or folder.
    """
    return has_our_names(candidate.names) and not is_ours(candidate)


def open_from_detectron2(candidate: Candidate) -> Opened:
    """Build the model that detectron2 saved.

    Args:
        candidate: A file with our tensors.

    Raises:
        CheckpointError: Nothing states which model it is, or its tensors are not exactly those of the model.
    """
    state, origin = candidate.read()
    info = stated_about(origin)
    task = from_document(Task, info["task"])  # type: ignore[type-abstract]
    config = from_document(DetectorConfig, info["detector"])  # type: ignore[type-abstract]
    objective = task.objective(config.build())
    load_exactly(objective, state, str(candidate.path))
    return Opened(objective=objective.eval(), task=task, classes=tuple(info["classes"]), info=info)


IMPORTER = Importer(
    reads="checkpoints of ssldet's model in detectron2", recognises=is_from_detectron2, open=open_from_detectron2
)
