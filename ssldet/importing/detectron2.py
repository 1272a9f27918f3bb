"""checkpoint of our model in detectron2 -> Opened: our names, and what was stated in it or beside it."""

from ssldet.detectors.base import DetectorConfig
from ssldet.engine.checkpoint import load_exactly
from ssldet.importing.base import Candidate, Importer, Opened
from ssldet.importing.safetensors import is_ours
from ssldet.recipe import from_document
from ssldet.task import Task
from ssldet.weights.detectron2 import has_our_names, stated_about


def is_trained_there(candidate: Candidate) -> bool:
    """Say whether a file has our tensors without our header.

    Args:
        candidate: Any file or folder.
    """
    return has_our_names(candidate.names) and not is_ours(candidate)


def open_trained_there(candidate: Candidate) -> Opened:
    """Build the model that detectron2 saved.

    Args:
        candidate: Such a file.

    Raises:
        CheckpointError: Nothing says which model it is, or it holds more or less than that.
    """
    state, origin = candidate.read()
    info = stated_about(origin)
    task = from_document(Task, info["task"])  # type: ignore[type-abstract]
    config = from_document(DetectorConfig, info["detector"])  # type: ignore[type-abstract]
    objective = task.objective(config.build())
    load_exactly(objective, state, str(candidate.path))
    return Opened(objective=objective.eval(), task=task, classes=tuple(info["classes"]), info=info)


IMPORTER = Importer(
    reads="checkpoints of ssldet's model in detectron2", recognises=is_trained_there, open=open_trained_there
)
