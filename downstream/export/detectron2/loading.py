"""file -> tensors as detectron2's own checkpointer loads them or, if it is not installed, as our reader does."""

import importlib
import importlib.util
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from downstream.export.detectron2.names import BY_ENDING, Shapes, bare_module, differences
from ssldet.errors import CheckpointError
from ssldet.weights.files import read_state

log = logging.getLogger(__name__)

FEATURES = "res5"


def installed() -> bool:
    """Return whether detectron2 is installed."""
    return importlib.util.find_spec("detectron2") is not None


def state_of(path: Path, shapes: Shapes) -> dict[str, Tensor]:
    """Return the tensors of a file as detectron2 loads them into a model with these names and shapes.

    Args:
        path: The file.
        shapes: Names and shapes of all tensors of the model.

    Raises:
        CheckpointError: A tensor is missing or unexpected, or has another shape.
    """
    state, _ = read_state(path)
    require(state, shapes, path)
    if not installed():
        log.warning("detectron2 is not installed; %s is proven against its recorded names and shapes", path.suffix)
        return state
    module = bare_module(state)
    load_through(module, path)
    return dict(module.state_dict())


def require(state: Mapping[str, Tensor], shapes: Shapes, path: Path) -> None:
    """Refuse a state of which a model of detectron2 would load only a part.

    Args:
        state: Tensors by name.
        shapes: Names and shapes of all tensors of the model.
        path: File of the state, for the message.

    Raises:
        CheckpointError: Names or shapes differ.
    """
    if wrong := differences(state, shapes):
        raise CheckpointError(f"{path}: not what detectron2 expects: {wrong[0]} and {len(wrong) - 1} more")


def load_through(module: nn.Module, path: Path, *, by_ending: bool = False) -> None:
    """Fill a module by detectron2's own checkpointer; tensors that it does not load become NaN, so that this shows.

    Args:
        module: The module, which is filled in place.
        path: The file.
        by_ending: Have it match names by their endings if the file can't request that itself.

    Raises:
        CheckpointError: detectron2 can't read the file.
    """
    for value in module.state_dict().values():
        value.fill_(float("nan") if value.is_floating_point() else -1)
    checkpointer: Any = importlib.import_module("detectron2.checkpoint").DetectionCheckpointer(module)
    try:
        checkpointer.load(f"{path}{BY_ENDING if by_ending else ''}")
    except Exception as error:  # its readers raise exceptions of any class
        raise CheckpointError(
            f"{path}: detectron2 can't read it ({error}); where torch {torch.__version__} is too old for "
            ".safetensors, write .pth"
        ) from error


def resnet_of(configuration: Path) -> nn.Module:
    """Return detectron2's ResNet as a configuration describes it, with fresh weights.

    Args:
        configuration: A YAML file.
    """
    settings: Any = importlib.import_module("detectron2.config").get_cfg()
    settings.merge_from_file(str(configuration))
    settings.MODEL.DEVICE = "cpu"
    settings.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    settings.MODEL.RESNETS.OUT_FEATURES = [FEATURES]
    network: nn.Module = importlib.import_module("detectron2.modeling").build_backbone(settings)
    return network
