"""Runs of random query patch detection."""

from pretext.random_query_patch import RandomQueryPatch
from ssldet.data.photometric import Jitter
from ssldet.detectors.detr import DETRConfig
from ssldet.engine.run import Budget, DataConfig, OptimConfig, Run
from ssldet.nn.backbones import BackboneConfig


def tiny() -> Run:
    """Tiny."""
    return Run(
        task=RandomQueryPatch(num_patches=10, patch_size=32, smallest_share=0.2, largest_share=0.6, image_sides=(64,), eval_side=64, longest_side=128,
            jitter=Jitter(probability=0.0, grey=0.0, blur=0.0), matching="own_group", normalise_patches=True),
        detector=DETRConfig(backbone=BackboneConfig(name="tiny", frozen_stages=0), num_classes=1, num_queries=10, width=64, heads=4,
            encoder_layers=1, decoder_layers=2, feedforward=128, dropout=0.0, normalise_features=True, query_scale=0.3, position_at_input=True),
        data=DataConfig(batch_size=32, workers=0), optim=OptimConfig(lr=2e-3, clip=1.0, schedule="cosine", warmup_steps=50), budget=Budget(steps=400))
