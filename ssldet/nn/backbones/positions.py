"""network of BEiT's family -> the same network for images of any size, with resampled relative positions.

BEiT learns a bias for each distance between two cells, up to the size of its grid. timm builds the table for one grid.
Resampling it in every call, and not once, lets one model take images of many sizes and still train and save its own
table under its own name.
"""

from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

CLASS_TOKEN_DISTANCES = 3
"""Entries of a table that are no distance: from cell to class token, back, and from class token to itself."""


def open_positions(body: nn.Module) -> None:
    """Let a BEiT of timm take images of any size.

    Args:
        body: The network; changed in place. One without relative positions stays as it is.
    """
    patches: Any = body.patch_embed
    patches.strict_img_size, patches.dynamic_img_pad = False, True
    patches.register_forward_pre_hook(_measure)
    for module in body.modules():
        if getattr(module, "relative_position_bias_table", None) is not None:
            setattr(module, "_get_rel_pos_bias", partial(_bias, module, patches))  # noqa: B010  # not a tensor


def _measure(patches: Any, images: tuple[Tensor]) -> None:
    """Note the grid that the next images are cut into."""
    patches.grid_size = patches.dynamic_feat_size(images[0].shape[-2:])


def _bias(attention: Any, patches: Any) -> Float[Tensor, "1 H N N"]:
    """Return what is added to the attention between all tokens, the class token first."""
    from timm import layers
    from timm.models.beit import gen_relative_position_index

    library: Any = layers  # its types are incomplete
    table, (height, width) = attention.relative_position_bias_table, patches.grid_size
    distances = (2 * height - 1) * (2 * width - 1) + CLASS_TOKEN_DISTANCES
    resized = library.resize_rel_pos_bias_table_simple(table, (height, width), (distances, table.shape[1]))
    index = gen_relative_position_index((height, width), device=table.device)
    bias: Tensor = resized[index].permute(2, 0, 1)[None]
    return bias
