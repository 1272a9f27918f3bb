"""objective -> safetensors: our own weights file, which any run, verb or script of ours starts from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from downstream.export.proof import ExportReport, same_detector, write_proven
from ssldet.engine.checkpoint import SCHEMA, restore_objective, save_weights
from ssldet.task import Objective

UNSTATED: dict[str, Any] = {"schema": SCHEMA, "classes": [], "category_ids": [], "step": 0}
"""What the header says of a model that came from somebody else's file."""


def export(objective: Objective, info: Mapping[str, Any], out: Path) -> ExportReport:
    """Write an objective with everything needed to build it again, and prove it by doing so.

    Args:
        objective: The detector inside its task.
        info: What the header states; `task` and `detector` at least.
        out: File to create.

    Raises:
        ConfigError: The file exists.
        CheckpointError: What came back differs.
        SetupError: The file can't be written.
    """

    def write(path: Path) -> None:
        save_weights(path, objective, UNSTATED | dict(info))

    return write_proven(out, write, lambda path: same_detector(objective.detector, restore_objective(path)[0].detector))
