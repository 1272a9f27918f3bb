"""Recipes of DETReg: the authors', one for a user's own photographs, and one for a laptop.

Paper:     Bar et al. 2022 (DETReg), section 4; its released configurations for what the paper leaves open.
Command:   ssldet pretrain imagenet/train --recipe detreg/imagenet --out runs/pre
           ssldet pretrain photos --recipe detreg/small --out runs/pre
           ssldet pretrain photos --recipe detreg/tiny --out runs/pre
Time:      imagenet: about 1.5 days on 8 V100 (published). small, tiny: minutes on two CPU cores.
Score:     Deformable DETR fine-tuned on COCO for 50 epochs: 45.5 AP; with 1 % of its labels 14.58, with 10 % 29.12,
           against 11.31 and 26.34 from the supervised backbone alone (published). Not measured with this code.
"""

from dataclasses import replace

from pretext.detreg import DETReg
from pretext.proposal_task import ProposalTask
from pretext.proposals import Proposals
from pretext.recipes import random_query_patch
from pretext.recipes.sizes import SMALL_SIZES
from ssldet.data.photometric import Jitter
from ssldet.detectors.deformable_detr import DeformableDETRConfig
from ssldet.detectors.detr import DETRConfig
from ssldet.engine.run import Budget, CheckpointConfig, DataConfig, OptimConfig, Run
from ssldet.nn.backbones import BackboneConfig

SWAV = BackboneConfig(name="resnet50", weights="swav")
WITHOUT_JITTER = Jitter(probability=0.0, grey=0.0, blur=0.0)


def imagenet() -> Run:
    """Pretrain Deformable DETR on ImageNet: 5 epochs, batch 192, frozen SwAV backbone, no drop of the rate.

    Needs: GPUs; 320–480 px; 1.5 days on 8 V100 (published).
    """
    return Run(
        task=DETReg(proposals=Proposals(first="smallest")),
        detector=DeformableDETRConfig(backbone=SWAV, num_classes=1, num_queries=300),
        data=DataConfig(batch_size=192, workers=8),
        optim=OptimConfig(lr=2e-4, lr_sampling_factor=0.1, weight_decay=1e-4, schedule="constant", clip=0.1),
        budget=Budget(epochs=5.0),
        checkpoint=CheckpointConfig(every_steps=2000),
        log_every=50,
    )


def coco() -> Run:
    """Pretrain Deformable DETR on COCO's images or ImageNet-100: 50 epochs with a drop at 40.

    Needs: GPUs; 320–480 px.
    """
    run = imagenet()
    return replace(run, optim=replace(run.optim, schedule="step", drops=(0.8,)), budget=Budget(epochs=50.0))


def detr() -> Run:
    """Pretrain DETR on ImageNet: 60 epochs, 100 queries, class weight 1.

    Needs: GPUs; 320–480 px.
    """
    run = imagenet()
    return replace(
        run,
        task=replace(run.task, class_weight=1.0),  # type: ignore[call-arg]
        detector=DETRConfig(backbone=SWAV, num_classes=1, num_queries=100),
        optim=replace(run.optim, lr=1e-4, lr_sampling_factor=1.0),
        budget=Budget(epochs=60.0),
    )


def small() -> Run:
    """Pretrain the detector of `detection/small` on regions of a user's own photographs, on two CPU cores.

    Needs: CPU; 192–256 px; half an hour.
    """
    run = random_query_patch.small()
    task = DETReg(
        proposals=Proposals(count=10, smallest_share=0.1, largest_share=0.9),
        crop_size=64,
        embedding_level=1,
        jitter=WITHOUT_JITTER,
        **SMALL_SIZES,
    )
    return replace(run, task=task)


def tiny() -> Run:
    """Pretrain a small detector on small images without an accelerator, on the regions of selective search.

    Needs: CPU; 64 px; minutes.
    """
    run = random_query_patch.tiny()
    return replace(
        run,
        task=DETReg(
            proposals=Proposals(count=10, smallest_share=0.15, largest_share=0.8, side=64),
            crop_size=32,
            embedding_level=1,
            jitter=WITHOUT_JITTER,
            scales=(64,),
            max_size=128,
            eval_scale=64,
            crop=0.0,
            class_weight=1.0,
        ),
        detector=replace(run.detector, num_queries=20),
    )


def deformable_tiny() -> Run:
    """Pretrain the Deformable DETR of `random_query_patch/deformable-tiny` on the regions of selective search.

    Needs: CPU; 64 px; minutes.
    """
    return on_deformable(tiny())


def on_deformable(run: Run) -> Run:
    """Return a tiny run with a Deformable DETR of as many queries and classes, and the rates and weights that it needs.

    Args:
        run: A run with a DETR.
    """
    other = random_query_patch.deformable_tiny()
    assert isinstance(run.detector, DETRConfig)
    sizes = {"num_queries": run.detector.num_queries, "num_classes": run.detector.num_classes}
    assert isinstance(run.task, ProposalTask)
    # Its focal loss is smaller than DETR's cross entropy.
    task = replace(run.task, class_weight=2.0)
    return replace(run, task=task, detector=replace(other.detector, **sizes), optim=other.optim)
