"""Recipes of Siamese DETR: the authors', and one for a laptop.

Paper:     Chen et al. 2023 (Siamese DETR), section 4; its released configurations for what the paper leaves open.
Command:   ssldet pretrain imagenet/train --recipe siamese_detr/imagenet --out runs/pre
           ssldet pretrain photos --recipe siamese_detr/small --out runs/pre
           ssldet pretrain photos --recipe siamese_detr/tiny --out runs/pre
Time:      imagenet: not stated by the authors; 300,000 steps of 256 images on 32 GPUs. small: half an hour
           on two CPU cores. tiny: minutes there.
Score:     fine-tuned on COCO: DETR 42.0 AP against 39.7 from a fresh transformer and 40.5 from UP-DETR; Deformable DETR
           46.4 against 45.5 and 45.3; on VOC, DETR 57.4 against 47.8 and 54.4 (published). Not measured with this code.
"""

from dataclasses import replace

from pretext.proposals import Proposals
from pretext.recipes import detreg, random_query_patch
from pretext.recipes.sizes import SMALL_SIZES
from pretext.siamese_detr import SiameseDETR
from ssldet.data.photometric import Jitter
from ssldet.detectors.deformable_detr import DeformableDETRConfig
from ssldet.detectors.detr import DETRConfig
from ssldet.engine.run import Budget, CheckpointConfig, DataConfig, OptimConfig, Run
from ssldet.nn.backbones import BackboneConfig

SWAV = BackboneConfig(name="resnet50", weights="swav")


def imagenet() -> Run:
    """Pretrain DETR on ImageNet: 300,000 steps with a drop at 200,000, batch 256, frozen SwAV backbone.

    Needs: GPUs; 320–480 px.
    """
    return Run(
        task=SiameseDETR(),
        detector=DETRConfig(backbone=SWAV, num_classes=1, num_queries=100, pre_norm=False),
        data=DataConfig(batch_size=256, workers=8),
        optim=OptimConfig(lr=1e-4, weight_decay=1e-4, schedule="step", drops=(2 / 3,), clip=0.1),
        budget=Budget(steps=300_000),
        checkpoint=CheckpointConfig(every_steps=5000),
        log_every=50,
    )


def coco() -> Run:
    """Pretrain DETR on COCO's images: 120,000 steps with a drop at 80,000, weight 0.3 for the agreement of views.

    Needs: GPUs; 320–480 px.
    """
    run = imagenet()
    return replace(run, task=SiameseDETR(global_weight=0.3), budget=Budget(steps=120_000))


def deformable() -> Run:
    """Pretrain Deformable DETR with 300 queries on ImageNet.

    Needs: GPUs; 320–480 px.
    """
    return replace(imagenet(), detector=DeformableDETRConfig(backbone=SWAV, num_classes=1, num_queries=300))


def small() -> Run:
    """Pretrain the detector of `detection/small` on two views of a user's own photographs, on two CPU cores.

    Needs: CPU; 192–256 px; half an hour.
    """
    run = random_query_patch.small()
    task = SiameseDETR(
        proposals=Proposals(count=9, smallest_share=0.1, largest_share=0.9),
        patch_size=64,
        scales=SMALL_SIZES["scales"],
        max_size=SMALL_SIZES["max_size"],
        eval_scale=SMALL_SIZES["eval_scale"],
        # Half of the strength of the authors': few steps must do.
        jitter=Jitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05, grey=0.0, blur=0.0),
        grouped_attention=True,
        matching="own_group",
        normalise_patches=True,
        class_weight=2.0,
        global_weight=0.3,
    )
    return replace(run, task=task)


def tiny() -> Run:
    """Pretrain the detector of `random_query_patch/tiny` on small images: one query per region, own groups.

    Needs: CPU; 64 px; minutes.
    """
    run = random_query_patch.tiny()
    return replace(
        run,
        task=SiameseDETR(
            proposals=Proposals(count=9, smallest_share=0.15, side=64),
            patch_size=32,
            scales=(64,),
            max_size=128,
            eval_scale=64,
            jitter=Jitter(probability=0.0, grey=0.0, blur=0.0),
            grouped_attention=True,
            matching="own_group",
            normalise_patches=True,
            global_weight=0.3,
        ),
    )


def deformable_tiny() -> Run:
    """Pretrain the Deformable DETR of `random_query_patch/deformable-tiny` on two views of an image.

    Needs: CPU; 64 px; minutes.
    """
    return detreg.on_deformable(tiny())
