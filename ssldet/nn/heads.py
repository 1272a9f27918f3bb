"""decoder states -> boxes and other vectors: small networks that all decoder layers share."""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU between them; parameters are `layers.0`, `layers.1`, …, as in DETR's files."""

    def __init__(self, width_in: int, width_hidden: int, width_out: int, depth: int) -> None:
        """Stack the layers.

        Args:
            width_in: Width of the input.
            width_hidden: Width between the layers.
            width_out: Width of the output.
            depth: Number of linear layers.
        """
        super().__init__()
        widths = [width_in, *[width_hidden] * (depth - 1), width_out]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))

    def forward(self, states: Float[Tensor, "*N D"]) -> Float[Tensor, "*N E"]:
        """Apply the layers; the last has no ReLU."""
        *hidden, last = self.layers
        for layer in hidden:
            states = layer(states).relu()
        result: Tensor = last(states)
        return result


class BoxHead(MLP):
    """Three layers and a sigmoid: a state becomes a normalised cxcywh box."""

    def __init__(self, width: int) -> None:
        """Stack the layers.

        Args:
            width: Width of the decoder states.
        """
        super().__init__(width, width, 4, depth=3)

    def forward(self, states: Float[Tensor, "*N D"]) -> Float[Tensor, "*N 4"]:
        """Return normalised cxcywh."""
        return super().forward(states).sigmoid()


class OffsetHead(MLP):
    """Three layers: a state becomes an offset of the logits of a cxcywh box; zero at first, as in Deformable DETR."""

    def __init__(self, width: int) -> None:
        """Stack the layers.

        Args:
            width: Width of the states.
        """
        super().__init__(width, width, 4, depth=3)
        nn.init.zeros_(self._last.weight)
        nn.init.zeros_(self._last.bias)

    def begin_with_extent(self, logit: float) -> None:
        """Have boxes begin with a width and a height, where they are offsets from points, which have none.

        Args:
            logit: Of both.
        """
        nn.init.constant_(self._last.bias[2:], logit)

    @property
    def _last(self) -> nn.Linear:
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        return last
