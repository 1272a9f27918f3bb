"""tensors of efficientnet_pytorch and efficientnet-lite-pytorch -> timm's names for the same network.

Those projects number the blocks through; timm counts them within stages and names layers by what a block has.
"""

import re
from collections.abc import Collection, Iterable, Mapping

from torch import Tensor

from ssldet.errors import CheckpointError

BLOCK = re.compile(r"(?P<prefix>(?:.*\.)?)_blocks\.(?P<number>\d+)\.(?P<layer>_\w+)\.(?P<last>\w+)")
OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
"""Layers outside the blocks."""
EXPANDING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_se_reduce": "se.conv_reduce",
    "_se_expand": "se.conv_expand",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
"""Layers of a block that widens its input first."""
PLAIN = EXPANDING | {"_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
"""Layers of a block that does not."""


def has_efficientnet(names: Iterable[str]) -> bool:
    """Tell whether a state has the names of those projects, after any prefix.

    Args:
        names: All names of the state.
    """
    return any((match := BLOCK.fullmatch(name)) and match["layer"] == "_depthwise_conv" for name in names)


def timm_efficientnet(state: Mapping[str, Tensor], original: Collection[str]) -> dict[str, Tensor]:
    """Return the same tensors under timm's names; names of anything else stay as they are.

    Args:
        state: All tensors of a file.
        original: Names of the state of timm's own model, from which the number of blocks of each stage is read; where
            it has no such blocks, nothing is renamed.

    Raises:
        CheckpointError: The file holds another number of blocks than the network.
    """
    places = _places(original)
    if not places:
        return dict(state)
    numbers = {int(match["number"]) for name in state if (match := BLOCK.fullmatch(name))}
    if numbers != set(range(len(places))):
        raise CheckpointError(
            f"holds an EfficientNet of {len(numbers)} blocks, and the backbone has {len(places)}; choose the file's "
            "own network, such as 'timm/tf_efficientnet_lite0'"
        )
    return {_name(name, state, places): value for name, value in state.items()}


def _places(original: Iterable[str]) -> list[str]:
    """Return timm's name of each block, in order."""
    found = {
        (int(match[1]), int(match[2])) for name in original if (match := re.match(r"blocks\.(\d+)\.(\d+)\.", name))
    }
    return [f"blocks.{stage}.{block}" for stage, block in sorted(found)]


def _name(name: str, state: Collection[str], places: list[str]) -> str:
    match = BLOCK.fullmatch(name)
    if match is None:
        prefix, layer, last = re.fullmatch(r"((?:.*\.)?)([^.]*)\.([^.]+)|.*", name).groups()  # type: ignore[union-attr]
        return f"{prefix}{OUTSIDE[layer]}.{last}" if layer in OUTSIDE else name
    block = f"{match['prefix']}_blocks.{match['number']}."
    layers = EXPANDING if f"{block}_expand_conv.weight" in state else PLAIN
    layer = layers.get(match["layer"], match["layer"])
    return f"{match['prefix']}{places[int(match['number'])]}.{layer}.{match['last']}"
