"""detectron2's configuration -> backbone: any of our networks for its heads, alone or with a feature pyramid."""

import math
from typing import Any

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor

from ssldet.nn.backbones import Backbone as OurBackbone
from ssldet.nn.backbones import BackboneConfig, build_backbone

PADDED_TO = 32
"""Sides of a batch are padded to multiples of this, so that each pyramid level has twice the sides of the next."""


class SSLDetBackbone(Backbone):  # type: ignore[misc]  # untyped where it is absent
    """One of our backbones with detectron2's interface: levels by name, from `res2` of stride 4 to `res5` of stride 32.

    Names of parameters are `body.` and the name in their own library.
    """

    def __init__(self, network: OurBackbone, features: list[str]) -> None:
        """Wrap a network.

        Args:
            network: The backbone.
            features: Names of the levels to return.

        Raises:
            ValueError: The backbone has no such level.
        """
        super().__init__()
        self.body = network.body
        # PyTorch does not register what a tuple holds, so that names of parameters do not begin with `network.` too.
        self._network = (network,)
        self.names = [f"res{int(math.log2(stride))}" for stride in network.level_strides]
        self._out_features = [name for name in features if self.names.index(name) >= 0]
        self._out_feature_channels = dict(zip(self.names, network.level_channels, strict=True))
        self._out_feature_strides = dict(zip(self.names, network.level_strides, strict=True))

    @property
    def network(self) -> OurBackbone:
        """The wrapped network, whose parameters are those of `body`."""
        return self._network[0]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the levels of normalised images."""
        levels = dict(zip(self.names, self.network.levels(x), strict=True))
        return {name: levels[name] for name in self._out_features}

    def train(self, mode: bool = True) -> Backbone:
        """Switch the network too, which keeps its frozen parts in evaluation mode."""
        super().train(mode)
        self.network.train(mode)
        return self

    @property
    def size_divisibility(self) -> int:
        """The number to whose multiples the sides of a batch are padded."""
        return PADDED_TO


def build_ssldet_backbone(cfg: Any, input_shape: ShapeSpec | None = None) -> SSLDetBackbone:
    """Return the backbone that `MODEL.SSLDET.BACKBONE` names, with `MODEL.RESNETS.OUT_FEATURES`.

    Args:
        cfg: detectron2's configuration; `MODEL.BACKBONE.FREEZE_AT` counts frozen stages as detectron2 does.
        input_shape: Shape of the input, which has three channels.
    """
    config = BackboneConfig(name=cfg.MODEL.SSLDET.BACKBONE, frozen_stages=max(0, cfg.MODEL.BACKBONE.FREEZE_AT - 1))
    return SSLDetBackbone(build_backbone(config), list(cfg.MODEL.RESNETS.OUT_FEATURES))


def build_ssldet_fpn_backbone(cfg: Any, input_shape: ShapeSpec | None = None) -> FPN:
    """Return the same backbone with a feature pyramid, as in the paper's Faster R-CNN.

    Args:
        cfg: detectron2's configuration.
        input_shape: Shape of the input, which has three channels.
    """
    return FPN(
        bottom_up=build_ssldet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


for builder in (build_ssldet_backbone, build_ssldet_fpn_backbone):
    if builder.__name__ not in BACKBONE_REGISTRY:  # the module may be imported twice
        BACKBONE_REGISTRY.register(builder)
