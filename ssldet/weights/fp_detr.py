"""names in files of FP-DETR's authors -> names in ours; what the tensors say of the model.

Names, shapes and the order of norms are those that the authors' code gives (encounter1997/FP-DETR, 05aa706). Its files
lie on a service that could not be reached: **no published file has been tried**. There are three kinds:

    detection             queries, adaptor and heads; three norms in each joined layer, the first being the adaptor's
    pretraining, raw      a class token in the place of queries, and a classifier; two norms, numbered from 0
    pretraining, cleaned  by the authors' script, for fine-tuning: no token, no classifier; two norms, numbered from 1

Heads stand in the files once per layer, and are one. The attention of joined layers has weights for queries as a fifth
level, which is masked there and left out here.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ssldet.detectors.fp_detr import LITE, FPDETRConfig
from ssldet.errors import CheckpointError
from ssldet.weights.naming import count_parts

TRANSFORMER = "bbox_head.transformer."
MARK = f"{TRANSFORMER}encoder2.layers.0.attentions.0.value_proj.weight"
"""A tensor that all their files have, and no other file."""
ADAPTOR = f"{TRANSFORMER}encoder2.prompt_encoder_share.attn."
"""How names begin that only files of detectors have."""
POINTS = 4
"""Points that one head looks at on one level, in all their models."""
STARTS = {
    ADAPTOR: "adaptor.self_attn.",
    f"{TRANSFORMER}level_embeds": "level_embedding.weight",
    f"{TRANSFORMER}reference_points.": "queries.reference.",
    "bbox_head.query_embedding.weight": "queries.embedding",
    "bbox_head.cls_branches.0.": "class_head.",
    "bbox_head.reg_branches.0.0.": "box_head.layers.0.",
    "bbox_head.reg_branches.0.2.": "box_head.layers.1.",
    "bbox_head.reg_branches.0.4.": "box_head.layers.2.",
}
"""How names begin there -> in our detector, where they don't depend on a number."""
INSIDE = {"attentions.0.": "self_attn.", "ffns.0.layers.0.0.": "linear1.", "ffns.0.layers.1.": "linear2."}
"""Names inside a layer there -> in our detector."""


def is_authors(names: Iterable[str]) -> bool:
    """Say whether names are those of a file of FP-DETR's authors.

    Args:
        names: Of all tensors of a file.
    """
    return MARK in set(names)


def is_detector(names: Iterable[str]) -> bool:
    """Say whether such a file holds a detector rather than what was pretrained for one.

    Args:
        names: Of all tensors of a file.
    """
    return any(name.startswith(ADAPTOR) for name in names)


