"""Recipes of random query patch detection: ours, the paper's, the released code's, and one for a laptop.

Paper:     Dai et al. 2021 (UP-DETR), section 4.1 and appendix A; its code for what the paper leaves open.
Command:   ssldet pretrain imagenet/train --recipe random_query_patch/r50 --out runs/pre
           ssldet pretrain photos --recipe random_query_patch/tiny --out runs/pre
Time:      r50, paper, released: 2 hours per epoch, 5 days in all on 8 V100 (published). tiny: minutes on two CPU cores.
Score:     fine-tuned on COCO for 300 epochs: 42.8 AP (published, paper), 43.1 (published, released weights), against
           42.1 from the same backbone with a fresh transformer. Not yet measured with this code.
           deformable-r50: Deformable DETR on COCO 45.3 AP after UP-DETR, 45.5 without; on VOC 56.4 and 56.1 (published,
           README of Siamese DETR, whose settings of UP-DETR are not stated). Ours are r50's schedule and jitter, and
           queries, rates and weight of the class of Deformable DETR's authors.
Differences from one another:

    field             released        paper           r50             r50-own-groups   tiny
    matching          global          global          global          own_group        own_group
    shuffle           no              yes             no              no               no
    no_match          0.1             M/N             M/N             M/N              M/N
    image_sides       ten, no 384     all from 320    all from 320    all from 320     64
    jitter            half SimCLR's   SimCLR's        half SimCLR's   half SimCLR's    none: for a fresh backbone

At full scale matching is the authors', because nobody has measured the other there: with full jitter, which a good
backbone was made for, own groups did not help at tiny scale (1.75 AP against 3.39 for global matching and 1.93 without
pretraining), and without jitter they did (6.27 against 3.61); see docs/flagship.md.

Own groups teach more about the patch. `tiny`, cut to 400 steps on 3,000 generated scenes, finds the
patches of held-out scenes with an overlap of 0.33 after matching within own groups and of 0.18 after global matching
(measured, one seed); the best constant box reaches 0.26. Longer schedules reach 0.48 in 600 steps and 0.52 in 800. With
one query per patch only the box is left to learn: in a trial with 800 steps, two queries per patch reached 0.35.
`deformable-tiny`, whose queries begin where the image agrees with their patch, reaches 0.45 in 400 steps, where `tiny`
reaches 0.40 (measured, one seed each); with learned starts of the queries it reached 0.28.
`small` finds patches of held-out photos at 0.22 in 300 steps at 160 pixels and at 0.25 in 600 at 288, the constant box
at 0.20 (three seeds); before proposals looked for resemblance it had not learned to (0.17 after 300 steps, one seed).
On 755 photos, template matching finds patches at 0.34 without jitter and 0.20 with UP-DETR's, the constant box at 0.27.
"""

from dataclasses import replace

from pretext.random_query_patch import RELEASED_SIDES, RandomQueryPatch
from ssldet.data.photometric import Jitter
from ssldet.detectors.deformable_detr import DeformableDETRConfig
from ssldet.detectors.detr import DETRConfig
from ssldet.engine.run import Budget, CheckpointConfig, DataConfig, OptimConfig, Run
from ssldet.nn.backbones import BackboneConfig

FOCAL_WEIGHT = 2.0
"""Weight of "matched or not" for a detector that is taught it by focal loss, as Deformable DETR's authors weigh it."""

