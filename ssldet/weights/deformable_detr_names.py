"""names in files of Deformable DETR, its authors' and those of Hugging Face transformers <-> names in ours.

Their heads stand in the files once per decoder layer even where all layers share one, and a second time inside the
decoder where it refines boxes or takes proposals. Ours stand there once.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ssldet.errors import CheckpointError
from ssldet.weights.copies import prefixes
from ssldet.weights.huggingface_names import COUNTER, from_huggingface, to_huggingface
from ssldet.weights.naming import Naming

PARTS = {
    "enc_output.": "proposals.enc_output.",
    "enc_output_norm.": "proposals.enc_output_norm.",
    "pos_trans.": "proposals.pos_trans.",
    "pos_trans_norm.": "proposals.pos_trans_norm.",
    "reference_points.": "queries.reference.",
    "level_embed": "level_embedding.weight",
    "encoder.": "encoder.",
    "decoder.": "decoder.",
}
"""How names inside a transformer begin there -> in our detector."""
HEADS = {"class_embed.": "class_head.", "bbox_embed.": "box_head."}
AUTHORS = Naming(
    starts={
        "backbone.0.body.": "backbone.body.",
        "input_proj.": "projection.levels.",
        "query_embed.weight": "queries.embedding",
        **{f"transformer.{theirs}": ours for theirs, ours in PARTS.items()},
        **HEADS,
    },
)
TRANSFORMERS = Naming(
    starts={
        "model.backbone.conv_encoder.model.": "backbone.body.",
        "model.input_proj.": "projection.levels.",
        "model.query_position_embeddings.weight": "queries.embedding",
        **{f"model.{theirs}": ours for theirs, ours in PARTS.items()},
        **HEADS,
    },
    layers={
        "encoder.": {"self_attn_layer_norm": "norm1", "final_layer_norm": "norm2", "fc1": "linear1", "fc2": "linear2"},
        "decoder.": {
            "self_attn_layer_norm": "norm2",
            "encoder_attn_layer_norm": "norm1",
            "final_layer_norm": "norm3",
            "encoder_attn": "cross_attn",
            "fc1": "linear1",
            "fc2": "linear2",
        },
    },
)
MARK = re.compile(r"((?:[^.]+\.)*?)transformer\.level_embed$")
"""A name that the authors' files have, and no other file; the first group is the prefix of the whole model."""
BODY = re.compile(r"((?:[^.]+\.)*?)backbone\.0\.body\.")
"""Names of its backbone, likewise."""
REFINING = "transformer.decoder.bbox_embed."
"""How names begin that only files of detectors have which refine boxes."""


def is_authors(names: Iterable[str]) -> bool:
    """Return whether names are those of a file of Deformable DETR's authors, with whatever prefix.

    Args:
        names: Of all tensors of a file.
    """
    return bool(prefixes(names, MARK, BODY))


