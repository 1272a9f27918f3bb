"""UP-DETR's pretraining files -> `Opened`: a DETR with the heads of random query patch detection."""

from collections.abc import Iterable

from pretext.random_query_patch import PatchDetection, RandomQueryPatch
from ssldet.importing.base import Candidate, Importer, Opened
from ssldet.importing.detr import Assumptions, is_detr, open_detr
from ssldet.weights.detr import DetrFile, bare_names


def is_pretrained(candidate: Candidate) -> bool:
    """Return whether a file holds a DETR and the projection of patches.

    Args:
        candidate: Any file or folder.
    """
    return is_detr(candidate) and _has(candidate.names, "patch_queries.projection.")


def open_file(candidate: Candidate) -> Opened:
    """Build the pretraining model that a file of UP-DETR's authors holds.

    Args:
        candidate: Such a file.

    Raises:
        CheckpointError: The file holds another model, or its tensors are not exactly those of such a model.
    """
    return open_detr(candidate, _assume)


def _assume(file: DetrFile) -> Assumptions:
    """Return the task without class names: the classes of pretraining only say whether a query found its patch."""
    return Assumptions(task=RandomQueryPatch(reconstruction=_has(file.state, "reconstruction.")))


def _has(names: Iterable[str], head: str) -> bool:
    return any(name.startswith(PatchDetection.detr_names[head]) for name in bare_names(names))


IMPORTER = Importer(
    reads="UP-DETR's pretraining files, whole with their heads", recognises=is_pretrained, open=open_file
)
