"""BackboneConfig -> the small network `tiny`, which trains without an accelerator."""

from collections import OrderedDict
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssldet.nn.backbones.config import BackboneConfig
from ssldet.nn.backbones.network import Network
from ssldet.nn.backbones.norms import FixedNorm


def build_tiny(_: str, config: BackboneConfig) -> Network:
    """Build as many layers of stride 2 as the configuration names channels."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        (f"layer{number}", _layer(before, after, config.frozen_norm))
        for number, (before, after) in enumerate(pairwise((3, *config.tiny_channels)), start=1)
    )
    # So few layers are no faster when they are folded.
    return Network(body=nn.Sequential(layers), run=_run, folds=False)


def _run(body: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the layers' outputs, the last one joined by the others, which carry the most with fresh weights."""
    levels = []
    for layer in body.children():
        images = layer(images)
        levels.append(images)
    # Not adaptive pooling, which a graph for images of any size can't hold; layers round up, and so does this.
    steps = [2 ** (len(levels) - number) for number in range(1, len(levels) + 1)]
    pooled = [
        F.avg_pool2d(level, step, ceil_mode=True, count_include_pad=False)
        for level, step in zip(levels, steps, strict=True)
    ]
    return [*levels[:-1], torch.cat(pooled, dim=1)]


def _layer(before: int, after: int, frozen_norm: bool) -> nn.Sequential:
    conv = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    norm = FixedNorm(after) if frozen_norm else nn.BatchNorm2d(after)
    return nn.Sequential(OrderedDict(conv=conv, norm=norm, relu=nn.ReLU()))
