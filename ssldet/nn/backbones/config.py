"""words -> BackboneConfig: the network that computes features of the image; no tensors in this module."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ssldet.recipe import Within

WIDEST = 16_384
"""Largest number of channels of a layer of `tiny`."""


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The network that computes features of the image.

    Attributes:
        name: A torchvision or timm model (`resnet50`, `torchvision/resnet50`, `timm/resnet50`), a registered network of
            your own, or `tiny`, a small network for work without an accelerator. `resnet50.swav` is short for the name
            `resnet50` with the weights `swav`.
        weights: File or name of its weights; `None` leaves them fresh. The engine loads them, not `build_backbone`.
        coverage: Least share of the backbone's tensors and parameters that the weights must fill.
        output_stride: Stride of the last level; 16 dilates the last stage instead (DETR-DC5). `tiny` always has 8.
        frozen_norm: Replace batch normalisation by its fixed form.
        frozen_stages: How far the backbone stays frozen even when it trains: 1 freezes all up to stride 4 (DETR), 2 up
            to stride 8, and so on; 0 freezes nothing. A plain vision transformer counts each quarter of its blocks as
            one stage, and its patch embedding to the first.
        tiny_channels: Channels of the layers of `tiny`, whose last level joins them all.
        channels: Channels of the images; with other than three the first convolution is adapted. `data.channels` sets
            it.
        mean: Mean of each channel in 0..1, by which pixels are normalised; empty takes the network's own for RGB, and
            is measured on the training images for other channels.
        std: Deviation of each channel, likewise.
    """

    name: str = "resnet50"
    weights: str | None = None
    coverage: Annotated[float, Within(0, 1)] = 0.95
    output_stride: Literal[16, 32] = 32
    frozen_norm: bool = True
    frozen_stages: Annotated[int, Within(0, 5)] = 1
    tiny_channels: tuple[int, ...] = (32, 64, 128)
    channels: Annotated[int, Within(1, 1024)] = 3
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Split `NAME.TAG` into name and weights; a contradiction is left to `problems`."""
        name, tag = split_tag(self.name)
        if tag is not None and self.weights in (None, tag):
            object.__setattr__(self, "name", name)
            object.__setattr__(self, "weights", tag)

    def problems(self) -> list[str]:
        """Return contradictions between fields, one line each."""
        wrong = []
        name, tag = split_tag(self.name)
        if tag is not None:
            wrong.append(
                f"name: {self.name!r} asks for the weights {tag!r}, but weights={self.weights!r} for others; "
                f"use name={name!r} and say the weights once"
            )
        if name == "tiny" and self.output_stride != 32:
            wrong.append("output_stride: 'tiny' always has stride 8; leave output_stride at 32")
        if not self.tiny_channels or min(self.tiny_channels) < 1 or max(self.tiny_channels) > WIDEST:
            wrong.append(f"tiny_channels: {self.tiny_channels} must name at least one layer of 1 to {WIDEST} channels")
        if len(self.mean) != len(self.std) or len(self.mean) not in {0, self.channels}:
            wrong.append(
                f"mean, std: {len(self.mean)} and {len(self.std)} numbers; give {self.channels} of each, one per "
                "channel, or none"
            )
        elif not all(0 <= value <= 1 for value in self.mean) or not all(0 < value <= 1 for value in self.std):
            wrong.append("mean, std: must lie in 0..1, as pixels do, and deviations above 0")
        return wrong


def split_tag(word: str) -> tuple[str, str | None]:
    """Split `ARCHITECTURE.TAG`: the name of no architecture has a dot, so the first after the last slash starts a tag.

    Args:
        word: Such as `resnet50`, `timm/convnext_tiny.fb_in22k` or `resnet50.swav`.

    Returns:
        Name and tag; `None` in place of a missing tag.
    """
    library, slash, model = word.rpartition("/")
    name, _, tag = model.partition(".")
    return f"{library}{slash}{name}", tag or None
