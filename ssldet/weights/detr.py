"""DETR's files <-> our detector: the same tensors under other names, and what the names say of the model.

`from_detr` and `to_detr` only rename, both ways and without loss. `recognise` reads width, depth, classes and the like
off the tensors, so that nobody has to retype the flags a file was trained with. Mask models put `detr.` before all
names but those of their mask heads. A pretraining such as UP-DETR's keeps its heads in the same file: their names are
given by whoever knows them, see `Objective.detr_names`.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

from torch import Tensor, nn

from ssldet.detectors.detr import DETR, DETRConfig
from ssldet.errors import CheckpointError
from ssldet.nn.backbones import BackboneConfig
from ssldet.recipe import to_document
from ssldet.states import few, infinite, misfits
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
}
"""How a name begins in their files -> how it begins in the state of an objective of ours."""
OURS = {ours: theirs for theirs, ours in NAMES.items()}
SEGMENTATION = "detr."
"""What precedes all names of the detector in the files of DETR's mask models."""
NO_HEADS: Mapping[str, str] = MappingProxyType({})
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
        tensors: Number of tensors of the detector.
        beside: Number of other tensors, such as those of heads that a pretraining throws away.
    """

    config: DETRConfig
    tensors: int
    beside: int = 0

    def __str__(self) -> str:
        """Say it in one line."""
        config = self.config
        return (
            f"DETR{' with masks' if config.masks else ''}, {config.backbone.name}, "
            f"{'pre' if config.pre_norm else 'post'}-norm, {config.encoder_layers}+{config.decoder_layers} layers, "
            f"width {config.width}, {config.num_queries} queries, {config.num_classes} classes, {self.tensors} tensors"
            f"{f' and {self.beside} beside it' if self.beside else ''}"
        )


class DetrFile(NamedTuple):
    """What a file with DETR's names holds, before anything is built.

    Attributes:
        config: Choices that build its detector.
        state: Its tensors in DETR's naming.
        stated: Task, classes and category ids, where we wrote the file; else empty.
    """

    config: DETRConfig
    state: dict[str, Tensor]
    stated: dict[str, Any]


class Loaded(NamedTuple):
    """A detector from somebody else's file.

    Attributes:
        detector: Filled with every tensor that belongs to it.
        heads: State of the heads beside it, by the names of our objective; empty where there are none.
        config: The detector's configuration as plain values.
    """

    detector: DETR
    heads: dict[str, Tensor]
    config: dict[str, Any]


def has_detr_names(names: Iterable[str]) -> bool:
    """Say whether names are those of a DETR, or of something made from its code.

    Args:
        names: Of all tensors of a file.
    """
    return not {"query_embed.weight", "class_embed.weight"}.isdisjoint(bare_names(names))


def bare_names(names: Iterable[str]) -> set[str]:
    """Return names without what models around a DETR put before them.

    Args:
        names: Of all tensors of a file.
    """
    return {name.removeprefix(SEGMENTATION).removeprefix(SEGMENTATION) for name in names}


def from_detr(state: Mapping[str, Tensor], heads: Mapping[str, str] = NO_HEADS) -> dict[str, Tensor]:
    """Rename a state in DETR's naming to that of an objective of ours: `detector.…`, and heads beside it.

    Args:
        state: Tensors in their naming.
        heads: How names of heads begin in the objective -> in their naming.

    Raises:
        CheckpointError: A name that is neither DETR's nor one of the heads'.
    """
    return _rename(_bare(state), NAMES | {theirs: ours for ours, theirs in heads.items()}, "DETR")


def to_detr(state: Mapping[str, Tensor], heads: Mapping[str, str] = NO_HEADS) -> dict[str, Tensor]:
    """Rename the state of an objective of ours to DETR's naming.

    Args:
        state: Tensors named `detector.…`, and those of heads.
        heads: How names of heads begin in the objective -> in their naming.

    Raises:
        CheckpointError: A name that their files have no place for.
    """
    renamed = _rename(state, OURS | dict(heads), "our DETR")
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
            "not a DETR with a ResNet (it lacks backbone.0.body.…, class_embed or query_embed); "
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
    own = sum(name.startswith(tuple(NAMES)) for name in state)
    return Recognised(config=config, tensors=own, beside=len(state) - own)


def detector_from_file(
    path: Path,
    beside: Mapping[str, str] = NO_HEADS,
    *,
    heads: int | None = None,
    output_stride: Literal[16, 32] | None = None,
    mask_attention: Softmax | None = None,
) -> Loaded:
    """Build and fill the detector that a file with DETR's names holds.

    Args:
        path: The file.
        beside: How names of heads beside the detector begin in our objective -> in the file.
        heads: Attention heads; none takes what the file's options say, else 8.
        output_stride: Stride of the last level; none takes what the file's options say, else 16 where the file's name
            holds `dc5` as those of the released models do, else 32.
        mask_attention: How attention maps behind masks sum to one; none takes what the file's options say (those that
            we wrote do), else see `recognise`.

    Raises:
        CheckpointError: The file can't be read, is none of theirs, or holds more or less than such a detector.
    """
    file = look_into(*read_state(path), heads=heads, output_stride=output_stride, mask_attention=mask_attention)
    detector = file.config.build()
    try:
        ours = from_detr(file.state, beside)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    own = {name.removeprefix("detector."): value for name, value in ours.items() if name.startswith("detector.")}
    fill(detector, own, path)
    heads_beside = {name: value for name, value in ours.items() if not name.startswith("detector.")}
    return Loaded(detector, heads_beside, to_document(file.config))


def look_into(
    state: Mapping[str, Tensor],
    origin: Origin,
    *,
    heads: int | None = None,
    output_stride: Literal[16, 32] | None = None,
    mask_attention: Softmax | None = None,
) -> DetrFile:
    """Say what a state in DETR's naming holds, or one in that of its authors' model for detectron2.

    Args:
        state: Tensors by name.
        origin: The file, and what else it said.
        heads: See `detector_from_file`.
        output_stride: See `detector_from_file`.
        mask_attention: See `detector_from_file`.

    Raises:
        CheckpointError: It holds something else.
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
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    taken = f"; mask_attention={known.config.mask_attention}" if known.config.masks else ""
    log.info("%s: %s%s", path, known, taken)
    stated = options.get(STATEMENT)
    return DetrFile(known.config, dict(state), stated if isinstance(stated, dict) else {})


def fill(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load all of it or nothing: every tensor has a place, every place a tensor, and every number is one.

    Args:
        module: A detector, or the objective around it; receives.
        state: Tensors by its names.
        path: Where they come from, for messages.

    Raises:
        CheckpointError: A tensor is missing, too many, of another shape or not finite.
    """
    if wrong := misfits(module.state_dict(), state) + infinite(state):
        raise CheckpointError(f"{path}: does not fit the detector it looks like: {few(wrong)}; is the file whole?")
    module.load_state_dict(dict(state), strict=True)


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
