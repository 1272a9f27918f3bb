"""detectron2's tensor names <-> torchvision's (ResNets) and DETR's (the model that its authors made for detectron2).

Pure renaming, both ways and without loss; detectron2 is not imported. Information that is not in a file's tensors, such
as heads and the order of colours, is in the configuration beside it: `FILE.yaml` of an export, or the `config.yaml`
that detectron2 writes into its output folder.
"""

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from ssldet.documents import OddDocumentError, parse_json, parse_yaml
from ssldet.errors import CheckpointError, reason_of
from ssldet.nn.backbones import IMAGENET_MEAN, IMAGENET_STD
from ssldet.regular import read_text
from ssldet.weights.files import Origin
from ssldet.weights.statement import odd_entries, statement_in

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
"""Pattern of the names of detectron2's ResNets, inside any model."""
WRAPPER = "detr."
"""Prefix of all names of DETR in the model that its authors made for detectron2."""
BODY, WRAPPED_BODY = "backbone.0.body.", "backbone.0.backbone."
GARBLED = re.compile(re.escape(WRAPPED_BODY) + r"(stem\.)?detr\.")
"""Names that the authors' converter gives to the backbone of a model with masks."""
CRITERION = "criterion.empty_weight"
"""Weights of classes in that model's loss, which are among its tensors."""
OUR_MODEL = "detector."
"""Prefix of all names of the detector in our own model for detectron2, and in our objectives."""


def resnet_to_detectron2(name: str) -> str:
    """Return detectron2's name of a tensor of torchvision's ResNets.

    Args:
        name: Such as `layer1.0.bn1.weight`.

    Raises:
        CheckpointError: There is no such name.
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
        CheckpointError: There is no such name.
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
    """Tell whether names include those of detectron2's ResNet.

    Args:
        names: Names of all tensors of a file.
    """
    return any(name.endswith("stem.conv1.norm.weight") for name in names)


def plain_resnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the ResNet in a model of detectron2 to torchvision's names without prefix; other names stay.

    The stages of one network may have different prefixes there, as in a Faster R-CNN of the kind C4.

    Args:
        state: A ResNet, or any model with one.

    Raises:
        CheckpointError: The model has two ResNets.
    """
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        match = RESNET.search(name)
        plain = resnet_from_detectron2(match[1]) if match else name
        if plain in renamed:
            raise CheckpointError(f"two tensors are called {plain} without what precedes; save one network by itself")
        renamed[plain] = value
    return renamed


def is_wrapper(names: Collection[str]) -> bool:
    """Tell whether names are those of the model that DETR's authors made for detectron2.

    Args:
        names: Names of all tensors of a file.
    """
    return any(name.removeprefix(WRAPPER).startswith((WRAPPED_BODY, WRAPPER + WRAPPED_BODY)) for name in names)


