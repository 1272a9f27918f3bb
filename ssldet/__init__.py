"""ssldet: self-supervised pretraining of whole detection transformers. The table of contents, in order of the flow.

Nothing heavy is imported until a name is used.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssldet.checkup import doctor
    from ssldet.data.own_transform import register_augmentation
    from ssldet.detectors.deformable_detr import DeformableDETR, DeformableDETRConfig
    from ssldet.detectors.detr import DETR, DETRConfig
    from ssldet.engine.run import Budget, CheckpointConfig, DataConfig, OptimConfig, Run
    from ssldet.nn.backbones import register_backbone
    from ssldet.showcase import demo
    from ssldet.source import Measurable, Source, WrappedSource
    from ssldet.task import Evaluator, Objective, PretextTask, Task
    from ssldet.types import Batch, Detections, Losses, Matches, Predictions, Queries, Sample, Targets
    from ssldet.verbs import (
        Trained,
        check_data,
        compare_data,
        compose,
        convert_data,
        evaluate,
        export,
        finetune,
        load,
        pack_data,
        predict,
        pretrain,
        preview,
        report,
        transfer,
    )

__version__ = version("ssldet")

_CONTENTS = {
    "ssldet.types": "Sample Batch Targets Queries Predictions Matches Losses Detections",
    "ssldet.source": "Source Measurable WrappedSource",
    "ssldet.nn.backbones": "register_backbone",
    "ssldet.data.own_transform": "register_augmentation",
    "ssldet.detectors.detr": "DETR DETRConfig",
    "ssldet.detectors.deformable_detr": "DeformableDETR DeformableDETRConfig",
    "ssldet.task": "Task PretextTask Objective Evaluator",
    "ssldet.engine.run": "Run DataConfig OptimConfig Budget CheckpointConfig",
    "ssldet.verbs": "compose pretrain finetune evaluate predict export preview report load transfer "
    "check_data convert_data compare_data pack_data Trained",
    "ssldet.showcase": "demo",
    "ssldet.checkup": "doctor",
}
_HOME = {name: module for module, members in _CONTENTS.items() for name in members.split()}

__all__ = [
    "DETR",
    "Batch",
    "Budget",
    "CheckpointConfig",
    "DETRConfig",
    "DataConfig",
    "DeformableDETR",
    "DeformableDETRConfig",
    "Detections",
    "Evaluator",
    "Losses",
    "Matches",
    "Measurable",
    "Objective",
    "OptimConfig",
    "Predictions",
    "PretextTask",
    "Queries",
    "Run",
    "Sample",
    "Source",
    "Targets",
    "Task",
    "Trained",
    "WrappedSource",
    "check_data",
    "compare_data",
    "compose",
    "convert_data",
    "demo",
    "doctor",
    "evaluate",
    "export",
    "finetune",
    "load",
    "pack_data",
    "predict",
    "pretrain",
    "preview",
    "register_augmentation",
    "register_backbone",
    "report",
    "transfer",
]


def __getattr__(name: str) -> Any:
    """Import the module of a name on first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'ssldet' has no attribute {name!r}")
    module = import_module(_HOME[name])
    # All of them at once: the function `report` has the name of a package, which the import of the verbs puts here.
    globals().update({member: getattr(module, member) for member in _CONTENTS[_HOME[name]].split()})
    return globals()[name]
