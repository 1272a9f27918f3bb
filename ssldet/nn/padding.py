"""padding of pixels -> padding of cells: which cells of a feature map hold no image."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def is_padded(padding: Bool[Tensor, "B H W"]) -> bool:
    """Say whether anything is padded; always true where looking would make a device wait, or a graph can't look.

    Args:
        padding: True where the canvas holds no image.
    """
    return padding.device.type != "cpu" or torch.compiler.is_compiling() or bool(padding.any())


def resize_padding(padding: Bool[Tensor, "B H W"], features: Float[Tensor, "B _ h w"]) -> Bool[Tensor, "B h w"]:
    """Bring padding to the real size of a feature map, which no stride foretells.

    Args:
        padding: True where the canvas holds no image.
        features: The map.
    """
    rows, columns = (
        _nearest(size, cells, padding.device)
        for size, cells in zip(padding.shape[-2:], features.shape[-2:], strict=True)
    )
    return padding[:, rows][:, :, columns]


def _nearest(size: int, cells: int, device: torch.device) -> Int[Tensor, " N"]:
    """Return the pixel that stands for each cell: what nearest interpolation takes, in terms that other runtimes share.

    Their own interpolations round the last digit otherwise, and a padding that ends there moves by a cell.
    """
    step = torch.full((), size, dtype=torch.float32, device=device) / cells
    return (torch.arange(cells, dtype=torch.float32, device=device) * step).long().clamp(max=size - 1)