def from_wrapper(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state of that model to DETR's naming, and leave out what belongs to its loss.

    Files of the authors' converter for models with masks are renamed too.

    Args:
        state: Tensors in its naming.

    Raises:
        CheckpointError: A name occurs in neither project.
    """
    renamed = {}
    for name, value in state.items():
        if name == CRITERION:
            continue
        # `(stem.)detr.` after the body is where the converter puts the prefix that belongs before it.
        mended = GARBLED.sub(lambda match: f"{WRAPPER}{WRAPPED_BODY}{match[1] or ''}", name.removeprefix(WRAPPER))
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
    """Return the rows of a class head that detectron2 needs: its classes are contiguous, ours may have gaps.

    Args:
        classes: Names in the order of the labels, empty where a number stands for no class, as COCO's ids have it.
        num_classes: Classes of the head, "no object" not counted.

    Returns:
        Rows in ascending order, the one of "no object" last; `None` where all are in use, or class names are unknown.
    """
    if len(classes) != num_classes or all(classes):
        return None
    return (*(row for row, name in enumerate(classes) if name), num_classes)


def configuration_beside(path: Path) -> dict[str, Any]:
    """Return the configuration beside a file; empty where there is none.

    Args:
        path: A weights file; beside it `FILE.yaml`, or what detectron2 writes into its output folder.

    Raises:
        CheckpointError: The configuration exists and can't be read.
    """
    for beside in (path.with_suffix(".yaml"), path.with_name("config.yaml")):
        if not beside.exists():
            continue
        try:
            document = parse_yaml(read_text(beside))
        except (yaml.YAMLError, OddDocumentError, UnicodeDecodeError, OSError) as error:
            reason = " ".join(reason_of(error).split())
            raise CheckpointError(
                f"{beside}: can't be read ({reason}); mend it, or move it away from {path}"
            ) from error
        if isinstance(document, dict):
            return document
    return {}


def has_our_names(names: Collection[str]) -> bool:
    """Tell whether names are those of our own model for detectron2.

    Args:
        names: Names of all tensors of a file.
    """
    return any(name.startswith(OUR_MODEL) for name in names)


def stated_about(origin: Origin) -> dict[str, Any]:
    """Return task, detector, classes and category ids of a file with the tensors of our own model for detectron2.

    Args:
        origin: Other contents of the file; detectron2 drops them in training, and keeps its configuration.

    Raises:
        CheckpointError: Neither the file nor the configuration beside it states them.
    """
    stated = statement_in(origin.options, origin.path)
    if "detector" not in stated:
        document = configuration_beside(origin.path)
        given = look_up(document, "MODEL.SSLDET") or look_up(document, "model") or {}
        stated = {str(name).lower(): value for name, value in given.items()}
    try:
        task, detector = (_document(stated.get(name)) for name in ("task", "detector"))
    except ValueError as error:
        raise CheckpointError(f"{origin.path}: the configuration beside it is damaged ({error})") from error
    if not task or not detector:
        raise CheckpointError(
            f"{origin.path}: has the tensors of ssldet's model for detectron2, but nothing says of which; put the "
            f"config.yaml of its training, or the file that was exported with it, beside it as "
            f"{origin.path.with_suffix('.yaml').name}"
        )
    classes, category_ids = (stated.get(name) or [] for name in ("classes", "category_ids"))
    about = {"task": task, "detector": detector, "classes": classes, "category_ids": category_ids}
    if odd := odd_entries(about):
        raise CheckpointError(
            f"{origin.path}: the configuration beside it holds no usable {', '.join(odd)}; export the model again"
        )
    return about


def _document(given: Any) -> dict[str, Any]:
    """Return a document that a configuration holds as a dictionary or as JSON text."""
    document = parse_json(given) if isinstance(given, str) and given else given
    return dict(document) if isinstance(document, dict) else {}


def look_up(document: Mapping[str, Any], path: str) -> Any:
    """Return an entry of a configuration; `None` where it is missing.

    Args:
        document: Nested dictionaries.
        path: Such as `MODEL.DETR.NHEADS`.
    """
    entry: Any = document
    for word in path.split("."):
        entry = entry.get(word) if isinstance(entry, Mapping) else None
    return entry


def require_our_pixels(path: Path) -> None:
    """Raise an error if a ResNet needs other pixels, or has other strides, than torchvision's; warn if nothing says so.

    Args:
        path: The weights file.

    Raises:
        CheckpointError: The configuration beside the file states other pixels or strides.
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
    rounded = {"MODEL.PIXEL_MEAN": IMAGENET_MEAN, "MODEL.PIXEL_STD": IMAGENET_STD}
    wrong = [name for name, ours in exact.items() if look_up(model, name) != ours]
    wrong += [name for name, ours in rounded.items() if not _close(look_up(model, name), [255 * part for part in ours])]
    if wrong:
        seen = "; ".join(f"{name} is {look_up(model, name)}" for name in wrong)
        raise CheckpointError(
            f"{path}: this detectron2 model sees other pixels, or strides elsewhere, than torchvision's: {seen}; train "
            "it from torchvision's weights, whose configuration has its values"
        )


def _close(theirs: Any, ours: Sequence[float]) -> bool:
    """Tell whether numbers are equal up to rounding."""
    same = isinstance(theirs, list) and len(theirs) == len(ours)
    return same and all(abs(one - other) < 0.01 for one, other in zip(theirs, ours, strict=True))
