"""Recipes of SwAV: the paper's for large and for small batches, and one for a laptop.

Paper:     Caron et al. 2020, section 4 and appendix A; its released commands for what the paper leaves open.
Command:   ssldet pretrain imagenet/train --recipe swav/r50 --val imagenet/val --out runs/swav
           ssldet pretrain photos --recipe swav/tiny --val labelled-folders --out runs/swav
Time:      r50: 50 hours on 64 V100 (published). r50-small-batch: not published. tiny: minutes on two CPU cores.
Score:     r50: 75.3 % of ImageNet by a linear classifier, 65.7 % by nearest neighbours (published); r50-small-batch:
           74.3 % linear (published). Not measured with this code, which has not been run at that scale.
"""

from dataclasses import replace

from pretext.recipes import random_query_patch
from pretext.swav import SwAV
from ssldet.detectors.detr import DETRConfig
from ssldet.engine.run import Budget, DataConfig, OptimConfig, Run
from ssldet.nn.backbones import BackboneConfig


def r50() -> Run:
    """Pretrain as the paper does: 800 epochs in batches of 4,096, with LARS; steps counted on ImageNet.

    Needs: GPUs; 224 px; 50 hours on 64 V100 (published).
    """
    return Run(
        task=SwAV(),
        detector=DETRConfig(backbone=BackboneConfig(name="resnet50", frozen_norm=False, frozen_stages=0)),
        data=DataConfig(batch_size=4096, workers=8),
        # Ten epochs of warm-up.
        optim=OptimConfig(
            optimizer="lars", lr=4.8, lr_backbone=4.8, weight_decay=1e-6, schedule="cosine", warmup_steps=3128, clip=0.0
        ),
        budget=Budget(epochs=800.0),
        log_every=50,
        precision="bf16",
    )


def r50_small_batch() -> Run:
    """Pretrain in batches of 256, as the authors do on 4 devices: 400 epochs, with a queue from the 15th epoch on.

    Needs: GPUs; 224 px.
    """
    run = r50()
    return replace(
        run,
        task=SwAV(frozen_prototype_steps=5005, queue_length=3840, queue_start=75_000),
        data=DataConfig(batch_size=256, workers=8),
        optim=replace(run.optim, lr=0.6, lr_backbone=0.6, warmup_steps=0),
        budget=Budget(epochs=400.0),
    )


def tiny() -> Run:
    """Pretrain the backbone of `random_query_patch/tiny` by SwAV, on small crops, without an accelerator.

    Needs: CPU; 48 px; minutes.
    """
    whole = random_query_patch.tiny()
    assert isinstance(whole.detector, DETRConfig)
    return replace(
        whole,
        task=SwAV(
            large_size=48,
            small_size=24,
            large_crops=2,
            small_crops=2,
            large_scale=(0.3, 1.0),
            small_scale=(0.1, 0.3),
            colour_strength=0.5,
            blur=0.0,
            hidden_width=128,
            width=32,
            prototypes=60,
            frozen_prototype_steps=20,
            queue_length=256,
            queue_start=100,
            eval_side=48,
        ),
        detector=replace(whole.detector, backbone=BackboneConfig(name="tiny", frozen_norm=False, frozen_stages=0)),
        data=replace(whole.data, batch_size=64),
        optim=replace(whole.optim, lr_backbone=2e-3, warmup_steps=20),
        budget=Budget(steps=400),
    )