def from_authors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state in the authors' naming to that of our detector; a class token counts as a query.

    Args:
        state: Tensors of a file of any of the three kinds.

    Raises:
        CheckpointError: A name that they don't have, or heads that contradict one another.
    """
    starts = STARTS | _tokenizer_starts(state) | _layer_starts(state, 1) | _layer_starts(state, 2)
    renamed, unknown = {}, []
    for theirs, value in _without_copies(state).items():
        start = next((start for start in starts if theirs.startswith(start)), None)
        if start is None:
            unknown.append(theirs)
        else:
            renamed[starts[start] + theirs.removeprefix(start)] = value
    if unknown:
        raise CheckpointError(f"{len(unknown)} tensors are not FP-DETR's, such as {unknown[0]!r}; use its own code")
    # Their convolutions before a norm have no bias.
    biases = {
        name.replace(".weight", ".bias"): torch.zeros(len(value))
        for name, value in renamed.items()
        if name.startswith("projection.levels.") and name.endswith(".0.weight")
    }
    return _without_fifth_level(renamed) | biases


def recognise(state: Mapping[str, Tensor]) -> FPDETRConfig:
    """Read a model's choices off its tensors; what they don't say is as in the authors' configurations.

    Args:
        state: Tensors by the names of our detector; queries and heads may be missing.

    Raises:
        CheckpointError: A tensor is missing that tells a size.
    """
    try:
        patches = [
            state[f"tokenizer.patches.{number}.weight"] for number in range(count_parts(state, "tokenizer.patches."))
        ]
        strides, levels = [1], len(state["level_embedding.weight"])
        for patch in patches:
            strides.append(strides[-1] * patch.shape[-1])
        config = FPDETRConfig(
            num_classes=len(state.get("class_head.weight", ())) or LITE.num_classes,
            num_queries=len(state.get("queries.embedding", ())) or LITE.num_queries,
            strides=tuple(strides[1:]),
            tokenizer_width=len(patches[0]),
            extra_levels=levels - len(patches),
            width=state["level_embedding.weight"].shape[1],
            heads=len(state["encoder.layers.0.self_attn.attention_weights.bias"]) // (levels * POINTS),
            encoder_layers=count_parts(state, "encoder.layers."),
            joined_layers=count_parts(state, "joined_encoder.layers."),
            feedforward=len(state["encoder.layers.0.linear1.bias"]),
            points=POINTS,
        )
    except (KeyError, IndexError) as error:
        raise CheckpointError(f"recognised as FP-DETR, but {error} is missing; is the file whole?") from error
    if problems := config.problems():
        raise CheckpointError(f"recognised as FP-DETR, but {'; '.join(problems)}")
    return config


def _tokenizer_starts(names: Iterable[str]) -> dict[str, str]:
    """Return how names of tokenizer and projection begin there -> here: strides and numbers become numbers."""
    found = [re.match(r"backbone\.patch_embed(\d+)\.", name) for name in names]
    strides = sorted({int(match[1]) for match in found if match})
    starts: dict[str, str] = {}
    for number, stride in enumerate(strides):
        starts |= {
            f"backbone.patch_embed{stride}.proj.": f"tokenizer.patches.{number}.",
            f"backbone.patch_embed{stride}.norm.": f"tokenizer.norms.{number}.",
            f"backbone.norm{number}.": f"tokenizer.level_norms.{number}.",
        }
    levels = [f"neck.convs.{number}." for number in range(len(strides))]
    levels += [f"neck.extra_convs.{number}." for number in range(count_parts(names, "neck.extra_convs."))]
    for number, level in enumerate(levels):
        starts |= {f"{level}conv.": f"projection.levels.{number}.0.", f"{level}gn.": f"projection.levels.{number}.1."}
    return starts


def _layer_starts(names: Iterable[str], encoder: int) -> dict[str, str]:
    """Return how names of the layers of their first or second encoder begin there -> here.

    The last two norms of a layer are its own, whatever their numbers; one before them is the adaptor's.
    """
    theirs, ours = f"{TRANSFORMER}encoder{encoder}.layers.", ("encoder.layers.", "joined_encoder.layers.")[encoder - 1]
    starts: dict[str, str] = {}
    for layer in range(count_parts(names, theirs)):
        here, there = f"{ours}{layer}.", f"{theirs}{layer}."
        starts |= {f"{there}{inside}": f"{here}{own}" for inside, own in INSIDE.items()}
        norms = sorted({name for name in names if re.fullmatch(rf"{re.escape(there)}norms\.\d+\.weight", name)})
        wanted = [f"adaptor.norms.{layer}.", f"{here}norm1.", f"{here}norm2."][-len(norms) :]
        starts |= {norm.removesuffix("weight"): own for norm, own in zip(norms, wanted, strict=False)}
    return starts


def _without_copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keep the heads of the first layer, which must be those of all layers."""
    own = dict(state)
    for name, value in state.items():
        found = re.fullmatch(r"(bbox_head\.(?:cls|reg)_branches\.)(\d+)(\..*)", name)
        if found and found[2] != "0":
            first = state.get(f"{found[1]}0{found[3]}")
            if first is None or not torch.equal(first, value):
                raise CheckpointError(f"{name} is not the first layer's, and should be; is the file whole?")
            del own[name]
    return own


def _without_fifth_level(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out what joined layers would look at queries with, the last level of every head."""
    own = dict(state)
    levels = len(state.get("level_embedding.weight", ()))
    for name, value in state.items():
        found = re.match(r"joined_encoder\.layers\.\d+\.self_attn\.(sampling_offsets|attention_weights)\.", name)
        each = POINTS * (levels + 1) * (2 if found and found[1] == "sampling_offsets" else 1)
        if found and len(value) % each == 0:
            heads = value.view(len(value) // each, levels + 1, -1, *value.shape[1:])
            own[name] = heads[:, :levels].reshape(-1, *value.shape[1:]).clone()
    return own
