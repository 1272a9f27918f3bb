"""network -> whether it rests, and whether a weight of it has changed since it was last looked at."""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn


def is_at_rest(body: nn.Module) -> bool:
    """Return whether a network neither trains nor is watched by hooks.

    Args:
        body: The network.
    """
    return not any(part.training or part._forward_hooks or part._forward_pre_hooks for part in body.modules())


def weights_of(body: nn.Module) -> Iterator[Tensor]:
    """Yield the parameters and buffers of a network.

    Args:
        body: The network.
    """
    for part in body.modules():
        yield from (weight for weight in part._parameters.values() if weight is not None)
        yield from (buffer for buffer in part._buffers.values() if buffer is not None)


def can_be_watched(weights: Sequence[Tensor]) -> bool:
    """Return whether PyTorch counts the changes of some weights.

    Args:
        weights: Parameters and buffers.
    """
    return not any(weight.is_inference() for weight in weights)


class Watch:
    """Remembers which weights were there, and in which version."""

    def __init__(self) -> None:
        """Remember none."""
        self._seen: list[tuple[Tensor, int, int]] = []

    def unchanged(self, weights: Sequence[Tensor]) -> bool:
        """Return whether these are the weights that were noted, and none of them has changed.

        Args:
            weights: Parameters and buffers.
        """
        return len(weights) == len(self._seen) and all(
            weight is known and weight.data_ptr() == place and weight._version == version
            for weight, (known, place, version) in zip(weights, self._seen, strict=True)
        )

    def note(self, weights: Sequence[Tensor]) -> None:
        """Remember these weights as they are now.

        Args:
            weights: Parameters and buffers.
        """
        self._seen = [(weight, weight.data_ptr(), weight._version) for weight in weights]
