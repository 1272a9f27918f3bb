"""UP-DETR's pretraining files -> Opened: DETR's names, and the heads of random query patch detection beside them."""

from collections.abc import Iterable

from pretext.random_query_patch import PatchDetection, RandomQueryPatch
from ssldet.importing.base import Candidate, Importer, Opened
from ssldet.importing.detr import Assumed, is_detr, open_detr
from ssldet.weights.detr import DetrFile, bare_names


def is_pretrained(candidate: Candidate) -> bool:
    """Say whether a file holds the projection of patches beside a DETR.

    Args:
        candidate: Any file or folder.
    """
    return is_detr(candidate) and _has(candidate.names, "patch_queries.projection.")


def open_file(candidate: Candidate) -> Opened:
    """Build the pretraining model that a file of UP-DETR's authors holds.

    Args:
        candidate: Such a file.

    Raises:
        CheckpointError: It holds something else, or more or less than such a model.
    """
    return open_detr(candidate, _assume)


def _assume(file: DetrFile) -> Assumed:
    """Classes of pretraining are no names: a query was shown a patch and found it, or not."""
    return Assumed(task=RandomQueryPatch(reconstruction=_has(file.state, "reconstruction.")))


def _has(names: Iterable[str], head: str) -> bool:
    return any(name.startswith(PatchDetection.detr_names[head]) for name in bare_names(names))


IMPORTER = Importer(
    reads="UP-DETR's pretraining files, whole with their heads", recognises=is_pretrained, open=open_file
)
