"""our own weights file -> Opened, by its header."""

from ssldet.engine.checkpoint import HEADER, restore_objective
from ssldet.importing.base import Candidate, Importer, Opened
from ssldet.recipe import from_document
from ssldet.task import Task


def is_ours(candidate: Candidate) -> bool:
    """Tell whether a file has our header.

    Args:
        candidate: Any file or folder.
    """
    return HEADER in candidate.metadata


def open_ours(candidate: Candidate) -> Opened:
    """Build the model that a weights file of ours describes.

    Args:
        candidate: A file with our header.

    Raises:
        CheckpointError: The file is damaged, or from another version.
        ConfigError: Its task or its detector is not installed.
    """
    objective, info = restore_objective(candidate.path)
    task = from_document(Task, info["task"])  # type: ignore[type-abstract]
    return Opened(objective=objective.eval(), task=task, classes=tuple(info["classes"]), info=info)


IMPORTER = Importer(reads="weights of ssldet (.safetensors)", recognises=is_ours, open=open_ours)