def from_authors(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Rename a state in the authors' naming to that of our detector.

    Names that are not the authors' stay, so that loading lists them with all other problems.

    Args:
        state: Tensors in their naming.
        where: Names the origin in a message.

    Raises:
        CheckpointError: Heads contradict one another.
    """
    joined = _join_heads(state, "transformer.", where)
    refines = any(name.startswith(REFINING) for name in state) or _heads_differ(joined, "bbox_embed")
    # Their attention is PyTorch's, so that what transformers keeps apart is one here already.
    renamed = {AUTHORS.rename(name) or name: value for name, value in joined.items() if not name.endswith(COUNTER)}
    return _without_copies(renamed, refines=refines, where=where)


def to_authors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the state of our detector to the authors' naming.

    Args:
        state: Tensors of a Deformable DETR of ours.
    """
    renamed = {authors_name(name): value for name, value in _with_copies(state).items()}
    return renamed | _inside_decoder(renamed, state, "transformer.")


def authors_name(name: str) -> str:
    """Return the name in the authors' files of a tensor of our detector; other names stay.

    Args:
        name: Such as `box_head.0.layers.0.weight`.
    """
    return AUTHORS.backwards.rename(name) or name


def from_transformers(state: Mapping[str, Tensor], where: str, *, refines: bool) -> dict[str, Tensor]:
    """Rename a state in the naming of transformers to that of our detector.

    Args:
        state: Tensors in their naming.
        where: Names the origin in a message.
        refines: Whether the detector refines boxes, and so has heads for every layer. Those that the file does not
            have are the first one's, which transformers saves once where they are equal.

    Raises:
        CheckpointError: A name that they don't have, or heads that contradict one another.
    """
    joined = _join_heads(state, "model.", where)
    return _without_copies(_bare(from_huggingface(joined, where, TRANSFORMERS)), refines=refines, where=where)


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the state of our detector to the naming of transformers.

    Args:
        state: Tensors of a Deformable DETR of ours.
    """
    renamed = to_huggingface(_with_copies(state), TRANSFORMERS)
    return renamed | _inside_decoder(renamed, state, "model.")


def _bare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("detector."): value for name, value in state.items()}


def _join_heads(state: Mapping[str, Tensor], transformer: str, where: str) -> dict[str, Tensor]:
    """Bring heads that stand inside the decoder to the others, which must not contradict them."""
    joined = dict(state)
    for name, value in state.items():
        inner = name.removeprefix(f"{transformer}decoder.")
        if inner != name and inner.startswith(tuple(HEADS)):
            del joined[name]
            if not torch.equal(joined.setdefault(inner, value), value):
                raise CheckpointError(f"{where}: {name} and {inner} differ, and should be one; is the file whole?")
    return joined


def _heads_differ(state: Mapping[str, Tensor], kind: str) -> bool:
    """Return whether some layers have other heads than the first; a file may lack the names inside the decoder."""
    first = {name.removeprefix(f"{kind}.0."): value for name, value in state.items() if name.startswith(f"{kind}.0.")}
    others = ((found[1], value) for name, value in state.items() if (found := re.match(rf"{kind}\.\d+\.(.*)", name)))
    return any(rest in first and not torch.equal(first[rest], value) for rest, value in others)


def _without_copies(state: Mapping[str, Tensor], *, refines: bool, where: str) -> dict[str, Tensor]:
    """Keep one head for all layers, or give every layer one."""
    own = {name: value for name, value in state.items() if not name.startswith(tuple(HEADS.values()))}
    last = depth(state) - (0 if any(name.startswith("proposals.") for name in state) else 1)
    for name, value in state.items():
        found = re.fullmatch(r"(class_head|box_head)\.(\d+)\.(.*)", name)
        if found is None:
            continue
        kind, number, rest = found.groups()
        first = state.get(f"{kind}.0.{rest}")
        if not refines and number != "0":
            if first is None or not torch.equal(first, value):
                raise CheckpointError(f"{where}: {name} is not the first layer's, but no box is refined")
            continue
        own[name] = value
        if refines and number == "0":
            own |= {copy: value for layer in range(1, last + 1) if (copy := f"{kind}.{layer}.{rest}") not in state}
    return own


def _with_copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give every layer a head, in the order of the layers."""
    heads = [name for name in state if name.startswith(tuple(HEADS.values()))]
    if any(re.match(r"\w+\.1\.", name) for name in heads):
        return dict(state)
    copies = {
        re.sub(r"^(\w+)\.0\.", rf"\g<1>.{layer}.", name): state[name]
        for layer in range(1, depth(state))
        for name in heads
    }
    return dict(state) | copies


def _inside_decoder(renamed: Mapping[str, Tensor], state: Mapping[str, Tensor], transformer: str) -> dict[str, Tensor]:
    """Return the heads that stand inside the decoder too: of boxes where it refines, of classes in two stages."""
    kinds = []
    if any(name.startswith("box_head.1.") for name in state):
        kinds.append("bbox_embed.")
    if any(name.startswith("proposals.") for name in state):
        kinds.append("class_embed.")
    return {f"{transformer}decoder.{name}": value for name, value in renamed.items() if name.startswith(tuple(kinds))}


def depth(state: Iterable[str]) -> int:
    """Return the number of decoder layers.

    Args:
        state: Names of the tensors of our detector.
    """
    return len({name.split(".")[2] for name in state if name.startswith("decoder.layers.")})
