"""vectors of images -> numbers that fall when all images begin to look the same to a network."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

SMALLEST_SHARE = 1e-7
"""Added to the share of each singular value, as in RankMe, so that its logarithm is finite."""


def spread(vectors: Float[Tensor, "N E"]) -> Float[Tensor, ""]:
    """Return how widely the directions of vectors spread: 0 if all are the same (a collapse), 1 at most.

    The vectors are scaled to length one. The result is the standard deviation of a component over the vectors, averaged
    over the components, times the square root of their number.

    Args:
        vectors: One vector per image.
    """
    return F.normalize(vectors.float(), dim=1).std(0, correction=0).mean() * math.sqrt(vectors.shape[1])


@torch.no_grad()
def effective_rank(vectors: Float[Tensor, "N E"]) -> Float[Tensor, ""]:
    """Return how many directions vectors use: RankMe (Garrido et al. 2023), without labels and without training.

    This is the exponential of the entropy of the singular values, as shares of their sum; the mean is not removed. It
    is 1 if all vectors are multiples of one, and the smaller of N and E if they use all directions alike. Only numbers
    of vectors of one number and length can be compared. Collapse may also leave a rank of 1 of constant vectors whose
    lengths differ, or a large one of tiny noise around zero; `spread` tells these cases from health.

    Args:
        vectors: One vector per image, finite.
    """
    singular = torch.linalg.svdvals(vectors.float())
    shares = singular / singular.sum().clamp(min=torch.finfo(singular.dtype).tiny) + SMALLEST_SHARE
    return torch.exp(-(shares * shares.log()).sum())


def entropies(shares: Float[Tensor, "N C"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return how evenly vectors use some choices, and how undecided each is: entropies as shares of the largest.

    The first is that of the mean vector: near 0 if all decide for one choice. The second is the mean of those of single
    vectors: near 1 if none decides.

    Args:
        shares: Shares of the choices, which sum to one.
    """
    largest = torch.tensor(float(shares.shape[1])).log()
    return torch.special.entr(shares.mean(0)).sum() / largest, torch.special.entr(shares).sum(1).mean() / largest
