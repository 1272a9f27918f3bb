"""objective -> safetensors: our own weights file, from which any run, command or script can start."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from downstream.export.card import model_card
from downstream.export.proof import Comparison, ExportReport, same_detector, write_proven
from ssldet.engine.checkpoint import restore_objective, save_weights
from ssldet.engine.description import SCHEMA
from ssldet.task import Objective

UNSTATED: dict[str, Any] = {"schema": SCHEMA, "classes": [], "category_ids": [], "step": 0}
"""Defaults of the header for a model that was imported from another format."""


USE = """\
```python
import ssldet
detector = ssldet.load("{name}")  # a plain nn.Module; or: ssldet evaluate {name} --data coco:ANNOTATIONS.json:IMAGES
```"""


def export(objective: Objective, info: Mapping[str, Any], out: Path) -> ExportReport:
    """Write an objective with everything needed to build it again, and prove it by loading it back.

    Args:
        objective: The detector inside its task.
        info: Contents of the header; at least `task` and `detector`.
        out: File to create.

    Raises:
        ConfigError: The file exists.
        CheckpointError: The loaded copy differs.
        SetupError: The file can't be written.
    """

    def write(path: Path) -> None:
        save_weights(path, objective, UNSTATED | dict(info))

    def read_back(path: Path) -> Comparison:
        return same_detector(objective.detector, restore_objective(path)[0].detector)

    return write_proven(out, write, read_back, model_card(objective, info, USE.format(name=out.name)))
