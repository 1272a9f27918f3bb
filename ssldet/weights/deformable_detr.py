"""state of a Deformable DETR -> its configuration, read off the tensors; a file of its authors -> the detector."""

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor

from ssldet.detectors.deformable_detr import DeformableDETR, DeformableDETRConfig
from ssldet.errors import CheckpointError, suggest
from ssldet.nn.backbones import BackboneConfig
from ssldet.states import few
from ssldet.weights.copies import take
from ssldet.weights.deformable_detr_names import BODY, MARK, authors_name, from_authors
from ssldet.weights.detr import DEFAULT_HEADS, HEADLESS, fill
from ssldet.weights.files import Origin, naming_file
from ssldet.weights.naming import count_parts
from ssldet.weights.resnets import name_resnet
from ssldet.weights.statement import share_option, statement_in, whole_option

log = logging.getLogger(__name__)

OUR_BODY = "backbone.body."
NEEDED = ("level_embedding.weight", "decoder.layers.0.linear1.weight")
QUERIES = 300
"""Queries of two-stage detectors, which leave no trace in a file."""


class AuthorsFile(NamedTuple):
    """Contents of a file with the names of Deformable DETR's authors.

    Attributes:
        detector: The detector with all tensors of the file.
        config: Its configuration.
        stated: Task, classes and category ids of a file that we wrote; else empty.
        fresh: Sections of which the file holds no tensor.
    """

    detector: DeformableDETR
    config: DeformableDETRConfig
    stated: dict[str, Any]
    fresh: tuple[str, ...]


def detector_from_authors(state: Mapping[str, Tensor], origin: Origin) -> AuthorsFile:
    """Build and load the detector in a file with the names of Deformable DETR's authors.

    Args:
        state: Tensors of the file by name.
        origin: Path and other contents of the file; its options state what tensors do not show.

    Raises:
        CheckpointError: The file holds something else, or more or less than such a detector.
    """
    path, options = origin.path, origin.options
    theirs = take(state, MARK, BODY, path)
    with naming_file(path):
        ours = from_authors(theirs, str(path))
        config = recognise(
            ours,
            heads=whole_option(options, "nheads", DEFAULT_HEADS, path),
            num_queries=whole_option(options, "num_queries", QUERIES, path),
            output_stride=16 if options.get("dilation") is True else 32,
            dropout=share_option(options, "dropout", 0.1, path),
            named=authors_name,
        )
    fresh = () if any(name.startswith(HEADLESS) for name in ours) else HEADLESS
    detector = config.build()
    fill(detector, ours, path, named=authors_name, fresh=fresh)
    log.info("%s: Deformable DETR, %s, %d classes", path, config.backbone.name, config.num_classes)
    return AuthorsFile(detector, config, statement_in(options, path), fresh)


def recognise(
    state: Mapping[str, Tensor],
    *,
    heads: int,
    num_queries: int | None = None,
    output_stride: Literal[16, 32] = 32,
    backbone: str | None = None,
    dropout: float = 0.1,
    named: Callable[[str], str] = str,
) -> DeformableDETRConfig:
    """Read a model's choices off its tensors.

    Args:
        state: Tensors by the names of our detector.
        heads: Attention heads, which leave no trace.
        num_queries: Number of queries, which leaves none in two stages; `None` means the authors' 300.
        output_stride: Stride of the backbone's last level, which leaves none either.
        backbone: Name of the backbone, where it need not be a ResNet of torchvision's; `None` recognises those.
        dropout: Dropout, which leaves none either.
        named: Returns the name in the file of a tensor, for messages.

    Raises:
        CheckpointError: This is no Deformable DETR, or none with a ResNet.
    """
    name = backbone or name_resnet(key.removeprefix(OUR_BODY) for key in state if key.startswith(OUR_BODY))
    present = [named(key) for key in state]
    lacking = [f"{named(key)} is missing{suggest(named(key), present)}" for key in NEEDED if key not in state]
    if name is None:
        lacking.append(f"its tensors {named(OUR_BODY)}… are no ResNet of torchvision's")
    if name is None or lacking:
        raise CheckpointError(f"not a Deformable DETR with a ResNet: {few(lacking)}; use the file's own code")
    levels, width = state["level_embedding.weight"].shape
    kernels = [state[key].shape[-1] for key in state if re.fullmatch(r"projection\.levels\.\d+\.0\.weight", key)]
    two_stage = "proposals.enc_output.weight" in state
    if not two_stage and "queries.embedding" in state:
        num_queries = len(state["queries.embedding"])

    def points(attention: str) -> int:
        weights = state.get(f"{attention}.attention_weights.weight")
        return 1 if weights is None else max(1, len(weights) // (heads * levels))

    config = DeformableDETRConfig(
        backbone=BackboneConfig(name=name, output_stride=output_stride),
        # Without a class head, the number does not matter: data to fine-tune on bring their own.
        num_classes=len(state.get("class_head.0.weight", range(DeformableDETRConfig.num_classes))),
        num_queries=num_queries or QUERIES,
        width=width,
        heads=heads,
        encoder_layers=count_parts(state, "encoder.layers."),
        decoder_layers=count_parts(state, "decoder.layers."),
        feedforward=len(state["decoder.layers.0.linear1.weight"]),
        dropout=dropout,
        pre_norm="decoder.norm.weight" in state,
        backbone_levels=max(1, kernels.count(1)),
        extra_levels=kernels.count(3),
        encoder_points=points("encoder.layers.0.self_attn"),
        decoder_points=points("decoder.layers.0.cross_attn"),
        refine_boxes="box_head.1.layers.0.weight" in state,
        two_stage=two_stage,
    )
    if problems := config.problems():
        raise CheckpointError(f"recognised as Deformable DETR, but {'; '.join(problems)}")
    return config
