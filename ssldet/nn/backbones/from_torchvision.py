"""torchvision model -> Network: its blocks run one after the other, and the last one of each stride is a level."""

from collections import OrderedDict
from collections.abc import Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ssldet.errors import ConfigError
from ssldet.nn.backbones.config import BackboneConfig
from ssldet.nn.backbones.network import PROBE_SIDES, Network, blocks
from ssldet.nn.backbones.norms import freeze_norms

HEADS = {"avgpool", "fc", "classifier", "dropout", "flatten", "head", "heads", "aux1", "aux2", "AuxLogits"}
"""Names that torchvision gives to the modules after the last level."""
FINEST = 4
"""Smallest stride of a level."""
NO_DILATION = (
    "it has no form with output_stride=16; use 32, or a ResNet, RegNet or ConvNeXt of timm's, or a transformer whose "
    "patches have 16 pixels"
)
"""Message for models without a stride of 16."""


def build_torchvision(name: str, config: BackboneConfig) -> Network:
    """Build a torchvision model without its head.

    Raises:
        ConfigError: The model has no feature maps, or not with this stride.
    """
    from torchvision import models

    options: dict[str, Any] = {}
    if config.output_stride == 16:
        options["replace_stride_with_dilation"] = [False, False, True]
    try:
        model = models.get_model(name, weights=None, **options)
    except (TypeError, NotImplementedError) as error:  # no such option, or blocks that cannot do it
        raise ConfigError(NO_DILATION) from error
    if isinstance(model, models.VisionTransformer):
        raise ConfigError(f"torchvision's form takes only one image size; use 'timm/{TIMM_TWINS[name]}'")
    if isinstance(model, models.MaxVit):
        raise ConfigError("its windows fit only one image size; use 'timm/swin_tiny_patch4_window7_224' or 'resnet50'")
    original = tuple(model.state_dict())
    kept = OrderedDict((part, child) for part, child in model.named_children() if part not in HEADS)
    body = nn.Sequential(kept)
    if config.frozen_norm:
        freeze_norms(body)
    preset = models.get_model_weights(name).DEFAULT.transforms()
    return Network(
        body=body,
        run=partial(_run, ends=_level_ends(body), channels_last=isinstance(model, models.SwinTransformer)),
        original=original,
        mean=preset.mean,
        std=preset.std,
        interpolation=preset.interpolation.value,
    )


TIMM_TWINS = {
    "vit_b_16": "vit_base_patch16_224",
    "vit_b_32": "vit_base_patch32_224",
    "vit_l_16": "vit_large_patch16_224",
    "vit_l_32": "vit_large_patch32_224",
    "vit_h_14": "vit_huge_patch14_224",
}
"""torchvision's vision transformers -> the same architectures in timm."""


def _run(body: nn.Module, images: Tensor, *, ends: Collection[str], channels_last: bool) -> list[Tensor]:
    """Return the outputs of the blocks named `ends`; `channels_last` means that all but the last output are NHWC."""
    levels = []
    for name, block in blocks(body):
        images = block(images)
        if name in ends:
            levels.append(images)
    if channels_last:
        levels[:-1] = [level.permute(0, 3, 1, 2) for level in levels[:-1]]
    return levels


def _level_ends(body: nn.Module) -> tuple[str, ...]:
    """Return the names of the blocks whose output is a level: the stages of a ResNet, else the last of each stride."""
    names = [name for name, _ in blocks(body)]
    if "layer4" in dict(body.named_children()):
        stages = [[name for name in names if name.startswith(f"layer{number}.")] for number in range(1, 5)]
        return tuple(stage[-1] for stage in stages)
    body.eval()
    ends: dict[int, str] = {}
    device = next(body.parameters()).device
    side = PROBE_SIDES[-1]
    with torch.no_grad():
        features = torch.zeros(1, 3, side, side, device=device)
        for name, block in blocks(body):
            features = block(features)
            # The third axis is a side both in NCHW and in NHWC, as the image is square.
            stride = side // features.shape[2]
            if stride >= FINEST:
                ends[stride] = name
    return tuple(ends.values())
