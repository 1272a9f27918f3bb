"""DETR's files <-> our detector: the same tensors under other names, and the configuration that they imply.

`from_detr` and `to_detr` only rename, both ways and without loss. `recognise` reads width, depth, classes and the like
off the tensors, so that the options of training need not be given again. Mask models put `detr.` before all names but
those of their mask heads. Files of a pretraining such as UP-DETR's also hold its heads; the task gives their names, see
`Objective.detr_names`.
"""

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

from torch import Tensor, nn

from ssldet.detectors.detr import DETR, DETRConfig
from ssldet.errors import CheckpointError, suggest
from ssldet.nn.backbones import BackboneConfig
from ssldet.recipe import to_document
from ssldet.states import few, infinite, misfits
from ssldet.weights.copies import prefixes, take
from ssldet.weights.detectron2 import CRITERION, configuration_beside, from_wrapper, is_wrapper, look_up
from ssldet.weights.files import Origin, naming_file, read_state
from ssldet.weights.naming import Naming, count_parts
from ssldet.weights.resnets import name_resnet
from ssldet.weights.statement import statement_in, whole_option

log = logging.getLogger(__name__)

NAMING = Naming(
    starts={
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
)
"""Names in DETR's files -> in the state of our objectives."""
SEGMENTATION = "detr."
"""Prefix of all names of the detector in the files of DETR's mask models."""
MARK = re.compile(r"((?:[^.]+\.)*?)(?:detr\.){0,2}(?:query_embed|class_embed)\.weight$")
"""Names that only DETR, and models made from its code, have; the first group is the prefix of the whole model."""
BODY = re.compile(r"((?:[^.]+\.)*?)(?:detr\.){0,2}backbone\.0\.(?:body|backbone)\.")
"""Names of its backbone, likewise."""
NEEDED = ("query_embed.weight", "transformer.decoder.layers.0.linear1.weight", "input_proj.weight")
CLASS_HEAD = "class_embed."
HEADLESS = ("class_head",)
"""Sections without tensors in a file whose class head was removed, as DETR's authors advise for other classes."""
NO_HEADS: Mapping[str, str] = MappingProxyType({})
MASK_HEADS = ("bbox_attention.", "mask_head.")
DEFAULT_HEADS = 8
"""Number of attention heads, which tensors do not show; all released models have this many."""
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
        fresh: Sections of which it holds no tensor.
    """

    config: DETRConfig
    state: dict[str, Tensor]
    stated: dict[str, Any]
    fresh: tuple[str, ...] = ()


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
    """Tell whether names are those of a DETR, or of a model made from its code, with whatever prefix.

    Args:
        names: Names of all tensors of a file.
    """
    return bool(prefixes(names, MARK, BODY))


def bare_names(names: Iterable[str]) -> set[str]:
    """Return the names of a DETR in a file without the prefixes of models that contain it.

    Args:
        names: Names of all tensors of a file.
    """
    names = list(names)
    prefix = next(iter(prefixes(names, MARK, BODY)), "")
    inner = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
    return {name.removeprefix(SEGMENTATION).removeprefix(SEGMENTATION) for name in inner}


def from_detr(state: Mapping[str, Tensor], heads: Mapping[str, str] = NO_HEADS) -> dict[str, Tensor]:
    """Rename a state in DETR's naming to that of our objectives: `detector.…`, and other heads.

    Names that are neither DETR's nor those of the heads stay, so that `fill` lists them with all other problems.

    Args:
        state: Tensors in DETR's naming.
        heads: Prefix of the names of heads in our objective -> prefix in DETR's naming.
    """
    naming = _with_heads(heads)
    return {naming.rename(name) or name: value for name, value in _bare(state).items()}


def detr_name(name: str, heads: Mapping[str, str] = NO_HEADS) -> str:
    """Return the name in DETR's files of a tensor of our objectives or detectors; other names stay.

    Args:
        name: Such as `detector.box_head.layers.0.weight`, or the same without `detector.`.
        heads: Prefix of the names of heads in our objective -> prefix in DETR's naming.
    """
    naming = _with_heads(heads).backwards
    return naming.rename(name) or naming.rename(f"detector.{name}") or name


def to_detr(state: Mapping[str, Tensor], heads: Mapping[str, str] = NO_HEADS) -> dict[str, Tensor]:
    """Rename the state of one of our objectives to DETR's naming.

    Args:
        state: Tensors named `detector.…`, and those of heads.
        heads: Prefix of the names of heads in our objective -> prefix in DETR's naming.

    Raises:
        CheckpointError: A name has no counterpart in DETR's files.
    """
    naming = _with_heads(heads).backwards
    if unknown := [name for name in state if naming.rename(name) is None]:
        raise CheckpointError(f"{len(unknown)} tensors are not our DETR's: {few(unknown)}; use the file's own code")
    renamed = {naming.rename(name) or name: value for name, value in state.items()}
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
    lacking = [f"{name} is missing{suggest(name, state)}" for name in NEEDED if name not in state]
    if backbone is None:
        lacking.append(f"its {len(body)} tensors backbone.0.body.… are no ResNet of torchvision's")
    if backbone is None or lacking:
        raise CheckpointError(
            f"not a DETR with a ResNet: {few(lacking)}; load backbones by detector.backbone.weights, and our own files "
            "by their run folder"
        )
    num_queries, width = state["query_embed.weight"].shape
    pre_norm = "transformer.encoder.norm.weight" in state
    masks = any(name.startswith(MASK_HEADS) for name in state)
    config = DETRConfig(
        backbone=BackboneConfig(name=backbone, output_stride=output_stride),
        num_classes=_classes(state),
        num_queries=num_queries,
        width=width,
        heads=heads,
        encoder_layers=count_parts(state, "transformer.encoder.layers."),
        decoder_layers=count_parts(state, "transformer.decoder.layers."),
        feedforward=len(state["transformer.decoder.layers.0.linear1.weight"]),
        pre_norm=pre_norm,
        masks=masks,
        mask_attention=(mask_attention or ("per_head" if pre_norm else "joint")) if masks else "per_head",
    )
    if problems := config.problems():
        raise CheckpointError(f"recognised as DETR, but {'; '.join(problems)}; name the right number of heads")
    own = sum(name.startswith(tuple(NAMING.starts)) for name in state)
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
    ours = from_detr(file.state, beside)
    heads_beside = {name: value for name, value in ours.items() if name.startswith(tuple(beside))}
    own = {name.removeprefix("detector."): value for name, value in ours.items() if name not in heads_beside}
    fill(detector, own, path, named=detr_name, fresh=file.fresh)
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
    state = {name: value for name, value in take(state, MARK, BODY, path).items() if name != CRITERION}
    with naming_file(path):
        if is_wrapper(state):
            state = from_wrapper(state)
            trained = look_up(configuration_beside(path), "MODEL.DETR.NHEADS")
            # Its code normalises maps in one way only.
            options = {"mask_attention": "joint"} | ({} if trained is None else {"nheads": trained}) | options
        recognised = recognise(
            state,
            heads=heads or whole_option(options, "nheads", DEFAULT_HEADS, path),
            output_stride=output_stride or (16 if dilated else 32),
            mask_attention=mask_attention or _stated_softmax(options),
        )
    taken = f"; mask_attention={recognised.config.mask_attention}" if recognised.config.masks else ""
    log.info("%s: %s%s", path, recognised, taken)
    fresh = () if any(CLASS_HEAD in name for name in state) else HEADLESS
    return DetrFile(recognised.config, dict(state), statement_in(options, path), fresh)


def fill(
    module: nn.Module,
    state: Mapping[str, Tensor],
    path: Path,
    *,
    named: Callable[[str], str] = str,
    fresh: Iterable[str] = (),
) -> None:
    """Load a state whose tensors are exactly those of a module; nothing is changed if they are not.

    Args:
        module: A detector, or the objective that contains it; changed in place.
        state: Tensors by the names of the module.
        path: File of the tensors, for messages.
        named: Returns the name in the file of a tensor, for messages.
        fresh: Sections that the file does not hold, which keep their fresh weights.

    Raises:
        CheckpointError: A tensor is missing, unexpected, of another shape or not finite; the message lists all.
    """
    fresh = set(fresh)
    absent = {name for name in module.state_dict() if not fresh.isdisjoint(name.split("."))}
    expected = {named(name): value for name, value in module.state_dict().items() if name not in absent}
    given = {named(name): value for name, value in state.items()}
    if wrong := misfits(expected, given) + infinite(given):
        raise CheckpointError(f"{path}: does not fit the detector it looks like: {few(wrong)}; is the file whole?")
    module.load_state_dict(dict(state), strict=not absent)


def _with_heads(heads: Mapping[str, str]) -> Naming:
    """Return DETR's naming, and that of heads, which are given from ours to theirs."""
    return Naming(starts={**NAMING.starts, **{theirs: ours for ours, theirs in heads.items()}})


def _bare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefix of the detector in mask models."""
    return {name.removeprefix(SEGMENTATION): value for name, value in state.items()}


def _stated_softmax(options: Mapping[str, Any]) -> Softmax | None:
    stated = options.get("mask_attention")
    return stated if stated in get_args(Softmax) else None


def _classes(state: Mapping[str, Tensor]) -> int:
    """Return the number of classes; any number without a class head, since data to fine-tune on bring their own."""
    head = next((state[CLASS_HEAD + kind] for kind in ("weight", "bias") if CLASS_HEAD + kind in state), None)
    return DETRConfig.num_classes if head is None else len(head) - 1
