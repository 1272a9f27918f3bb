"""pixels -> keys, by a momentum encoder that shares no batch statistics with the queries; and their contrast.

Batch norm makes an output depend on the other images of its batch. If query and key were normalised in the same batch,
the network could match them by the batch's statistics instead of the image's content.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from lightly.loss import NTXentLoss
from lightly.models.utils import batch_shuffle, batch_unshuffle
from torch import Tensor

from ssldet import ranks

Encode = Callable[[Sequence[Tensor]], Tensor]
"""Pixels of each group -> one vector per image, in the order of the groups."""


@torch.no_grad()
def encode_apart(pixels: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"], groups: int, encode: Encode) -> Tensor:
    """Encode images in random groups, over all devices, and return the vectors in the order of the images.

    Args:
        pixels: All of one size.
        groups: Number of groups over all devices together; each holds at least two images, as batch norm needs.
        encode: Encodes every group by itself.
    """
    several = ranks.world() > 1
    shuffled, order = batch_shuffle(pixels, distributed=several)
    here = min(max(1, groups // ranks.world()), max(1, len(pixels) // 2))
    vectors: Tensor = batch_unshuffle(encode(shuffled.tensor_split(here)), order, distributed=several)
    return vectors


def contrast(
    loss: NTXentLoss, queries: Float[Tensor, "N D"], keys: Float[Tensor, "N D"]
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """Return the loss of finding the key of each query among those of earlier batches, and the mean similarities.

    Args:
        loss: Holds the queue of earlier keys, which takes these in.
        queries: Projections of the trained network.
        keys: Projections of the momentum encoder, in the same order.
    """
    # Of the queue before it takes the new keys in.
    negative = loss.memory_bank.bank.mean(0)
    with torch.autocast(queries.device.type, enabled=False):
        value = loss(queries, keys)
    directions = F.normalize(queries.detach(), dim=1)
    return value, {
        "positive_similarity": (directions * F.normalize(keys, dim=1)).sum(1).mean(),
        "negative_similarity": directions.mean(0) @ negative,
    }
