"""state of a Deformable DETR -> its configuration: what the tensors say of the model, whoever wrote them."""

import re
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from ssldet.detectors.deformable_detr import DeformableDETRConfig
from ssldet.errors import CheckpointError
from ssldet.nn.backbones import BackboneConfig
from ssldet.weights.resnets import name_resnet

BODY = "backbone.body."
NEEDED = ("level_embedding.weight", "class_head.0.weight", "decoder.layers.0.linear1.weight")
QUERIES = 300
"""Queries of two-stage detectors, which leave no trace in a file."""


def recognise(
    state: Mapping[str, Tensor],
    *,
    heads: int,
    num_queries: int | None = None,
    output_stride: Literal[16, 32] = 32,
    backbone: str | None = None,
    dropout: float = 0.1,
) -> DeformableDETRConfig:
    """Read a model's choices off its tensors.

    Args:
        state: Tensors by the names of our detector.
        heads: Attention heads, which leave no trace.
        num_queries: Number of queries, which leaves none in two stages; `None` means the authors' 300.
        output_stride: Stride of the backbone's last level, which leaves none either.
        backbone: Name of the backbone, where it need not be a ResNet of torchvision's; `None` recognises those.
        dropout: Dropout, which leaves none either.

    Raises:
        CheckpointError: This is no Deformable DETR, or none with a ResNet.
    """
    name = backbone or name_resnet(key.removeprefix(BODY) for key in state if key.startswith(BODY))
    if name is None or any(needed not in state for needed in NEEDED):
        raise CheckpointError("not a Deformable DETR with a ResNet; use the file's own code")
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
        num_classes=len(state["class_head.0.weight"]),
        num_queries=num_queries or QUERIES,
        width=width,
        heads=heads,
        encoder_layers=_depth(state, "encoder.layers."),
        decoder_layers=_depth(state, "decoder.layers."),
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


def _depth(state: Mapping[str, Tensor], start: str) -> int:
    return len({name[len(start) :].partition(".")[0] for name in state if name.startswith(start)})
