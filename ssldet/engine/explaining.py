"""evaluator -> findings.json and pictures of examples in the run folder, from which the report explains the figures."""

import logging

from ssldet.engine.folder import RunFolder
from ssldet.errors import UnreadableError
from ssldet.report.examples import with_pictures
from ssldet.source import Source
from ssldet.task import Evaluator, Explains
from ssldet.types import Pixels

log = logging.getLogger(__name__)


def explain(source: Source, folder: RunFolder, evaluator: Evaluator) -> None:
    """Write what stands behind the figures, if the evaluator can say it; a failure is a warning and ends nothing.

    Args:
        source: What was evaluated.
        folder: The run folder.
        evaluator: Has all answers.
    """
    if not isinstance(evaluator, Explains):
        return
    places = {key: index for index, key in enumerate(getattr(source, "keys", ()))}

    def image_of(key: str) -> Pixels | None:
        try:
            return source[places[key]].image
        except (KeyError, UnreadableError):
            return None

    try:
        folder.write_json("findings.json", with_pictures(evaluator.findings(), image_of, folder.path))
    except Exception as error:  # trained weights must not be lost to what only a report needs
        log.warning("the report goes without findings: %s: %s", type(error).__name__, error)
