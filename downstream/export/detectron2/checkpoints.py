"""objective -> a file for detectron2 and its configuration: our model, DETR's model for detectron2, or a backbone.

detectron2 loads the tensors that fit and ignores the others without an error. So each file is loaded back before it
gets its name: by detectron2's own checkpointer if it is installed, or else by our reader, after names and shapes were
compared with those recorded from detectron2. `.pth` and `.safetensors` hold the same tensors and no pickled object of
ours.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from downstream.export.backbones import NO_BACKBONE, backbone_of, same_backbone, weights_of
from downstream.export.card import model_card, statement
from downstream.export.detectron2.heads import without_holes
from downstream.export.detectron2.loading import FEATURES, installed, load_through, require, resnet_of, state_of
from downstream.export.detectron2.names import BY_ENDING, resnet_shapes, wrapper_shapes
from downstream.export.detectron2.sidecar import (
    backbone_configuration,
    no_object_weight,
    own_configuration,
    wrapper_configuration,
)
from downstream.export.detr import unfit as unfit_for_detr
from downstream.export.proof import Comparison, ExportReport, refusing, same_detector, torch_writer, write_proven
from ssldet.detectors.base import Detector, DetectorConfig
from ssldet.detectors.base import backbone_of as configured_backbone
from ssldet.detectors.detr import DETR, DETRConfig
from ssldet.detectors.on_backbone import network_of
from ssldet.disk import Disk, write_whole
from ssldet.engine.checkpoint import load_exactly
from ssldet.errors import CheckpointError, ConfigError
from ssldet.nn.backbones import build_backbone
from ssldet.recipe import from_document
from ssldet.task import Objective, Task
from ssldet.weights.detectron2 import (
    CRITERION,
    from_wrapper,
    resnet_from_detectron2,
    resnet_to_detectron2,
    to_wrapper,
)
from ssldet.weights.detr import fill, from_detr, to_detr
from ssldet.weights.files import read_state
from ssldet.weights.resnets import name_resnet
from ssldet.weights.statement import STATEMENT

SUFFIXES = (".pth", ".safetensors")
CONFIGURATION = ".yaml"
COUNTER = "num_batches_tracked"
"""Ending of the names of batch norms' counters, which no computation uses."""
ALLOWED_DIFFERENCE = 1e-4
"""Largest difference of a feature between two programs that add up the same numbers in another order."""
SIDE = 96
"""Height and width of the random images by which backbones are compared."""
USE = """\
```sh
ssldet detectron2 train voc train.init_checkpoint={name}
ssldet evaluate {name} --data coco:ANNOTATIONS.json:IMAGES
```"""
USE_DETR = """\
In the folder `d2` of facebookresearch/detr:

```sh
python train_net.py --config-file {configuration} --eval-only MODEL.WEIGHTS {name}
```"""
USE_BACKBONE = """\
For any model of detectron2 with a ResNet; merge the configuration into its own:

```python
cfg.merge_from_file("{configuration}")
cfg.MODEL.WEIGHTS = "{name}{query}"
```"""


@refusing(lambda detector, config: [])
def export(objective: Objective, info: Mapping[str, Any], out: Path) -> ExportReport:
    """Write a model for `SSLDet`, our own meta-architecture in detectron2, and prove it by loading it back.

    Args:
        objective: The detector inside its task; all of its tensors are written.
        info: Metadata of the model: at least task and detector.
        out: File to create; the configuration is written beside it.

    Raises:
        ConfigError: The file exists, or is neither .pth nor .safetensors.
        CheckpointError: The detector has no backbone of ours, or the loaded copy differs.
        SetupError: The file can't be written.
    """
    _require_suffix(out)
    objective, info = without_holes(objective, info)
    backbone = backbone_of(objective, out)
    state = _copies(objective.state_dict())
    stated = statement(info, whole=True) | {"detector": info["detector"]}

    def read_back(path: Path) -> Comparison:
        task = from_document(Task, info["task"])  # type: ignore[type-abstract]
        copy = task.objective(_config(info).build()).eval()
        shapes = {name: tuple(value.shape) for name, value in copy.state_dict().items()}
        load_exactly(copy, state_of(path, shapes), str(path))
        whole = same_detector(objective.detector, copy.detector)
        return replace(whole, ours=objective.state_dict(), theirs=copy.state_dict())

    card = model_card(objective, info, _use(USE, out))
    beside = {CONFIGURATION: own_configuration(backbone, info)}
    return write_proven(out, _writer(state, args={STATEMENT: stated}), read_back, card, beside)


@refusing(lambda detector, _: unfit(detector))
def export_detr(objective: Objective, info: Mapping[str, Any], out: Path) -> ExportReport:
    """Write a detector for the model that DETR's authors made for detectron2, and prove it by loading it back.

    Args:
        objective: The detector inside its task; heads of the task, such as UP-DETR's, are left out.
        info: Metadata of the model: at least the detector's configuration.
        out: File to create; the configuration is written beside it.

    Raises:
        ConfigError: The file exists, or is neither .pth nor .safetensors.
        CheckpointError: That model can't represent this detector (the message names every field), or the loaded copy
            differs.
        SetupError: The file can't be written.
    """
    _require_suffix(out)
    objective, info = without_holes(objective, info)
    detector, config = objective.detector, _config(info)
    if reasons := unfit(detector):
        raise CheckpointError(f"{out}: DETR's model for detectron2 can't hold this detector: {'; '.join(reasons)}")
    assert isinstance(detector, DETR)
    assert isinstance(config, DETRConfig)
    kept = _copies({f"detector.{name}": value for name, value in detector.state_dict().items()})
    weights = torch.ones(detector.num_classes + 1)
    weights[-1] = no_object_weight(info)
    state = to_wrapper(to_detr(kept)) | {CRITERION: weights}
    stated = statement(info, whole=len(kept) == len(objective.state_dict()))

    def read_back(path: Path) -> Comparison:
        copy = config.build()
        loaded = from_detr(from_wrapper(state_of(path, wrapper_shapes(config))))
        fill(copy, {name.removeprefix("detector."): value for name, value in loaded.items()}, path)
        return same_detector(detector, copy)

    card = model_card(objective, info, _use(USE_DETR, out))
    beside = {CONFIGURATION: wrapper_configuration(detector, config, info)}
    args = {"nheads": config.heads, STATEMENT: stated}
    return write_proven(out, _writer(state, args=args), read_back, card, beside)


