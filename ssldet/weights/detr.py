"""DETR's files <-> our detector: the same tensors under other names, and the configuration that they imply.

`from_detr` and `to_detr` only rename, both ways and without loss. `recognise` reads width, depth, classes and the like
off the tensors, so that the options of training need not be given again. Mask models put `detr.` before all names but
those of their mask heads. Files of a pretraining such as UP-DETR's also hold its heads; the task gives their names, see
`Objective.detr_names`.
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
"""Prefix of names in DETR's files -> prefix in the state of our objectives."""
OURS = {ours: theirs for theirs, ours in NAMES.items()}
SEGMENTATION = "detr."
"""Prefix of all names of the detector in the files of DETR's mask models."""
NO_HEADS: Mapping[str, str] = MappingProxyType({})
MASK_HEADS = ("bbox_attention.", "mask_head.")
DEFAULT_HEADS = 8
"""Number of attention heads, which tensors do not show; all released models have this many."""
STATEMENT = "ssldet"
"""Option of a file that we wrote, with information such as the task and the class names."""
Softmax = Literal["per_head", "joint"]
"""Normalisation of the attention maps of masks, as in `DETRConfig.mask_attention`."""


@dataclass(frozen=True, kw_only=True)
class RecognisedDetr:
    """The detector that a state in DETR's naming holds.

    Attributes:
        config: Configuration that builds the same detector.
        tensors: Number of tensors of the detector.
        beside: Number of other tensors, such as those of heads of a pretraining.
    """

    config: DETRConfig
    tensors: int
    beside: int = 0

    def __str__(self) -> str:
        """Return one line."""
        config = self.config
        return (
            f"DETR{' with masks' if config.masks else ''}, {config.backbone.name}, "
            f"{'pre' if config.pre_norm else 'post'}-norm, {config.encoder_layers}+{config.decoder_layers} layers, "
            f"width {config.width}, {config.num_queries} queries, {config.num_classes} classes, {self.tensors} tensors"
            f"{f' and {self.beside} beside it' if self.beside else ''}"
        )


class DetrFile(NamedTuple):
    """Contents of a file with DETR's names.

    Attributes:
        config: Configuration that builds its detector.
        state: Its tensors in DETR's naming.
        stated: Task, classes and category ids of a file that we wrote; else empty.
    """

    config: DETRConfig
    state: dict[str, Tensor]
    stated: dict[str, Any]


class LoadedDetr(NamedTuple):
    """A detector from a file of another project.

    Attributes:
        detector: The detector with all of its tensors.
        heads: State of other heads in the file, by the names of our objective; empty where there are none.
        config: The detector's configuration as plain values.
    """

    detector: DETR
    heads: dict[str, Tensor]
    config: dict[str, Any]


def has_detr_names(names: Iterable[str]) -> bool:
    """Tell whether names are those of a DETR, or of a model made from its code.

    Args:
        names: Names of all tensors of a file.
    """
    return not {"query_embed.weight", "class_embed.weight"}.isdisjoint(bare_names(names))


def bare_names(names: Iterable[str]) -> set[str]:
    """Return names without the prefixes of models that contain a DETR.

    Args:
        names: Names of all tensors of a file.
    """
    return {name.removeprefix(SEGMENTATION).removeprefix(SEGMENTATION) for name in names}


def from_detr(state: Mapping[str, Tensor], heads: Mapping[str, str] = NO_HEADS) -> dict[str, Tensor]:
    """Rename a state in DETR's naming to that of our objectives: `detector.…`, and other heads.

    Args:
        state: Tensors in DETR's naming.
        heads: Prefix of the names of heads in our objective -> prefix in DETR's naming.

    Raises:
        CheckpointError: A name is neither one of DETR's nor one of the heads.
    """
    return _rename(_bare(state), NAMES | {theirs: ours for ours, theirs in heads.items()}, "DETR")


