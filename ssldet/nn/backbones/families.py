"""a name or a pattern -> channels, strides and sizes of backbones, without weights, images or downloads."""

import warnings
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any

import torch

from ssldet.errors import ConfigError, suggest
from ssldet.nn.backbones import Backbone, backbone_names, build_backbone
from ssldet.nn.backbones.config import BackboneConfig


@dataclass(frozen=True)
class Description:
    """Channels, strides and size of one backbone.

    Attributes:
        name: Its full name.
        channels: Channels of its levels, from fine to coarse.
        strides: Strides of its levels.
        millions: Parameters, in millions, without head.
    """

    name: str
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    millions: float


TESTED: tuple[Description, ...] = (
    Description("tiny", (32, 64, 224), (2, 4, 8), 0.1),
    Description("torchvision/resnet18", (64, 128, 256, 512), (4, 8, 16, 32), 11.2),
    Description("torchvision/regnet_x_400mf", (32, 64, 160, 400), (4, 8, 16, 32), 5.1),
    Description("torchvision/mobilenet_v3_small", (16, 24, 48, 576), (4, 8, 16, 32), 0.9),
    Description("torchvision/shufflenet_v2_x0_5", (24, 48, 96, 1024), (4, 8, 16, 32), 0.3),
    Description("torchvision/densenet121", (256, 512, 1024, 1024), (4, 8, 16, 32), 7.0),
    Description("torchvision/vgg11", (256, 512, 512, 512), (4, 8, 16, 32), 9.2),
    Description("torchvision/swin_t", (96, 192, 384, 768), (4, 8, 16, 32), 27.5),
    Description("timm/resnet10t", (64, 128, 256, 512), (4, 8, 16, 32), 4.9),
    Description("timm/resnext26ts", (256, 512, 1024, 2048), (4, 8, 16, 32), 8.2),
    Description("timm/resnetv2_18", (64, 128, 256, 512), (4, 8, 16, 32), 11.2),
    Description("timm/regnetx_002", (24, 56, 152, 368), (4, 8, 16, 32), 2.3),
    Description("timm/efficientnet_lite0", (24, 40, 112, 320), (4, 8, 16, 32), 3.0),
    Description("timm/mobilenetv3_small_050", (8, 16, 24, 288), (4, 8, 16, 32), 0.3),
    Description("timm/mobilenetv4_conv_small", (32, 64, 96, 960), (4, 8, 16, 32), 1.3),
    Description("timm/ghostnet_050", (12, 20, 40, 80), (4, 8, 16, 32), 0.3),
    Description("timm/repvgg_a0", (48, 96, 192, 1280), (4, 8, 16, 32), 7.8),
    Description("timm/fastvit_t8", (48, 96, 192, 384), (4, 8, 16, 32), 3.2),
    Description("timm/convnext_atto", (40, 80, 160, 320), (4, 8, 16, 32), 3.4),
    Description("timm/convnextv2_atto", (40, 80, 160, 320), (4, 8, 16, 32), 3.4),
    Description("timm/inception_next_atto", (40, 80, 160, 320), (4, 8, 16, 32), 2.9),
    Description("timm/hgnetv2_b0", (64, 256, 512, 1024), (4, 8, 16, 32), 1.9),
    Description("timm/hrnet_w18_small", (128, 256, 512, 1024), (4, 8, 16, 32), 2.8),
    Description("timm/dla46_c", (64, 64, 128, 256), (4, 8, 16, 32), 1.0),
    Description("timm/edgenext_xx_small", (24, 48, 88, 168), (4, 8, 16, 32), 1.2),
    Description("timm/efficientvit_b0", (16, 32, 64, 128), (4, 8, 16, 32), 0.7),
    Description("timm/mambaout_femto", (48, 96, 192, 288), (4, 8, 16, 32), 5.8),
    Description("timm/poolformer_s12", (64, 128, 320, 512), (4, 8, 16, 32), 11.4),
    Description("timm/tiny_vit_5m_224", (64, 128, 160, 320), (4, 8, 16, 32), 5.1),
    Description("timm/pvt_v2_b0", (32, 64, 160, 256), (4, 8, 16, 32), 3.4),
    Description("timm/twins_pcpvt_small", (64, 128, 320, 512), (4, 8, 16, 32), 23.6),
    Description("timm/swin_tiny_patch4_window7_224", (96, 192, 384, 768), (4, 8, 16, 32), 27.5),
    Description("timm/swinv2_tiny_window8_256", (96, 192, 384, 768), (4, 8, 16, 32), 27.6),
    Description("timm/davit_tiny", (96, 192, 384, 768), (4, 8, 16, 32), 27.6),
    Description("timm/xcit_nano_12_p16_224", (128,), (16,), 2.5),
    Description("timm/vit_tiny_patch16_224", (192,), (16,), 5.5),
    Description("timm/vit_tiny_r_s16_p8_224", (192,), (32,), 6.1),
    Description("timm/deit_tiny_distilled_patch16_224", (192,), (16,), 5.5),
    Description("timm/vit_small_patch14_reg4_dinov2", (384,), (14,), 22.1),
    Description("timm/vit_small_patch16_dinov3", (384,), (16,), 21.6),
    Description("timm/beit_base_patch16_224", (768,), (16,), 85.8),
    Description("timm/eva02_tiny_patch14_224", (192,), (14,), 5.5),
)
"""One small member of each family that the contract tests run; they also measure these numbers again."""


def describe(name: str) -> Description:
    """Measure a backbone on PyTorch's meta device: nothing is allocated or computed.

    Args:
        name: As `BackboneConfig.name` takes it.

    Raises:
        ConfigError: The network can't be used as a backbone; the message says why.
    """
    config = BackboneConfig(name=name, frozen_stages=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the drawing of weights, which are not used
        try:
            with torch.device("meta"):
                backbone = build_backbone(config)
        except NotImplementedError:
            backbone = build_backbone(config)  # some networks read values while they are built
    return described(name, backbone)


def described(name: str, backbone: Backbone) -> Description:
    """Return channels, strides and size of a backbone that is built.

    Args:
        name: Its full name.
        backbone: The backbone.
    """
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    # Fixed norms hold as buffers the parameters of trained ones.
    buffers = backbone.body.named_buffers()
    parameters += sum(buffer.numel() for key, buffer in buffers if key.endswith(("weight", "bias")))
    return Description(name, backbone.level_channels, backbone.level_strides, round(parameters / 1e6, 1))


def matching(pattern: str) -> list[str]:
    """Return the names that fit a shell pattern, with or without their library.

    Args:
        pattern: Such as `timm/convnext*` or `swin*`.

    Raises:
        ConfigError: No name fits.
    """
    every = backbone_names()
    found = [name for name in every if fnmatchcase(name, pattern) or fnmatchcase(name.rpartition("/")[2], pattern)]
    if not found:
        nearest = suggest(pattern.strip("*"), [name.rpartition("/")[2] for name in every])
        raise ConfigError(f"no backbone fits {pattern!r}{nearest}; '*' lists all names")
    return found


def licence(name: str) -> str:
    """Return the licence of the weights that the library offers for a model; empty where it states none.

    Args:
        name: The full name.
    """
    library, _, model = name.partition("/")
    if library == "torchvision":
        return "bsd-3-clause"
    if library != "timm":
        return ""
    timm: Any = import_module("timm")
    config = timm.get_pretrained_cfg(model)
    return (getattr(config, "license", None) or "") if config else ""