SIMCLR_JITTER = Jitter(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
"""Strength of SimCLR (Chen et al. 2020, appendix A), after which the paper names its augmentation."""

PAPER_SIDES = (*RELEASED_SIDES[:4], 384, *RELEASED_SIDES[4:])
"""Short sides from 320 to 480 in steps of 16."""


def released() -> Run:
    """Pretrain as the released code does: 60 epochs with a drop at 40, batch 256, SwAV backbone, pre-norm.

    Needs: GPUs; 320–480 px; 5 days on 8 V100 (published).
    """
    return Run(
        task=RandomQueryPatch(),
        # Three logits, the first of which is never a target: the released weights were trained so.
        detector=DETRConfig(backbone=BackboneConfig(name="resnet50", weights="swav"), num_classes=2, num_queries=100),
        data=DataConfig(batch_size=256, workers=8),
        optim=OptimConfig(lr=1e-4, weight_decay=1e-4, schedule="step", drops=(2 / 3,), clip=0.1),
        budget=Budget(epochs=60.0),
        checkpoint=CheckpointConfig(every_steps=2000),
        log_every=50,
    )


def paper() -> Run:
    """Pretrain as the paper states it: query shuffle, every size, SimCLR's jitter, weight M/N without a match.

    Needs: GPUs; 320–480 px; 5 days on 8 V100 (published).
    """
    run = released()
    task = RandomQueryPatch(
        shuffle=True, no_match="M/N", masking="patch", image_sides=PAPER_SIDES, jitter=SIMCLR_JITTER
    )
    return replace(run, task=task, detector=replace(run.detector, num_classes=1))


def r50() -> Run:
    """Pretrain at full scale: the released choices, every size, and weight M/N for queries without a match.

    Needs: GPUs; 320–480 px; 5 days on 8 V100 (published).
    """
    run = released()
    task = RandomQueryPatch(no_match="M/N", image_sides=PAPER_SIDES)
    return replace(run, task=task, detector=replace(run.detector, num_classes=1))


def r50_own_groups() -> Run:
    """Pretrain as `random_query_patch/r50` does, with matching within each patch's own group; not measured yet.

    Needs: GPUs; 320–480 px.
    """
    run = r50()
    assert isinstance(run.task, RandomQueryPatch)
    return replace(run, task=replace(run.task, matching="own_group"))


def small() -> Run:
    """Pretrain the detector of `detection/small` on a user's own photographs, on two CPU cores.

    The backbone is pretrained and frozen, as in the paper; what is learned is the transformer.

    Needs: CPU; 192–256 px; half an hour.
    """
    return Run(
        task=RandomQueryPatch(
            patch_size=64,
            smallest_share=0.1,
            largest_share=0.6,
            image_sides=(192, 224, 256),
            longest_side=320,
            eval_side=240,
            # Half of the strength of UP-DETR's: few steps must do.
            jitter=Jitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05, grey=0.0, blur=0.0),
            normalise_patches=True,
            matching="own_group",
            no_match="M/N",
            class_weight=2.0,
        ),
        detector=DeformableDETRConfig(
            backbone=BackboneConfig(name="timm/tf_efficientnet_lite0", weights="imagenet", frozen_stages=2),
            num_classes=1,
            num_queries=100,
            width=128,
            heads=4,
            encoder_layers=1,
            encoder_points=2,
            decoder_layers=3,
            feedforward=256,
            dropout=0.0,
            extra_levels=0,
            refine_boxes=True,
            two_stage=True,
            proposal_overlap=0.5,
        ),
        data=DataConfig(batch_size=8),
        optim=OptimConfig(lr=4e-4, clip=1.0, schedule="cosine", warmup_steps=100, ema=0.995, ema_ramp=10.0),
        budget=Budget(steps=1500),
        checkpoint=CheckpointConfig(every_steps=500),
        log_every=20,
    )


def tiny() -> Run:
    """Pretrain a small detector on small images without an accelerator: one query per patch, frozen fresh backbone.

    Needs: CPU; 64 px; minutes.
    """
    return Run(
        task=RandomQueryPatch(
            num_patches=10,
            patch_size=32,
            smallest_share=0.2,
            largest_share=0.6,
            image_sides=(64,),
            longest_side=128,
            eval_side=64,
            jitter=Jitter(probability=0.0, grey=0.0, blur=0.0),
            normalise_patches=True,
            matching="own_group",
            no_match="M/N",
        ),
        detector=DETRConfig(
            backbone=BackboneConfig(name="tiny", frozen_stages=0),
            num_classes=1,
            num_queries=10,
            width=64,
            heads=4,
            encoder_layers=1,
            decoder_layers=2,
            feedforward=128,
            dropout=0.0,
            normalise_features=True,
            query_scale=0.3,
            position_at_input=True,
        ),
        # With images this small, transfers from a loader process cost more time than the process saves.
        data=DataConfig(batch_size=32, workers=0),
        optim=OptimConfig(lr=2e-3, clip=1.0, schedule="cosine", warmup_steps=50),
        budget=Budget(steps=800),
        checkpoint=CheckpointConfig(every_steps=200),
        log_every=20,
    )


def deformable_r50() -> Run:
    """Pretrain Deformable DETR at full scale: 300 queries, 30 for each patch, rates of its authors, 60 epochs.

    Needs: GPUs; 320–480 px.
    """
    run = r50()
    return replace(
        run,
        task=_weighing_focal_loss(run),
        detector=DeformableDETRConfig(
            backbone=BackboneConfig(name="resnet50", weights="swav"), num_classes=1, num_queries=300
        ),
        optim=replace(run.optim, lr=2e-4, lr_sampling_factor=0.1),
    )


def deformable_two_stage_r50() -> Run:
    """Pretrain a refined, two-stage Deformable DETR at full scale: queries begin at cells that agree with their patch.

    Needs: GPUs; 320–480 px.
    """
    run = deformable_r50()
    assert isinstance(run.detector, DeformableDETRConfig)
    return replace(run, detector=replace(run.detector, refine_boxes=True, two_stage=True))


def deformable_tiny() -> Run:
    """Pretrain a small Deformable DETR on small images without an accelerator: one query per patch.

    Needs: CPU; 64 px.
    """
    run = tiny()
    return replace(
        run,
        task=_weighing_focal_loss(run),
        detector=DeformableDETRConfig(
            backbone=BackboneConfig(name="tiny", frozen_stages=0),
            num_classes=1,
            num_queries=10,
            width=64,
            heads=4,
            encoder_layers=1,
            decoder_layers=2,
            feedforward=128,
            dropout=0.0,
            backbone_levels=1,
            extra_levels=1,
            encoder_points=2,
            decoder_points=4,
            refine_boxes=True,
            two_stage=True,
            proposal_overlap=0.5,
        ),
        optim=replace(run.optim, lr_sampling_factor=0.1),
    )


def _weighing_focal_loss(run: Run) -> RandomQueryPatch:
    assert isinstance(run.task, RandomQueryPatch)
    return replace(run.task, class_weight=FOCAL_WEIGHT)