def to_detr(state: Mapping[str, Tensor], heads: Mapping[str, str] = NO_HEADS) -> dict[str, Tensor]:
    """Rename the state of one of our objectives to DETR's naming.

    Args:
        state: Tensors named `detector.…`, and those of heads.
        heads: Prefix of the names of heads in our objective -> prefix in DETR's naming.

    Raises:
        CheckpointError: A name has no counterpart in DETR's files.
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
) -> RecognisedDetr:
    """Return the configuration of a model, read off its tensors.

    Args:
        state: Tensors in DETR's naming.
        heads: Number of attention heads, which tensors do not show.
        output_stride: Stride of the last level, which tensors do not show; 16 for DC5 models.
        mask_attention: Normalisation of the attention maps of masks, which tensors do not show; `None` takes `joint`
            for post-norm models, as DETR's authors trained theirs, and `per_head` for the others, which are UP-DETR's.
        backbone: Name of the backbone, where it need not be a ResNet of torchvision; `None` recognises those.

    Raises:
        CheckpointError: The state is not that of a DETR with a ResNet.
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
    return RecognisedDetr(config=config, tensors=own, beside=len(state) - own)


def detector_from_file(
    path: Path,
    beside: Mapping[str, str] = NO_HEADS,
    *,
    heads: int | None = None,
    output_stride: Literal[16, 32] | None = None,
    mask_attention: Softmax | None = None,
) -> LoadedDetr:
    """Build and load the detector that a file with DETR's names holds.

    Args:
        path: The file.
        beside: Prefix of the names of other heads in our objective -> prefix in the file.
        heads: Number of attention heads; `None` takes that of the file's options, else 8.
        output_stride: Stride of the last level; `None` takes that of the file's options, else 16 where the file's name
            contains `dc5`, as in the released models, else 32.
        mask_attention: Normalisation of the attention maps of masks; `None` takes that of the file's options (which
            our files state), else that of `recognise`.

    Raises:
        CheckpointError: The file can't be read, or its tensors are not exactly those of such a detector.
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
    return LoadedDetr(detector, heads_beside, to_document(file.config))


def look_into(
    state: Mapping[str, Tensor],
    origin: Origin,
    *,
    heads: int | None = None,
    output_stride: Literal[16, 32] | None = None,
    mask_attention: Softmax | None = None,
) -> DetrFile:
    """Recognise a state in DETR's naming, or in that of its authors' model for detectron2.

    Args:
        state: Tensors by name.
        origin: Path and other contents of the file.
        heads: Number of attention heads, as in `detector_from_file`.
        output_stride: Stride of the last level, as in `detector_from_file`.
        mask_attention: Normalisation of the attention maps of masks, as in `detector_from_file`.

    Raises:
        CheckpointError: The state is not that of such a model.
    """
    path, options = origin.path, origin.options
    dilated = options.get("dilation", "dc5" in path.name.casefold())
    try:
        if is_wrapper(state):
            state = from_wrapper(state)
            trained = look_up(configuration_beside(path), "MODEL.DETR.NHEADS")
            # Its code normalises maps in one way only.
            options = {"mask_attention": "joint"} | ({} if trained is None else {"nheads": trained}) | options
        recognised = recognise(
            state,
            heads=heads or int(options.get("nheads", DEFAULT_HEADS)),
            output_stride=output_stride or (16 if dilated else 32),
            mask_attention=mask_attention or _stated_softmax(options),
        )
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    taken = f"; mask_attention={recognised.config.mask_attention}" if recognised.config.masks else ""
    log.info("%s: %s%s", path, recognised, taken)
    stated = options.get(STATEMENT)
    return DetrFile(recognised.config, dict(state), stated if isinstance(stated, dict) else {})


def fill(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state whose tensors are exactly those of a module; nothing is changed if they are not.

    Args:
        module: A detector, or the objective that contains it; changed in place.
        state: Tensors by the names of the module.
        path: File of the tensors, for messages.

    Raises:
        CheckpointError: A tensor is missing, unexpected, of another shape or not finite.
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
    """Remove the prefix of the detector in mask models."""
    return {name.removeprefix(SEGMENTATION): value for name, value in state.items()}


def _stated_softmax(options: Mapping[str, Any]) -> Softmax | None:
    stated = options.get("mask_attention")
    return stated if stated in get_args(Softmax) else None


def _depth(names: Iterable[str], start: str) -> int:
    return len({name[len(start) :].partition(".")[0] for name in names if name.startswith(start)})
