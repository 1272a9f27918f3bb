"""checkpoint, Run, source -> go on or not: what may differ between the two halves of a run, and what may not."""

import logging
from collections.abc import Mapping
from typing import Any

from ssldet.engine.run import Run
from ssldet.errors import CheckpointError, ConfigError, DataError
from ssldet.recipe import diff, from_document
from ssldet.source import Source
from ssldet.states import few, infinite

log = logging.getLogger(__name__)

MAY_CHANGE = (
    "budget.",
    "checkpoint.",
    "data.feature_cache",
    "data.max_bad_fraction",
    "data.val",
    "data.workers",
    "device",
    "devices",
    "evaluate_every",
    "health",
    "log_every",
    "loggers",
    "preview_every",
)
"""Fields that change how a run goes and not what it computes; the budget also moves the schedule, as it must.

`data.train` and `data.unlabelled` may name another place as well, if the images there are the same.
"""

PLACES = ("data.train", "data.unlabelled")
"""Fields that say where the training images lie."""

PARTS = ("objective", "optimizer", "average", "counters", "run", "data")
"""What a checkpoint holds beside its step."""


def fault_of(state: Mapping[str, Any], recorded: Run | None, run_id: str = "") -> str:
    """Say why a checkpoint that reads well can't be gone on from; empty where it can.

    Args:
        state: A checkpoint.
        recorded: The configuration in the run's folder; `None` where it can't be read.
        run_id: Which run the folder is of; empty where it does not say.
    """
    if missing := [part for part in PARTS if part not in state]:
        return f"it holds no {', '.join(missing)}"
    if wrong := infinite(state["objective"]) + infinite(state["average"] or {}):
        return few(wrong)
    if run_id and (owner := state.get("run_id")) and owner != run_id:
        return f"it is of another run, {str(owner)[:8]} and not {run_id[:8]}, and was copied here"
    if recorded is not None:
        try:
            before = from_document(Run, state["run"])
        except ConfigError:
            return ""  # it is of another version, which the caller says
        other = [path for path, *_ in diff(before, recorded) if path not in PLACES and not path.startswith(MAY_CHANGE)]
        if other:
            return f"it is of another run, with another {', '.join(other)}"
    return ""


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
    data, refused = state["data"], []
    for path, old, new in diff(before, run):
        moved = path in PLACES and data["fingerprint"] == source.fingerprint
        if moved or path.startswith(MAY_CHANGE):
            log.warning("%s: %s instead of %s from here on", path, new, old)
        else:
            refused.append(f"{path}: was {old}, is {new}; a run can't change it on the way, start another one")
    if refused:
        raise ConfigError(refused)
    if data["fingerprint"] != source.fingerprint:
        count = f"{data['images']} images then, {len(source)} now"
        if data["images"] == len(source):
            count = f"{len(source)} images as before, but others or in another order"
        raise DataError(
            f"{', '.join(run.data.train + run.data.unlabelled)}: the data set has changed since the checkpoint "
            f"({count}); put it back as it was, or start another run"
        )
