"""detectron2's names <-> torchvision's and DETR's: its ResNets, and the model that DETR's authors made of them for it.

Pure renaming, both ways and without loss; nothing of detectron2 is imported. What a file's tensors don't say, such as
heads and the order of colours, stands in the configuration beside it: `FILE.yaml` of an export, or the `config.yaml`
that detectron2 writes into its output folder.
"""

import json
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from ssldet.errors import CheckpointError
from ssldet.nn.backbones import IMAGENET_MEAN, IMAGENET_STD
from ssldet.weights.files import Origin

log = logging.getLogger(__name__)

STAGES = {"layer1": "res2", "layer2": "res3", "layer3": "res4", "layer4": "res5"}
"""torchvision's name of a stage -> detectron2's."""
PARTS = {
    "conv1": "conv1", "bn1": "conv1.norm", "conv2": "conv2", "bn2": "conv2.norm", "conv3": "conv3",
    "bn3": "conv3.norm", "downsample.0": "shortcut", "downsample.1": "shortcut.norm",
}  # fmt: skip
"""torchvision's name of a part of a block -> detectron2's; the first two also stand for the stem."""
TV_STAGES, TV_PARTS = ({ours: theirs for theirs, ours in table.items()} for table in (STAGES, PARTS))
STEM = "stem"
RESNET = re.compile(r"(?:^|\.)((?:stem|res[2-5]\.\d+)\.(?:conv[123]|shortcut)\..+)$")
"""How names of detectron2's ResNets end, whatever model they are in."""
WRAPPER = "detr."
"""What precedes all names of DETR in the model that its authors made for detectron2."""
BODY, WRAPPED_BODY = "backbone.0.body.", "backbone.0.backbone."
GARBLED = re.compile(re.escape(WRAPPED_BODY) + r"(stem\.)?detr\.")
"""What the authors' own script makes of the backbone of a model with masks."""
CRITERION = "criterion.empty_weight"
"""Weights of classes in that model's loss, which it keeps among its tensors."""
OUR_MODEL = "detector."
"""What precedes all names of the detector in our own model for detectron2, and in any objective of ours."""


def resnet_to_detectron2(name: str) -> str:
    """Return detectron2's name of a tensor of torchvision's ResNets.

    Args:
        name: Such as `layer1.0.bn1.weight`.

    Raises:
        CheckpointError: No such name.
    """
    place, _, last = name.rpartition(".")
    stage, _, rest = place.partition(".")
    block, _, part = rest.partition(".")
    if place in ("conv1", "bn1"):
        return f"{STEM}.{PARTS[place]}.{last}"
    if stage in STAGES and part in PARTS:
        return f"{STAGES[stage]}.{block}.{PARTS[part]}.{last}"
    raise CheckpointError(f"{name}: no tensor of torchvision's ResNets; detectron2's have no place for it")


def resnet_from_detectron2(name: str) -> str:
    """Return torchvision's name of a tensor of detectron2's ResNets.

    Args:
        name: Such as `res2.0.conv1.norm.weight`.

    Raises:
        CheckpointError: No such name.
    """
    place, _, last = name.rpartition(".")
    stage, _, rest = place.partition(".")
    block, _, part = rest.partition(".")
    if stage == STEM and rest in ("conv1", "conv1.norm"):
        return f"{TV_PARTS[rest]}.{last}"
    if stage in TV_STAGES and part in TV_PARTS:
        return f"{TV_STAGES[stage]}.{block}.{TV_PARTS[part]}.{last}"
    raise CheckpointError(f"{name}: no tensor of detectron2's ResNets; use the file's own code")


def has_resnet(names: Collection[str]) -> bool:
    """Say whether detectron2's ResNet is among some names.

    Args:
        names: Of all tensors of a file.
    """
    return any(name.endswith("stem.conv1.norm.weight") for name in names)


def plain_resnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the ResNet in a model of detectron2's torchvision's names, nothing before them; other names stay.

    The stages of one network may lie apart there, as the last one does in a Faster R-CNN of the kind C4.

    Args:
        state: A ResNet, or any model with one.

    Raises:
        CheckpointError: The model has two.
    """
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        found = RESNET.search(name)
        plain = resnet_from_detectron2(found[1]) if found else name
        if plain in renamed:
            raise CheckpointError(f"two tensors are called {plain} without what precedes; save one network by itself")
        renamed[plain] = value
    return renamed


def is_wrapper(names: Collection[str]) -> bool:
    """Say whether names are those of the model that DETR's authors made for detectron2.

    Args:
        names: Of all tensors of a file.
    """
    return any(name.removeprefix(WRAPPER).startswith((WRAPPED_BODY, WRAPPER + WRAPPED_BODY)) for name in names)


def from_wrapper(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state of that model to DETR's naming, and leave out what belongs to its loss.

    What the authors' converter makes of models with masks is understood too.

    Args:
        state: Tensors in its naming.

    Raises:
        CheckpointError: A name that neither project has.
    """
    renamed = {}
    for name, value in state.items():
        if name == CRITERION:
            continue
        # `(stem.)detr.` after the body is where the converter puts what should stand before it.
        mended = GARBLED.sub(lambda found: f"{WRAPPER}{WRAPPED_BODY}{found[1] or ''}", name.removeprefix(WRAPPER))
        before, body, inner = mended.partition(WRAPPED_BODY)
        renamed[f"{before}{BODY}{resnet_from_detectron2(inner)}" if body else mended] = value
    return renamed


