"""names in files of Hugging Face transformers <-> names in ours: for DETR, its masks and Table Transformer, and others.

These are the names on disk, which version 4 gave to its modules and version 5 still writes. Queries, keys and values
have matrices of their own there; ours, as PyTorch's and DETR's, are one.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ssldet.errors import CheckpointError
from ssldet.weights.naming import Naming

DETR_NAMING = Naming(
    starts={
        "model.backbone.conv_encoder.model.": "backbone.body.",
        "model.input_projection.": "projection.",
        "model.query_position_embeddings.weight": "queries.embedding",
        "model.encoder.layernorm.": "encoder.norm.",
        "model.decoder.layernorm.": "decoder.norm.",
        "model.encoder.": "encoder.",
        "model.decoder.": "decoder.",
        "class_labels_classifier.": "class_head.",
        "bbox_predictor.": "box_head.",
        "bbox_attention.": "mask_attention.",
        "mask_head.": "mask_head.",
    },
    layers={
        "encoder.": {"self_attn_layer_norm": "norm1", "final_layer_norm": "norm2", "fc1": "linear1", "fc2": "linear2"},
        "decoder.": {
            "self_attn_layer_norm": "norm1",
            "encoder_attn_layer_norm": "norm2",
            "final_layer_norm": "norm3",
            "encoder_attn": "multihead_attn",
            "fc1": "linear1",
            "fc2": "linear2",
        },
    },
)
SEGMENTATION = "detr."
"""What precedes all names but those of the mask heads, where there are any."""
MASK_HEADS = ("bbox_attention.", "mask_head.")
BODY = "backbone.body."
PROJECTIONS = "q", "k", "v"
COUNTER = "num_batches_tracked"


def from_huggingface(state: Mapping[str, Tensor], where: str, naming: Naming = DETR_NAMING) -> dict[str, Tensor]:
    """Rename a state to that of an objective of ours, `detector.…`, joining queries, keys and values.

    Args:
        state: Tensors in their naming.
        where: Names the origin in a message.
        naming: That of their architecture.

    Raises:
        CheckpointError: A name that they don't have, or a matrix without its companions.
    """
    renamed: dict[str, Tensor] = {}
    apart: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for name, value in state.items():
        ours = _rename(name.removeprefix(SEGMENTATION), naming)
        if ours is None:
            unknown.append(name)
        elif found := re.fullmatch(r"(.*attn\.)([qkv])_proj\.(weight|bias)", ours):
            apart.setdefault(f"{found[1]}in_proj_{found[3]}", {})[found[2]] = value
        elif not ours.endswith(COUNTER):
            renamed[f"detector.{ours}"] = value
    if unknown:
        raise CheckpointError(f"{where}: {len(unknown)} tensors are no DETR's, such as {unknown[0]!r}; is it another?")
    for name, parts in apart.items():
        if parts.keys() != set(PROJECTIONS) or len({part.shape for part in parts.values()}) > 1:
            raise CheckpointError(f"{where}: {name} can't be joined from {sorted(parts)}_proj; is the file whole?")
        renamed[f"detector.{name}"] = torch.cat([parts[letter] for letter in PROJECTIONS])
    return renamed


def to_huggingface(state: Mapping[str, Tensor], naming: Naming = DETR_NAMING) -> dict[str, Tensor]:
    """Rename the state of our detector to theirs, queries, keys and values apart.

    Args:
        state: Tensors of a detector of ours.
        naming: That of their architecture.
    """
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        theirs = naming.backwards.rename(name)
        assert theirs is not None, f"{name} is no name of a detector of ours"
        base, packed, kind = theirs.rpartition("in_proj_")
        parts = zip(PROJECTIONS, value.chunk(3), strict=True) if packed else ()
        renamed |= {f"{base}{letter}_proj.{kind}": part for letter, part in parts} or {theirs: value}
    if not any(name.startswith(MASK_HEADS) for name in renamed):
        return renamed
    return {name if name.startswith(MASK_HEADS) else SEGMENTATION + name: value for name, value in renamed.items()}


def _rename(name: str, naming: Naming) -> str | None:
    ours = naming.rename(name)
    if ours is not None and ours.startswith(BODY):
        return BODY + _body_name(ours.removeprefix(BODY))
    return ours


def _body_name(name: str) -> str:
    """Give the parts of transformers' own ResNet the names of torchvision's; other names stay."""
    stem = {"convolution": "conv1", "normalization": "bn1"}
    if found := re.fullmatch(r"embedder\.embedder\.(convolution|normalization)\.(\w+)", name):
        return f"{stem[found[1]]}.{found[2]}"
    if found := re.fullmatch(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(.*)", name):
        block, rest = f"layer{int(found[1]) + 1}.{found[2]}", found[3]
        rest = re.sub(r"^shortcut\.convolution", "downsample.0", rest)
        rest = re.sub(r"^shortcut\.normalization", "downsample.1", rest)
        rest = re.sub(r"^layer\.(\d)\.convolution", lambda at: f"conv{int(at[1]) + 1}", rest)
        rest = re.sub(r"^layer\.(\d)\.normalization", lambda at: f"bn{int(at[1]) + 1}", rest)
        return f"{block}.{rest}"
    return name
