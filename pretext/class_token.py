"""images, a class token -> a vector of each image: what tasks share that teach FP-DETR's layers without queries.

One token joins the cells in the last layers, where object queries will join them in detection; nothing is boxed. The
adaptor, which only queries need, is left out with its norms.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ssldet.detectors.base import Detector, DetectorConfig
from ssldet.detectors.fp_detr import FPDETR, FPDETRConfig
from ssldet.queries import PlacedQueries

UNTAUGHT = frozenset({"adaptor", "queries", "box_head", "class_head", "mask_head"})
"""Sections that a class token does without: they neither learn nor are handed over."""


class ClassToken(nn.Module):
    """The token that stands in the place of object queries.

    Attributes:
        token: Its content, position, and the point that it looks around.
    """

    def __init__(self, width: int) -> None:
        """Draw the token.

        Args:
            width: Width of the transformer.
        """
        super().__init__()
        self.token = PlacedQueries(1, width)

    def forward(
        self, detector: FPDETR, pixels: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]
    ) -> Float[Tensor, "B D"]:
        """Return the token's state after the last layer.

        Args:
            detector: Whose layers it joins.
            pixels: Images of one size, without padding.
        """
        encoded = detector.encode(detector.normalise(pixels))
        token = self.token(len(pixels))
        with torch.autocast(pixels.device.type, enabled=False):
            points = self.token.points(token.position.float())
        return detector.describe_tokens(encoded, token, points)[-1, :, 0]


def joined(detector: Detector) -> FPDETR:
    """Return a detector whose layers a class token can join."""
    assert isinstance(detector, FPDETR), "a task with a class token was checked against its detector"
    return detector


def problems_with_joining(task: object, detector: DetectorConfig) -> list[str]:
    """Say that a class token joins the layers of no other detector; empty for an FP-DETR.

    Args:
        task: The task.
        detector: Any detector's configuration.
    """
    if isinstance(detector, FPDETRConfig):
        return []
    return [
        f"{type(task).__name__}: teaches a class token, which joins the layers of 'fp_detr' and not those of "
        f"{type(detector).__name__}; choose detector='fp_detr'"
    ]