@refusing(lambda detector, _: _unfit_backbone(detector))
def export_backbone(objective: Objective, info: Mapping[str, Any], out: Path) -> ExportReport:
    """Write a detector's ResNet for any model of detectron2 that has one, and prove it by loading it back.

    detectron2 matches each tensor by the ending of its name; a `.pth` file requests that itself, for a `.safetensors`
    file `?matching_heuristics=True` must be appended to its path.

    Args:
        objective: The detector inside its task.
        info: Metadata of the model: at least the detector's configuration.
        out: File to create; the configuration is written beside it.

    Raises:
        ConfigError: The file exists, or is neither .pth nor .safetensors.
        CheckpointError: The backbone is no ResNet that detectron2 has, or the loaded copy differs.
        SetupError: The file can't be written.
    """
    _require_suffix(out)
    backbone, config = backbone_of(objective, out), configured_backbone(_config(info))
    ours = {name: value for name, value in weights_of(backbone).items() if not name.endswith(COUNTER)}
    reasons = _unfit_backbone(objective.detector)
    if reasons or config is None:
        raise CheckpointError(f"{out}: detectron2 can't hold this backbone: {'; '.join(reasons)}")
    state = {resnet_to_detectron2(name): value for name, value in ours.items()}

    def read_back(path: Path) -> Comparison:
        loaded, _ = read_state(path)
        require(loaded, resnet_shapes(config.name.rpartition("/")[2]), path)
        if installed():
            network = resnet_of(path.with_suffix(CONFIGURATION))
            load_through(network, path, by_ending=path.suffix == ".safetensors")
            loaded = {name: value for name, value in network.state_dict().items() if not name.endswith(COUNTER)}
            compared = same_backbone(backbone, network, lambda images: network(images)[FEATURES], (SIDE, SIDE))
        else:
            copy = build_backbone(config)
            plain = {resnet_from_detectron2(name): value for name, value in loaded.items()}
            copy.body.load_state_dict(plain, strict=False)
            compared = same_backbone(backbone, copy, copy, (SIDE, SIDE))
        theirs = {resnet_from_detectron2(name): value for name, value in loaded.items()}
        return replace(compared, ours=ours, theirs=theirs, allowed=ALLOWED_DIFFERENCE)

    query = "" if out.suffix == ".pth" else BY_ENDING
    card = model_card(objective, info, _use(USE_BACKBONE, out, query=query))
    beside = {CONFIGURATION: backbone_configuration(backbone, config, info)}
    write = _writer(state, matching_heuristics=True, __author__="ssldet")
    return write_proven(out, write, read_back, card, beside)


def unfit(detector: Detector) -> list[str]:
    """Return the reasons why DETR's model for detectron2 can't represent a detector; an empty list if it can.

    Args:
        detector: The detector to write.
    """
    reasons = unfit_for_detr(detector)
    if isinstance(detector, DETR):
        reasons += [reason for reason in _unfit_backbone(detector) if "output_stride" in reason]
        if detector.mask_attention is not None and detector.mask_attention.softmax != "joint":
            reasons.append(
                "detector.mask_attention: its attention maps sum to one jointly and would draw other masks; train with "
                "mask_attention=joint"
            )
    return reasons


def _unfit_backbone(detector: Detector) -> list[str]:
    backbone = network_of(detector)
    if backbone is None:
        return [NO_BACKBONE]
    if name_resnet(backbone.body.state_dict()) is None:
        return ["detector.backbone.name: detectron2 shares torchvision's resnets only; write it with --to timm"]
    if backbone.stride < 32:
        return [
            "detector.backbone.output_stride: detectron2 dilates the first block of the last stage too and sees other "
            "features; write it with --to torchvision"
        ]
    return []


def _config(info: Mapping[str, Any]) -> DetectorConfig:
    config: DetectorConfig = from_document(DetectorConfig, info["detector"])  # type: ignore[type-abstract]
    return config


def _copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in state.items()}


def _require_suffix(out: Path) -> None:
    if out.suffix not in SUFFIXES:
        raise ConfigError(f"{out}: detectron2 reads {' and '.join(SUFFIXES)}; call it {out.stem}.pth")


def _writer(state: Mapping[str, Tensor], **beside: Any) -> Callable[[Path], None]:
    """Return a function that writes tensors and plain values; a safetensors file takes only `args`, as text."""

    def write(path: Path) -> None:
        if path.suffix == ".safetensors":
            stated = {"args": json.dumps(beside["args"])} if "args" in beside else {}
            write_whole(path, save(dict(state), metadata={"format": "pt"} | stated), Disk())
        else:
            torch_writer({"model": dict(state)} | beside)(path)

    return write


def _use(text: str, out: Path, **more: str) -> str:
    return text.format(name=out.name, configuration=out.with_suffix(CONFIGURATION).name, **more)
