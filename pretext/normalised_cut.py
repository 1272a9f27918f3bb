"""cells of a backbone -> boxes of what stands out: normalised cuts, one object after the other.

Two cells are joined where their features are alike. The cut that keeps like cells together is found by the second
smallest eigenvector of the graph (Shi and Malik 2000); the side with the most extreme cell is the object, of which the
part that is connected to that cell counts (Wang et al. 2023, TokenCut). Further objects are looked for among the cells
that are left.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.ndimage import label
from torch import Tensor

APART = 1e-5
"""Weight between cells that are not alike: the graph stays connected."""
FEWEST = 4
"""Cells that must be left for another cut."""
WHOLE = 0.9
"""Second eigenvalue from which on a graph has no two sides; where all cells are alike, it is 1."""


def objects_of(cells: Float[Tensor, "E h w"], *, similarity: float, count: int) -> Float[Tensor, "R 4"]:
    """Return boxes in normalised xyxy, what stands out most first.

    Args:
        cells: Features of one image.
        similarity: Cosine above which two cells are alike, after the mean of all cells is taken away.
        count: Most objects to look for.
    """
    _, height, width = cells.shape
    features = cells.flatten(1).T
    features = F.normalize(features - features.mean(0), dim=1)
    alike = ((features @ features.T) > similarity).double().clamp(min=APART).numpy()
    left = np.arange(height * width)
    boxes: list[list[int]] = []
    while len(boxes) < count and len(left) >= FEWEST:
        side = _stands_out(alike[np.ix_(left, left)])
        if side is None:
            break
        chosen = np.zeros(height * width, dtype=bool)
        chosen[left[side]] = True
        regions, _ = label(chosen.reshape(height, width))
        region = regions == regions.flat[left[side[0]]]
        rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
        boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        left = left[~region.ravel()[left]]
    return torch.tensor(boxes).view(-1, 4) / torch.tensor([width, height, width, height])


def _stands_out(alike: NDArray[np.float64]) -> NDArray[np.int64] | None:
    """Return the nodes of the side that stands out, the most extreme one first; `None` if there are no two sides."""
    degrees = alike.sum(1)
    values, vectors = eigh(np.diag(degrees) - alike, np.diag(degrees), subset_by_index=[1, 1])
    vector = vectors[:, 0]
    seed = int(np.abs(vector).argmax())
    if values[0] > WHOLE:
        return None
    above = vector > vector.mean()
    side = np.flatnonzero(above == above[seed])
    return np.concatenate([[seed], side[side != seed]])
