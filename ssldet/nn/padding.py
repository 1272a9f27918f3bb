"""padding of pixels -> padding of the cells of a feature map."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def is_padded(padding: Bool[Tensor, "B H W"]) -> bool:
    """Tell whether anything is padded; always true on an accelerator, which would wait, and in an exported graph.

    Args:
        padding: True where the canvas holds no image.
    """
    return padding.device.type != "cpu" or torch.compiler.is_compiling() or bool(padding.any())


def resize_padding(padding: Bool[Tensor, "B H W"], features: Float[Tensor, "B _ h w"]) -> Bool[Tensor, "B h w"]:
    """Resize padding to the size of a feature map, which is not known from its stride alone.

    Args:
        padding: True where the canvas holds no image.
        features: The feature map.
    """
    rows, columns = (
        _nearest(size, cells, padding.device)
        for size, cells in zip(padding.shape[-2:], features.shape[-2:], strict=True)
    )
    return padding[:, rows][:, :, columns]


def _nearest(size: int, cells: int, device: torch.device) -> Int[Tensor, " N"]:
    """Return the pixel of each cell by nearest interpolation, in operations that all runtimes compute alike.

    Interpolations of other runtimes may round the last digit differently, which would move the padding by a cell.
    """
    step = torch.full((), size, dtype=torch.float32, device=device) / cells
    return (torch.arange(cells, dtype=torch.float32, device=device) * step).long().clamp(max=size - 1)


def mean_over_cells(cells: Float[Tensor, "B K D"], padding: Bool[Tensor, "B K"] | None = None) -> Float[Tensor, "B D"]:
    """Return the mean of the cells of each image, without those that hold no image.

    Args:
        cells: Cells of each image.
        padding: True for cells without image; `None` means that all hold one.
    """
    if padding is None:
        return cells.mean(1)
    shows = (~padding).unsqueeze(-1).to(cells)
    return (cells * shows).sum(1) / shows.sum(1).clamp(min=1)
