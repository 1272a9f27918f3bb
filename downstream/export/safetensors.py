"""objective -> safetensors: our own weights file, which any run, verb or script of ours starts from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from downstream.export.card import model_card
from downstream.export.proof import Comparison, ExportReport, same_detector, write_proven
from ssldet.engine.checkpoint import SCHEMA, restore_objective, save_weights
from ssldet.task import Objective

UNSTATED: dict[str, Any] = {"schema": SCHEMA, "classes": [], "category_ids": [], "step": 0}
"""What the header says of a model that came from somebody else's file."""


USE = """\
```python
import ssldet
detector = ssldet.load("{name}")  # a plain nn.Module; or: ssldet evaluate {name} --data coco:ANNOTATIONS.json:IMAGES
```"""


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

    def read_back(path: Path) -> Comparison:
        return same_detector(objective.detector, restore_objective(path)[0].detector)

    return write_proven(out, write, read_back, model_card(objective, info, USE.format(name=out.name)))
