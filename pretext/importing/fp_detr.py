"""pretraining files of FP-DETR's authors -> Opened: supervised classification. No published file could be tried."""

import logging
from collections.abc import Mapping

from torch import Tensor

from pretext.class_token import UNTAUGHT
from pretext.fp_detr import ImageClassification
from ssldet.engine.checkpoint import transfer_sections
from ssldet.errors import CheckpointError
from ssldet.importing.base import Candidate, Importer, Opened
from ssldet.recipe import to_document
from ssldet.states import few, misfits
from ssldet.weights.fp_detr import from_authors, is_authors, is_detector, recognise

log = logging.getLogger(__name__)

NOT_THERE = "%s: holds no class token and no classifier, as the authors clean their files; good for fine-tuning alone"


def open_file(candidate: Candidate) -> Opened:
    """Build the classifier that a file of FP-DETR's authors holds, or what is left of it for fine-tuning.

    Args:
        candidate: A file with their names.

    Raises:
        CheckpointError: It holds something else, or not all of the layers.
    """
    theirs, _ = candidate.read()
    try:
        state = from_authors(theirs)
        layers = {name: value for name, value in state.items() if name.partition(".")[0] not in UNTAUGHT}
        config = recognise(layers)
        detector = config.build()
        handed = [section for section in detector.sections if section not in UNTAUGHT]
        transfer_sections(layers, detector, handed)
    except CheckpointError as error:
        raise CheckpointError(f"{candidate.path}: {error}") from error
    own = _own_parts(state)
    task = ImageClassification()
    if own:
        task = ImageClassification(categories=len(own["classifier.bias"]))
    else:
        log.warning(NOT_THERE, candidate.path)
    objective = task.objective(detector).eval()
    if own:
        wanted = {name: value for name, value in objective.state_dict().items() if name.startswith(("token.", "class"))}
        if wrong := misfits(wanted, own):
            raise CheckpointError(f"{candidate.path}: does not fit the classifier it looks like: {few(wrong)}")
        objective.load_state_dict(own, strict=False)
    info = {"task": to_document(task), "detector": to_document(config), "classes": [], "category_ids": []}
    return Opened(objective=objective, task=task, info=info)


def _own_parts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return token and classifier by the names of our objective; empty where the file was cleaned."""
    parts = {"queries.": "token.token.", "class_head.": "classifier."}
    found = {
        own + name.removeprefix(theirs): value
        for name, value in state.items()
        for theirs, own in parts.items()
        if name.startswith(theirs)
    }
    return found if "classifier.bias" in found else {}


def _is_theirs(candidate: Candidate) -> bool:
    return is_authors(candidate.names) and not is_detector(candidate.names)


IMPORTER = Importer(reads="pretraining files of FP-DETR's authors", recognises=_is_theirs, open=open_file)
