"""Backbone for RGB -> Backbone for images of any number of channels: its first convolution and its statistics.

The convolution gets the weights of red, green and blue over and over, scaled so that sums stay what they were (Ross
Wightman's rule in timm); a single channel gets their sum. The rest of the network does not change.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssldet.errors import ConfigError
from ssldet.nn.backbones.network import Backbone

RGB = 3
UNMEASURED = (0.5, 0.25)
"""Mean and deviation of a channel for which none are known."""


def take_channels(backbone: Backbone, channels: int, mean: Sequence[float] = (), std: Sequence[float] = ()) -> None:
    """Make a backbone take images of this number of channels, in place.

    Args:
        backbone: A backbone, which may take that number already.
        channels: Number of channels.
        mean: Mean of each channel in 0..1; empty keeps the network's own, or takes `UNMEASURED` for other channels.
        std: Deviation of each channel, likewise.

    Raises:
        ConfigError: It has no convolution that takes RGB.
    """
    if channels != backbone.in_channels:
        name, conv = _first_convolution(backbone.body)
        widened = for_channels(conv.weight.detach(), channels)
        conv.weight = nn.Parameter(widened, requires_grad=conv.weight.requires_grad)
        conv.in_channels = channels
        backbone.in_channels, backbone.stem = channels, f"{name}.weight"
        mean, std = mean or UNMEASURED[:1] * channels, std or UNMEASURED[1:] * channels
    if mean:
        backbone.set_statistics(mean, std)


def for_channels(weight: Float[Tensor, "E _ h w"], channels: int) -> Float[Tensor, "E c h w"]:
    """Return the weights of a first convolution for RGB as those for another number of channels.

    Args:
        weight: Weights of the convolution.
        channels: Number of channels.
    """
    if channels == 1:
        return weight.sum(1, keepdim=True)
    repeats = -(-channels // weight.shape[1])
    return weight.repeat(1, repeats, 1, 1)[:, :channels] * (weight.shape[1] / channels)


def _first_convolution(body: nn.Module) -> tuple[str, nn.Conv2d]:
    for name, module in body.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == RGB and module.groups == 1:
            return name, module
    raise ConfigError(
        "channels: it has no convolution that takes three channels; choose another backbone, or channels=3"
    )


def adapted(backbone: Backbone, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of a file for RGB as a backbone for other channels takes them; unchanged where nothing differs.

    Args:
        backbone: Where they are to be loaded.
        found: Tensors by their name in the backbone.
    """
    weight = found.get(backbone.stem)
    if weight is None or weight.dim() != 4 or weight.shape[1] != RGB or backbone.in_channels == RGB:
        return found
    return {**found, backbone.stem: for_channels(weight, backbone.in_channels)}


def statistics(images: Sequence[Float[Tensor, "c _ _"]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of each channel over all pixels of some images.

    Args:
        images: Pixels in 0..1; one image or more.
    """
    pixels = torch.cat([image.flatten(1).double() for image in images], dim=1)
    deviation = pixels.std(1, correction=0).clamp(min=1e-6)
    rounded = [[round(value, 6) for value in values.tolist()] for values in (pixels.mean(1), deviation)]
    return tuple(rounded[0]), tuple(rounded[1])