def to_wrapper(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state in DETR's naming to that of the model that its authors made for detectron2.

    Args:
        state: Tensors in DETR's naming; UP-DETR's pretraining heads keep theirs.

    Raises:
        CheckpointError: The backbone is no ResNet.
    """
    renamed = {}
    for name, value in state.items():
        before, body, inner = name.partition(BODY)
        renamed[WRAPPER + (f"{before}{WRAPPED_BODY}{resnet_to_detectron2(inner)}" if body else name)] = value
    return renamed


def rows_in_use(classes: Sequence[str], num_classes: int) -> tuple[int, ...] | None:
    """Return which rows of a class head detectron2 wants: its classes are contiguous, ours may have holes.

    Args:
        classes: Names in the order of the labels, empty where a number stands for no class, as COCO's ids have it.
        num_classes: Classes of the head, "no object" not counted.

    Returns:
        Rows in ascending order, the one of "no object" last; none where all are in use, or nothing is known of them.
    """
    if len(classes) != num_classes or all(classes):
        return None
    return (*(row for row, name in enumerate(classes) if name), num_classes)


def configuration_beside(path: Path) -> dict[str, Any]:
    """Return what the configuration beside a file says; nothing where there is none.

    Args:
        path: A weights file; beside it `FILE.yaml`, or what detectron2 writes into its output folder.

    Raises:
        CheckpointError: It is there and can't be read.
    """
    for beside in (path.with_suffix(".yaml"), path.with_name("config.yaml")):
        if not beside.is_file():
            continue
        try:
            found = yaml.safe_load(beside.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
            raise CheckpointError(f"{beside}: can't be read ({error}); mend it, or move it away from {path}") from error
        if isinstance(found, dict):
            return found
    return {}


def has_our_names(names: Collection[str]) -> bool:
    """Say whether names are those of our own model for detectron2.

    Args:
        names: Of all tensors of a file.
    """
    return any(name.startswith(OUR_MODEL) for name in names)


def stated_about(origin: Origin) -> dict[str, Any]:
    """Return task, detector, classes and category ids of a file with the tensors of our own model for detectron2.

    Args:
        origin: The file, and what else it said; detectron2 drops that in training, and keeps its configuration.

    Raises:
        CheckpointError: Neither it nor the configuration beside it tells.
    """
    found = origin.options.get("ssldet")
    if not isinstance(found, dict) or "detector" not in found:
        document = configuration_beside(origin.path)
        given = look_up(document, "MODEL.SSLDET") or look_up(document, "model") or {}
        found = {str(name).lower(): value for name, value in given.items()}
    try:
        task, detector = (_document(found.get(name)) for name in ("task", "detector"))
    except ValueError as error:
        raise CheckpointError(f"{origin.path}: the configuration beside it is damaged ({error})") from error
    if not task or not detector:
        raise CheckpointError(
            f"{origin.path}: has the tensors of ssldet's model for detectron2, but nothing says of which; put the "
            f"config.yaml of its training, or the file that was exported with it, beside it as "
            f"{origin.path.with_suffix('.yaml').name}"
        )
    classes, category_ids = (list(found.get(name) or ()) for name in ("classes", "category_ids"))
    return {"task": task, "detector": detector, "classes": classes, "category_ids": category_ids}


def _document(given: Any) -> dict[str, Any]:
    """Return a document that stands in a configuration as it is, or as JSON."""
    found = json.loads(given) if isinstance(given, str) and given else given
    return dict(found) if isinstance(found, dict) else {}


def look_up(document: Mapping[str, Any], path: str) -> Any:
    """Return an entry of a configuration; none where it is missing.

    Args:
        document: Nested.
        path: Such as `MODEL.DETR.NHEADS`.
    """
    found: Any = document
    for word in path.split("."):
        found = found.get(word) if isinstance(found, Mapping) else None
    return found


def require_our_pixels(path: Path) -> None:
    """Refuse a ResNet that wants other pixels, or strides elsewhere, than torchvision's; warn where nothing says so.

    Args:
        path: The weights file.

    Raises:
        CheckpointError: The configuration beside it says so.
    """
    model = configuration_beside(path)
    if look_up(model, "MODEL.PIXEL_MEAN") is None:
        log.warning(
            "%s: no configuration beside it says which pixels this detectron2 model wants; taken for RGB, ImageNet's "
            "mean and deviation, and strides in the 3x3 convolutions",
            path,
        )
        return
    exact = {"INPUT.FORMAT": "RGB", "MODEL.RESNETS.STRIDE_IN_1X1": False}
    about = {"MODEL.PIXEL_MEAN": IMAGENET_MEAN, "MODEL.PIXEL_STD": IMAGENET_STD}
    wrong = [name for name, ours in exact.items() if look_up(model, name) != ours]
    wrong += [name for name, ours in about.items() if not _about(look_up(model, name), [255 * part for part in ours])]
    if wrong:
        told = "; ".join(f"{name} is {look_up(model, name)}" for name in wrong)
        raise CheckpointError(
            f"{path}: this detectron2 model sees other pixels, or strides elsewhere, than torchvision's: {told}; train "
            "it from torchvision's weights, whose configuration has its values"
        )


def _about(theirs: Any, ours: Sequence[float]) -> bool:
    """Say whether numbers are the same but for rounding."""
    same = isinstance(theirs, list) and len(theirs) == len(ours)
    return same and all(abs(one - other) < 0.01 for one, other in zip(theirs, ours, strict=True))
