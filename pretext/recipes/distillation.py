"""Recipes of dense distillation: from DINOv2 at full scale, on a user's photographs, and for a laptop.

Paper:     none; see `pretext/distillation.py` for its relatives.
Command:   ssldet pretrain photos --recipe distillation/deformable-r50 --val held-out --out runs/pre
           ssldet pretrain photos --recipe distillation/tiny --val held-out --out runs/pre
Time:      r50, deformable-r50: not measured. small, tiny: minutes on two CPU cores.
Score:     none published. Not measured with this code, which has not been run at full scale.
"""

from dataclasses import replace

from pretext.distillation import Distillation
from pretext.recipes import random_query_patch
from pretext.recipes.sizes import SMALL_SIZES
from ssldet.detectors.deformable_detr import DeformableDETRConfig
from ssldet.engine.run import Budget, OptimConfig, Run
from ssldet.nn.backbones import BackboneConfig

LEARNING = BackboneConfig(name="tiny", frozen_norm=False, frozen_stages=0)
"""The small backbone of the recipes named tiny, as one that learns."""


def r50() -> Run:
    """Align DETR on a SwAV ResNet-50 with DINOv2 ViT-S/14, on the images and at the rates of UP-DETR.

    Needs: GPUs; 320–480 px.
    """
    run = random_query_patch.r50()
    optim = replace(run.optim, lr_backbone=1e-5, schedule="cosine", warmup_steps=500)
    return replace(run, task=Distillation(), optim=optim, budget=Budget(epochs=10.0))


def deformable_r50() -> Run:
    """Align Deformable DETR likewise.

    Needs: GPUs; 320–480 px.
    """
    run, whole = r50(), random_query_patch.deformable_r50()
    optim = replace(run.optim, lr=whole.optim.lr, lr_backbone=2e-5, lr_sampling_factor=0.1)
    return replace(run, detector=whole.detector, optim=optim)


def small() -> Run:
    """Warm up the transformer of `detection/small` on a user's photographs; the teacher is its own frozen backbone.

    Needs: CPU; 192–256 px.
    """
    run = random_query_patch.small()
    assert isinstance(run.detector, DeformableDETRConfig)
    task = Distillation(teacher=run.detector.backbone, freeze_backbone=True, **SMALL_SIZES)
    optim = OptimConfig(lr=4e-4, clip=1.0, schedule="cosine", warmup_steps=50, ema=0.995)
    return replace(run, task=task, optim=optim, budget=Budget(steps=500))


def tiny() -> Run:
    """Align the detector of `random_query_patch/tiny` with a network of fresh weights, without any download.

    Needs: CPU; 56–72 px.
    """
    return _small(random_query_patch.tiny())


def deformable_tiny() -> Run:
    """Align the small Deformable DETR of `random_query_patch/deformable-tiny` likewise.

    Needs: CPU; 56–72 px.
    """
    return _small(random_query_patch.deformable_tiny())


def _small(run: Run) -> Run:
    task = Distillation(
        teacher=BackboneConfig(name="tiny", tiny_channels=(24, 48, 96), frozen_stages=0),
        scales=(56, 64, 72),
        max_size=128,
        eval_scale=64,
        crop_scales=(72, 80),
        crop_range=(48, 80),
    )
    detector = replace(run.detector, backbone=LEARNING)  # type: ignore[call-arg]
    return replace(run, task=task, detector=detector, budget=Budget(steps=300))
