"""DETR and UP-DETR files <-> our detector: the same tensors under other names, and what the names say of the model.

`from_detr` and `to_detr` only rename, both ways and without loss. `recognise` reads width, depth, classes and the like
off the tensors, so that nobody has to retype the flags a file was trained with. Mask models put `detr.` before all
names but those of their mask heads.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ssldet.detectors.detr import DETR, DETRConfig
from ssldet.errors import CheckpointError
from ssldet.nn.backbones import BackboneConfig
from ssldet.recipe import to_document
from ssldet.weights.detectron2 import configuration_beside, from_wrapper, is_wrapper, look_up
from ssldet.weights.files import Origin, read_state
from ssldet.weights.resnets import name_resnet

log = logging.getLogger(__name__)

NAMES = {
    "backbone.0.body.": "detector.backbone.body.",
    "input_proj.": "detector.projection.",
    "transformer.encoder.": "detector.encoder.",
    "transformer.decoder.": "detector.decoder.",
    "query_embed.weight": "detector.queries.embedding",
    "bbox_embed.": "detector.box_head.",
    "class_embed.": "detector.class_head.",
    "bbox_attention.": "detector.mask_attention.",
    "mask_head.": "detector.mask_head.",
    "patch2query.": "patch_queries.projection.",
    "feature_align.": "reconstruction.",
}
"""How a name begins in their files -> how it begins in the state of an objective of ours."""
OURS = {ours: theirs for theirs, ours in NAMES.items()}
SEGMENTATION = "detr."
"""What precedes all names of the detector in the files of DETR's mask models."""
MASK_HEADS = ("bbox_attention.", "mask_head.")
DEFAULT_HEADS = 8
"""Attention heads leave no trace in a file; all released ones have this many."""
STATEMENT = "ssldet"
"""Option of a file that we wrote: what its tensors don't say, such as the task and the class names."""
Softmax = Literal["per_head", "joint"]
"""How attention maps behind masks are made to sum to one; see `DETRConfig.mask_attention`."""


@dataclass(frozen=True, kw_only=True)
class Recognised:
    """What a state in DETR's naming turned out to be.

    Attributes:
        config: Choices that build the same detector.
        pretraining: Whether it holds the heads that UP-DETR throws away after pretraining.
        tensors: Number of tensors.
    """

    config: DETRConfig
    pretraining: bool
    tensors: int

    def __str__(self) -> str:
        """Say it in one line."""
        config = self.config
        return (
            f"{'UP-DETR pretraining' if self.pretraining else 'DETR'}{' with masks' if config.masks else ''}, "
            f"{config.backbone.name}, "
            f"{'pre' if config.pre_norm else 'post'}-norm, {config.encoder_layers}+{config.decoder_layers} layers, "
            f"width {config.width}, {config.num_queries} queries, {config.num_classes} classes, {self.tensors} tensors"
        )


class Loaded(NamedTuple):
    """A detector from somebody else's file.

    Attributes:
        detector: Filled with every tensor that belongs to it.
        heads: State of UP-DETR's pretraining heads, named as in the random-query-patch objective; else empty.
        config: The detector's configuration as plain values.
        stated: Task, classes and category ids, where the file is of ours; else empty.
    """

    detector: DETR
    heads: dict[str, Tensor]
    config: dict[str, Any]
    stated: dict[str, Any]


