"""checkpoint, Run, source -> go on or not: what may differ between the two halves of a run, and what may not."""

import logging
from collections.abc import Mapping
from typing import Any

from ssldet.engine.run import Run
from ssldet.errors import CheckpointError, ConfigError, DataError
from ssldet.recipe import diff, from_document
from ssldet.source import Source

log = logging.getLogger(__name__)

MAY_CHANGE = (
    "budget.",
    "checkpoint.",
    "data.max_bad_fraction",
    "data.workers",
    "device",
    "evaluate_every",
    "log_every",
    "preview_every",
)
"""Fields that change how a run goes and not what it computes; the budget also moves the schedule, as it must."""


def require_same_run(state: Mapping[str, Any], run: Run, source: Source) -> None:
    """Let a run go on only if the rest of it belongs to its beginning.

    Args:
        state: A checkpoint.
        run: The configuration to go on with; harmless changes are logged.
        source: The training images as they are now.

    Raises:
        ConfigError: A change that would make another experiment of it; lists all of them.
        DataError: The images are others than before.
        CheckpointError: The checkpoint was written by a version with other fields.
    """
    try:
        before = from_document(Run, state["run"])
    except ConfigError as error:
        raise CheckpointError(f"the checkpoint's configuration is of another version of ssldet: {error}") from error
    refused = []
    for path, old, new in diff(before, run):
        if path.startswith(MAY_CHANGE):
            log.warning("%s: %s instead of %s from here on", path, new, old)
        else:
            refused.append(f"{path}: was {old}, is {new}; a run can't change it on the way, start another one")
    if refused:
        raise ConfigError(refused)
    data = state["data"]
    if data["fingerprint"] != source.fingerprint:
        count = f"{data['images']} images then, {len(source)} now"
        if data["images"] == len(source):
            count = f"{len(source)} images as before, but others or in another order"
        raise DataError(
            f"{', '.join(run.data.train)}: the data set has changed since the checkpoint ({count}); put it back as it "
            "was, or start another run"
        )
