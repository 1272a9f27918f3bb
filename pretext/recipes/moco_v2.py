"""Recipes of MoCo v2: the paper's, and one for a laptop.

Paper:     Chen et al. 2020 (MoCo v2), table 1, on He et al. 2020 (MoCo), section 3.3.
Command:   ssldet pretrain imagenet/train --recipe moco_v2/r50 --val imagenet/val --out runs/moco
           ssldet pretrain photos --recipe moco_v2/tiny --val labelled-folders --out runs/moco
Time:      r50: 53 hours for 200 epochs on 8 V100 (published). tiny: minutes on two CPU cores.
Score:     71.1 % of ImageNet by a linear classifier after 800 epochs, 67.5 % after 200 (published; `--epochs 200`). Not
           measured with this code, which has not been run at that scale.
"""

from dataclasses import replace

from pretext.moco_v2 import MoCoV2
from pretext.recipes import random_query_patch
from ssldet.detectors.detr import DETRConfig
from ssldet.engine.run import Budget, DataConfig, OptimConfig, Run
from ssldet.nn.backbones import BackboneConfig


def r50() -> Run:
    """Pretrain as the paper does: 800 epochs in batches of 256, SGD at 0.03, cosine.

    Needs: GPUs; 224 px; 9 days on 8 V100 (published: 53 hours for 200 epochs).
    """
    return Run(
        task=MoCoV2(),
        detector=DETRConfig(backbone=BackboneConfig(name="resnet50", frozen_norm=False, frozen_stages=0)),
        data=DataConfig(batch_size=256, workers=8),
        optim=OptimConfig(optimizer="sgd", lr=0.03, lr_backbone=0.03, weight_decay=1e-4, schedule="cosine", clip=0.0),
        budget=Budget(epochs=800.0),
        log_every=50,
    )


def tiny() -> Run:
    """Pretrain the backbone of `random_query_patch/tiny` by MoCo v2, on small crops, without an accelerator.

    Needs: CPU; 48 px; minutes.
    """
    whole = random_query_patch.tiny()
    assert isinstance(whole.detector, DETRConfig)
    return replace(
        whole,
        task=MoCoV2(
            crop_size=48,
            min_scale=0.3,
            # A small network tells photos apart by their colours, which a stronger jitter would destroy.
            colour_strength=0.1,
            blur=0.0,
            hidden_width=128,
            width=64,
            queue_length=256,
            momentum=0.99,
            key_groups=4,
            eval_side=48,
        ),
        detector=replace(whole.detector, backbone=BackboneConfig(name="tiny", frozen_norm=False, frozen_stages=0)),
        data=replace(whole.data, batch_size=64),
        optim=replace(whole.optim, lr_backbone=2e-3, warmup_steps=20),
        budget=Budget(steps=400),
    )
