"""model -> the configuration beside its weights, for `--config-file`: what detectron2 can't read from weights.

detectron2's own defaults differ in every line: another order of colours, other means and standard deviations, strides
in the 1x1 convolutions. Without this configuration a model loads, but its detections are useless.
"""

import json
from collections.abc import Mapping
from typing import Any

import yaml

from ssldet.detectors.detr import DETR, DETRConfig
from ssldet.nn.backbones import Backbone, BackboneConfig
from ssldet.weights.resnets import DEPTHS

META_ARCHITECTURE = "SSLDet"
"""Name of our own model in detectron2."""
STAGE_WIDTH = {"basic": 64, "bottleneck": 256}
"""Kind of block -> channels of the first stage, which detectron2's configuration must state."""


def own_configuration(backbone: Backbone, info: Mapping[str, Any]) -> bytes:
    """Return the configuration of our own model for detectron2.

    Args:
        backbone: The backbone, which has the mean and standard deviation of its pixels.
        info: Metadata of the model: at least task and detector.
    """
    stated = {
        "TASK": json.dumps(info["task"]),
        "DETECTOR": json.dumps(info["detector"]),
        "CLASSES": list(info.get("classes", ())),
        "CATEGORY_IDS": list(info.get("category_ids", ())),
    }
    model = {"META_ARCHITECTURE": META_ARCHITECTURE, "SSLDET": stated, "RESNETS": {"STRIDE_IN_1X1": False}}
    return _written(backbone, info, model)


def wrapper_configuration(detector: DETR, config: DETRConfig, info: Mapping[str, Any]) -> bytes:
    """Return the configuration of the model that DETR's authors made for detectron2.

    Args:
        detector: The detector.
        config: Its configuration.
        info: Metadata of the model; its classes become a comment, since that model has no key for them.
    """
    model = {
        "META_ARCHITECTURE": "Detr",
        "MASK_ON": config.masks,
        "RESNETS": _resnet(config.backbone) | {"OUT_FEATURES": ["res2", "res3", "res4", "res5"]},
        "DETR": {
            "NUM_CLASSES": config.num_classes,
            "NUM_OBJECT_QUERIES": config.num_queries,
            "HIDDEN_DIM": config.width,
            "NHEADS": config.heads,
            "DIM_FEEDFORWARD": config.feedforward,
            "ENC_LAYERS": config.encoder_layers,
            "DEC_LAYERS": config.decoder_layers,
            "PRE_NORM": config.pre_norm,
            "NO_OBJECT_WEIGHT": no_object_weight(info),
        },
    }
    return _written(detector.backbone, info, model)


def backbone_configuration(backbone: Backbone, config: BackboneConfig, info: Mapping[str, Any]) -> bytes:
    """Return the configuration that any model of detectron2 with a ResNet needs to compute this backbone's features.

    Args:
        backbone: The backbone.
        config: Its configuration.
        info: Metadata of the model.
    """
    return _written(backbone, info, {"RESNETS": _resnet(config)})


def no_object_weight(info: Mapping[str, Any]) -> float:
    """Return the weight of "no object" in the loss; DETR's if the task has none.

    Args:
        info: Metadata of the model.
    """
    return float(info.get("task", {}).get("no_object_weight", 0.1))


def _resnet(config: BackboneConfig) -> dict[str, Any]:
    name = config.name.rpartition("/")[2]
    kind = next(kind for (kind, _), resnet in DEPTHS.items() if resnet == name)
    return {
        "DEPTH": int(name.removeprefix("resnet")),
        "STRIDE_IN_1X1": False,
        "RES2_OUT_CHANNELS": STAGE_WIDTH[kind],
        "NORM": "FrozenBN" if config.frozen_norm else "BN",
    }


def _written(backbone: Backbone, info: Mapping[str, Any], model: Mapping[str, Any]) -> bytes:
    pixels = {f"PIXEL_{name}": [255 * value for value in getattr(backbone, name.lower())] for name in ("MEAN", "STD")}
    task = info.get("task", {})
    sizes = {"MIN_SIZE_TEST": task.get("eval_scale"), "MAX_SIZE_TEST": task.get("max_size")}
    inputs = {"FORMAT": "RGB"} | {name: size for name, size in sizes.items() if size}
    document = {"VERSION": 2, "INPUT": inputs, "MODEL": dict(model) | pixels}
    classes = json.dumps(list(info.get("classes", ())), ensure_ascii=False)
    head = f"# Classes in the order of their numbers: {classes}\n"
    text: str = yaml.safe_dump(document, sort_keys=True, allow_unicode=True)
    return (head + text).encode()