def from_detr(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a DETR or UP-DETR state to that of an objective of ours: `detector.…` and the pretraining heads.

    Args:
        state: Tensors in their naming.

    Raises:
        CheckpointError: A name that neither project has.
    """
    return _rename(_bare(state), NAMES, "DETR or UP-DETR")


def to_detr(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the state of an objective of ours to DETR's and UP-DETR's naming.

    Args:
        state: Tensors named `detector.…`, and those of the random-query-patch heads.

    Raises:
        CheckpointError: A name that their files have no place for.
    """
    renamed = _rename(state, OURS, "our DETR")
    if not any(name.startswith(MASK_HEADS) for name in renamed):
        return renamed
    return {name if name.startswith(MASK_HEADS) else SEGMENTATION + name: value for name, value in renamed.items()}


def recognise(
    state: Mapping[str, Tensor],
    *,
    heads: int = DEFAULT_HEADS,
    output_stride: Literal[16, 32] = 32,
    mask_attention: Softmax | None = None,
    backbone: str | None = None,
) -> Recognised:
    """Read a model's choices off its tensors.

    Args:
        state: Tensors in DETR's naming.
        heads: Attention heads, which leave no trace.
        output_stride: Stride of the last level, which leaves none either; 16 for DC5 models.
        mask_attention: How attention maps behind masks sum to one, which leaves none either; none takes `joint` for
            post-norm models, as DETR's authors trained theirs, and `per_head` for the others, which are UP-DETR's.
        backbone: Name of the backbone, where it need not be a ResNet of torchvision's; none recognises those.

    Raises:
        CheckpointError: This is no DETR with a ResNet.
    """
    state = _bare(state)
    body = [name.removeprefix("backbone.0.body.") for name in state if name.startswith("backbone.0.body.")]
    backbone = backbone or name_resnet(body)
    if backbone is None or "class_embed.weight" not in state or "query_embed.weight" not in state:
        raise CheckpointError(
            "not a DETR or UP-DETR model with a ResNet (it lacks backbone.0.body.…, class_embed or query_embed); "
            "load backbones by detector.backbone.weights, and our own files by their run folder"
        )
    num_queries, width = state["query_embed.weight"].shape
    pre_norm = "transformer.encoder.norm.weight" in state
    masks = any(name.startswith(MASK_HEADS) for name in state)
    config = DETRConfig(
        backbone=BackboneConfig(name=backbone, output_stride=output_stride),
        num_classes=len(state["class_embed.weight"]) - 1,
        num_queries=num_queries,
        width=width,
        heads=heads,
        encoder_layers=_depth(state, "transformer.encoder.layers."),
        decoder_layers=_depth(state, "transformer.decoder.layers."),
        feedforward=len(state.get("transformer.decoder.layers.0.linear1.weight", ())),
        pre_norm=pre_norm,
        masks=masks,
        mask_attention=(mask_attention or ("per_head" if pre_norm else "joint")) if masks else "per_head",
    )
    if problems := config.problems():
        raise CheckpointError(f"recognised as DETR, but {'; '.join(problems)}; name the right number of heads")
    return Recognised(config=config, pretraining="patch2query.weight" in state, tensors=len(state))


def detector_from_file(
    path: Path,
    *,
    heads: int | None = None,
    output_stride: Literal[16, 32] | None = None,
    mask_attention: Softmax | None = None,
) -> Loaded:
    """Build and fill the detector that a DETR or UP-DETR file holds.

    Args:
        path: The file.
        heads: Attention heads; none takes what the file's options say, else 8.
        output_stride: Stride of the last level; none takes what the file's options say, else 16 where the file's name
            holds `dc5` as those of the released models do, else 32.
        mask_attention: How attention maps behind masks sum to one; none takes what the file's options say (those that
            we wrote do), else see `recognise`.

    Raises:
        CheckpointError: The file can't be read, is none of theirs, or holds more or less than such a detector.
    """
    return detector_from_state(
        *read_state(path), heads=heads, output_stride=output_stride, mask_attention=mask_attention
    )


def detector_from_state(
    state: Mapping[str, Tensor],
    origin: Origin,
    *,
    heads: int | None = None,
    output_stride: Literal[16, 32] | None = None,
    mask_attention: Softmax | None = None,
) -> Loaded:
    """Build and fill the detector that a state in DETR's naming holds, or in that of its authors' detectron2 model.

    Args:
        state: Tensors by name.
        origin: The file, and what else it said.
        heads: See `detector_from_file`.
        output_stride: See `detector_from_file`.
        mask_attention: See `detector_from_file`.

    Raises:
        CheckpointError: It holds something else, or more or less than such a detector.
    """
    path, options = origin.path, origin.options
    dilated = options.get("dilation", "dc5" in path.name.casefold())
    try:
        if is_wrapper(state):
            state = from_wrapper(state)
            trained = look_up(configuration_beside(path), "MODEL.DETR.NHEADS")
            # Its code computes maps in one way only.
            options = {"mask_attention": "joint"} | ({} if trained is None else {"nheads": trained}) | options
        known = recognise(
            state,
            heads=heads or int(options.get("nheads", DEFAULT_HEADS)),
            output_stride=output_stride or (16 if dilated else 32),
            mask_attention=mask_attention or _stated_softmax(options),
        )
        ours = from_detr(state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    detector = known.config.build()
    own = {name.removeprefix("detector."): value for name, value in ours.items() if name.startswith("detector.")}
    fill(detector, own, path)
    taken = f"; mask_attention={known.config.mask_attention}" if known.config.masks else ""
    log.info("%s: %s%s", path, known, taken)
    beside = {name: value for name, value in ours.items() if not name.startswith("detector.")}
    stated = options.get(STATEMENT)
    return Loaded(detector, beside, to_document(known.config), stated if isinstance(stated, dict) else {})


def fill(detector: DETR, state: Mapping[str, Tensor], path: Path) -> None:
    """Load all of it or nothing: every tensor has a place, every place a tensor, and every number is one.

    Args:
        detector: Receives.
        state: Tensors by its names.
        path: Where they come from, for messages.

    Raises:
        CheckpointError: A tensor is missing, too many, of another shape or not finite.
    """
    wanted = detector.state_dict()
    lines = [f"{name} is missing" for name in wanted if name not in state]
    lines += [f"{name} has no place" for name in state if name not in wanted]
    lines += [
        f"{name} is {list(state[name].shape)} instead of {list(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    lines += [f"{name} is not finite" for name, value in state.items() if not bool(torch.isfinite(value).all())]
    if lines:
        more = f" and {len(lines) - 1} more" if len(lines) > 1 else ""
        raise CheckpointError(f"{path}: does not fit the detector it looks like: {lines[0]}{more}; is the file whole?")
    detector.load_state_dict(dict(state), strict=True)


def _rename(state: Mapping[str, Tensor], names: Mapping[str, str], kind: str) -> dict[str, Tensor]:
    renamed, unknown = {}, []
    for name, value in state.items():
        start = next((start for start in names if name.startswith(start)), None)
        if start is None:
            unknown.append(name)
        else:
            renamed[names[start] + name[len(start) :]] = value
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} tensors are not {kind}'s, such as {unknown[0]!r}; use the file's own code"
        )
    return renamed


def _bare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off what mask models put before the names of the detector inside."""
    return {name.removeprefix(SEGMENTATION): value for name, value in state.items()}


def _stated_softmax(options: Mapping[str, Any]) -> Softmax | None:
    stated = options.get("mask_attention")
    return stated if stated in get_args(Softmax) else None


def _depth(names: Iterable[str], start: str) -> int:
    return len({name[len(start) :].partition(".")[0] for name in names if name.startswith(start)})
