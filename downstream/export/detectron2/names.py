"""sizes of a model -> names and shapes of its tensors in detectron2, as recorded from it.

`names.json` holds them, nested by the dots of the names; a size that depends on the model is given by its name.
"""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor, nn

from ssldet.detectors.detr import DETRConfig
from ssldet.weights.detectron2 import WRAPPED_BODY, WRAPPER

BY_ENDING = "?matching_heuristics=True"
"""Suffix of a path of weights that makes detectron2 match tensors by the endings of their names."""
Shapes = dict[str, tuple[int, ...]]
"""Name of a tensor -> its shape."""


def resnet_shapes(name: str) -> Shapes:
    """Return names and shapes of detectron2's ResNet.

    Args:
        name: torchvision's name, such as `resnet50`.
    """
    return {key: tuple(shape) for key, shape in _flat(_recorded()["resnets"][name])}


def wrapper_shapes(config: DETRConfig) -> Shapes:
    """Return names and shapes of the model that DETR's authors made for detectron2.

    Args:
        config: The same detector; its backbone is a ResNet.
    """
    body = resnet_shapes(config.backbone.name.rpartition("/")[2])
    last = max(key for key in body if key.startswith("res5.0.conv") and key.endswith("norm.weight"))
    width = config.width
    sizes = {
        "width": width,
        "3 width": 3 * width,
        "feedforward": config.feedforward,
        "queries": config.num_queries,
        "classes + 1": config.num_classes + 1,
        "channels": body[last][0],
        "width + heads": width + config.heads,
        **{f"width / {part}": width // part for part in (2, 4, 8, 16)},
    }
    layers = {"encoder": config.encoder_layers, "decoder": config.decoder_layers}
    kind = ("masks" if config.masks else "boxes") + (", pre-norm" if config.pre_norm else "")
    before = WRAPPER * (2 if config.masks else 1)
    shapes = {f"{before}{WRAPPED_BODY}{key}": shape for key, shape in body.items()}
    for key, shape in _flat(_recorded()["wrapper"][kind]):
        stack = key.partition("transformer.")[2].partition(".")[0]
        # All layers of a stack have the same tensors, so only the first layer is recorded.
        for number in range(layers[stack] if ".layers.0." in key and stack in layers else 1):
            name = key.replace(f"{stack}.layers.0.", f"{stack}.layers.{number}.") if stack in layers else key
            shapes[name] = tuple(sizes[size] if isinstance(size, str) else size for size in shape)
    return shapes


def differences(state: Mapping[str, Tensor], shapes: Shapes) -> list[str]:
    """Return the differences between a state and what detectron2 expects, which it would not report itself.

    Args:
        state: Tensors by name.
        shapes: Expected names and shapes.
    """
    lines = [f"{name} is missing" for name in shapes if name not in state]
    lines += [f"{name} has no place" for name in state if name not in shapes]
    return lines + [
        f"{name} is {tuple(state[name].shape)} instead of {shape}"
        for name, shape in shapes.items()
        if name in state and tuple(state[name].shape) != shape
    ]


def bare_module(state: Mapping[str, Tensor]) -> nn.Module:
    """Return a module that only has tensors of these names and shapes, for code that loads files into modules.

    Args:
        state: Tensors by name.
    """
    root = nn.Module()
    for name, value in state.items():
        *path, last = name.split(".")
        place = root
        for word in path:
            if word not in place._modules:
                place.add_module(word, nn.Module())
            place = place.get_submodule(word)
        place.register_buffer(last, torch.zeros_like(value))
    return root


@cache
def _recorded() -> dict[str, Any]:
    recorded: dict[str, Any] = json.loads((files("downstream.export.detectron2") / "names.json").read_text("utf-8"))
    return recorded


def _flat(tree: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, list[Any]]]:
    for name, inner in tree.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{before}{name}.")
        else:
            yield before + name, inner
