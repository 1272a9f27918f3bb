"""Recipes of DINO: the authors' for ResNet-50 and ViT-S/16, and two for a laptop, from fresh and from given weights.

Paper:     Caron et al. 2021 (DINO), section 3; the commands and figures of its README for what the paper leaves open.
Command:   ssldet pretrain imagenet/train --recipe dino/vit-small --val imagenet/val --out runs/dino
           ssldet pretrain photos --recipe dino/small --val labelled-folders --out runs/dino
Time:      vit-small: 2.6 days on 16 GPUs (published). r50: not published. tiny, small: minutes on two CPU cores.
Score:     vit-small: 73.3 % of ImageNet by nearest neighbours, 76.1 % by a linear classifier (published). r50: 67.5 %
           and 75.3 % (published, of the released weights, which were trained for longer). Not measured with this code,
           which has not been run at that scale.
"""

from dataclasses import replace

from pretext.dino import DINO
from pretext.recipes import random_query_patch
from ssldet.detectors.deformable_detr import DeformableDETRConfig
from ssldet.detectors.detr import DETRConfig
from ssldet.engine.run import Budget, DataConfig, OptimConfig, Run
from ssldet.nn.backbones import BackboneConfig

IMAGES = 1_281_167
"""Images of ImageNet, on which the authors count epochs."""


def r50() -> Run:
    """Pretrain ResNet-50 by the authors' command: 100 epochs in batches of 512, SGD at 0.03 for every 256 images.

    Needs: GPUs; 224 px.
    """
    return Run(
        task=DINO(large_scale=(0.14, 1.0), small_scale=(0.05, 0.14)),
        detector=DETRConfig(backbone=BackboneConfig(name="resnet50", frozen_norm=False, frozen_stages=0)),
        data=DataConfig(batch_size=512, workers=8),
        # Ten epochs of warm-up.
        optim=OptimConfig(
            optimizer="sgd",
            lr=0.06,
            lr_backbone=0.06,
            weight_decay=1e-4,
            schedule="cosine",
            warmup_steps=10 * IMAGES // 512,
            clip=3.0,
            ema=0.996,
        ),
        budget=Budget(epochs=100.0),
        log_every=50,
        precision="bf16",
    )


def vit_small() -> Run:
    """Pretrain ViT-S/16 for 300 epochs in batches of 1,024, AdamW at 0.0005 for every 256 images.

    Needs: GPUs; 224 px.
    """
    run = r50()
    backbone = BackboneConfig(name="timm/vit_small_patch16_224", frozen_norm=False, frozen_stages=0)
    return replace(
        run,
        task=DINO(teacher_temperature=0.07, warmup=0.1, norm_last_layer=False, frozen_last_layer=1 / 300),
        detector=DETRConfig(backbone=backbone),
        data=replace(run.data, batch_size=1024),
        optim=replace(
            run.optim,
            optimizer="adamw",
            lr=2e-3,
            lr_backbone=2e-3,
            weight_decay=0.04,
            warmup_steps=10 * IMAGES // 1024,
        ),
        budget=Budget(epochs=300.0),
    )


def tiny() -> Run:
    """Pretrain the backbone of `random_query_patch/tiny` by DINO, on small crops, without an accelerator.

    Needs: CPU; 48 px.
    """
    whole = random_query_patch.tiny()
    assert isinstance(whole.detector, DETRConfig)
    return replace(
        whole,
        task=DINO(
            large_size=48,
            small_size=24,
            small_crops=2,
            large_scale=(0.3, 1.0),
            small_scale=(0.1, 0.3),
            # A small network tells photos apart by their colours, which a stronger jitter would destroy.
            colour_strength=0.3,
            blur=0.0,
            solarisation=0.0,
            hidden_width=128,
            bottleneck=32,
            prototypes=128,
            momentum=0.99,
            eval_side=48,
        ),
        detector=replace(whole.detector, backbone=BackboneConfig(name="tiny", frozen_norm=False, frozen_stages=0)),
        data=replace(whole.data, batch_size=64),
        optim=replace(whole.optim, lr_backbone=1e-3, warmup_steps=20),
        budget=Budget(steps=400),
    )


def small() -> Run:
    """Go on with the pretrained backbone of `random_query_patch/small` on your own photographs, on two CPU cores.

    Needs: CPU; 112 px.
    """
    whole, run = random_query_patch.small(), tiny()
    assert isinstance(whole.detector, DeformableDETRConfig)
    assert isinstance(run.task, DINO)
    backbone = replace(whole.detector.backbone, frozen_norm=False, frozen_stages=0)
    return replace(
        run,
        task=replace(run.task, large_size=96, small_size=48, colour_strength=0.5, eval_side=112, momentum=0.996),
        detector=replace(whole.detector, backbone=backbone),
        data=replace(whole.data, batch_size=16),
        optim=OptimConfig(lr=5e-4, lr_backbone=5e-5, weight_decay=0.04, clip=1.0, schedule="cosine", warmup_steps=20),
        budget=Budget(steps=400),
    )
