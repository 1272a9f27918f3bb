"""Small detectors that several tests build."""

from ssldet.detectors.deformable_detr import DeformableDETRConfig
from ssldet.detectors.detr import DETRConfig
from ssldet.detectors.fp_detr import FPDETRConfig
from ssldet.nn.backbones import BackboneConfig

SMALL_DETR = DETRConfig(
    backbone=BackboneConfig(name="resnet18"),
    num_classes=5,
    num_queries=12,
    width=24,
    heads=4,
    encoder_layers=1,
    decoder_layers=2,
    feedforward=40,
)
"""A DETR with every part of a large one, on a network that every format knows."""

TINY_DETR = DETRConfig(
    backbone=BackboneConfig(name="tiny", tiny_channels=(6, 10, 14), frozen_stages=0),
    num_classes=4,
    num_queries=12,
    width=24,
    heads=3,
    encoder_layers=2,
    decoder_layers=3,
    feedforward=20,
    dropout=0.0,
)
"""A DETR on a tiny network of our own, without dropout."""

SMALL_DEFORMABLE_DETR = DeformableDETRConfig(
    backbone=BackboneConfig(name="resnet18"),
    num_classes=5,
    num_queries=11,
    width=64,
    heads=4,
    encoder_layers=2,
    decoder_layers=3,
    feedforward=40,
    encoder_points=2,
    decoder_points=3,
)
"""A Deformable DETR with four levels, likewise; its two options are off."""

SMALL_FP_DETR = FPDETRConfig(
    num_classes=5,
    num_queries=11,
    tokenizer_width=24,
    width=64,
    heads=4,
    encoder_layers=2,
    joined_layers=3,
    feedforward=40,
    points=2,
)
"""An FP-DETR with every part of a large one: four levels, queries that join after two layers, three that answer."""
