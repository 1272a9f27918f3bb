"""Recipes of supervised detection with Deformable DETR: its authors' on COCO, on VOC, on few labels, and on a laptop.

Paper:     Zhu et al. 2021 (Deformable DETR), section 5 and the README of its code; Bar et al. 2022 (DETReg) and its
           code for VOC and few labels.
Command:   ssldet finetune scratch --data coco:train.json:train2017 --val coco:val.json:val2017
             --recipe detection/deformable-coco-50
           ssldet finetune runs/pre --data voc:VOC2007:trainval voc:VOC2012:trainval --val voc:VOC2007:test
             --recipe detection/deformable-voc
           ssldet finetune runs/pre --data coco:instances.json --recipe detection/deformable-tiny --out runs/fine
Recipes:   deformable-coco-50, deformable-refined-coco-50, deformable-two-stage-coco-50: 50 epochs; rates drop to
           a tenth at 40. deformable-voc: 100 epochs; rates drop at 70.
           deformable-coco-1-percent, -2-percent, -5-percent, -10-percent: that share of the training images, the same
           images as `detection/coco-1-percent` and so on.
           deformable-tiny: generated shapes.
Time:      coco-50, refined, two-stage: 325, 325 and 340 hours of one V100 in all (published, README).
Score:     AP on COCO val2017, from a backbone with supervised weights: coco-50 44.5, refined 46.2, two-stage 46.9
           (published, README).
           coco-50 from SwAV's backbone alone 45.5, after UP-DETR 45.3, after DETReg 45.5 (published, Siamese DETR's
           README); on VOC in its protocol 56.1, 56.4, 59.7 (published, likewise).
           1, 2, 5, 10 percent: 11.79, 16.02, 22.81, 27.79 from SwAV's backbone alone, 14.58, 18.69, 24.80, 29.12 after
           DETReg (published, DETReg). None of these is measured with this code.
           tiny: see `docs/detectors.md`.
Differences from the published recipes:
           class numbers are contiguous, 80 instead of 91 with holes; evaluation never pads. DETReg starts few labels
           from a detector pretrained on COCO's own images, in batches of 3 a device; its subsets are others.

The number of classes comes from the data. The detectors below are only built for `ssldet finetune scratch`; any other
start brings its own.
"""

from dataclasses import replace

from downstream.detection import Detection
from downstream.recipes import detection
from ssldet.detectors.deformable_detr import DeformableDETRConfig
from ssldet.engine.run import Budget, CheckpointConfig, DataConfig, OptimConfig, Run
from ssldet.nn.backbones import BackboneConfig

CLASS_WEIGHT = 2.0
"""Weight of the class in loss and matching, which is focal here."""


def coco_50() -> Run:
    """Train Deformable DETR on COCO for 50 epochs with a drop at 40: batch 32, 2e-4, a tenth of it for the backbone.

    Needs: GPUs; 480–800 px; 325 hours of one V100 (published).
    """
    return Run(
        task=Detection(class_weight=CLASS_WEIGHT),
        detector=DeformableDETRConfig(backbone=BackboneConfig(name="resnet50", weights="imagenet")),
        data=DataConfig(batch_size=32, workers=4),
        optim=OptimConfig(
            lr=2e-4,
            lr_backbone=2e-5,
            lr_sampling_factor=0.1,
            weight_decay=1e-4,
            schedule="step",
            drops=(40 / 50,),
            clip=0.1,
        ),
        budget=Budget(epochs=50.0),
        checkpoint=CheckpointConfig(every_steps=2000),
        log_every=50,
    )


def refined_coco_50() -> Run:
    """Train as `detection/deformable-coco-50` does, with boxes that every decoder layer refines.

    Needs: GPUs; 480–800 px; 325 hours of one V100 (published).
    """
    return replace(coco_50(), detector=replace(_deformable(coco_50()), refine_boxes=True))


def two_stage_coco_50() -> Run:
    """Train as `detection/deformable-refined-coco-50` does, with boxes that begin with the encoder's proposals.

    Needs: GPUs; 480–800 px; 340 hours of one V100 (published).
    """
    return replace(coco_50(), detector=replace(_deformable(coco_50()), refine_boxes=True, two_stage=True))


def voc() -> Run:
    """Fine-tune Deformable DETR on VOC for 100 epochs with a drop at 70, from SwAV's backbone if from scratch.

    Needs: GPUs; 480–800 px.
    """
    run = _from_swav()
    return replace(run, optim=replace(run.optim, drops=(70 / 100,)), budget=Budget(epochs=100.0))


def coco_1_percent() -> Run:
    """Fine-tune Deformable DETR on one hundredth of COCO's training images for 2,000 epochs of these.

    Needs: GPUs; 480–800 px.
    """
    return detection.on_few(_from_swav(), 0.01, 2000.0)


def coco_2_percent() -> Run:
    """Fine-tune Deformable DETR on one fiftieth of COCO's training images for 1,000 epochs of these.

    Needs: GPUs; 480–800 px.
    """
    return detection.on_few(_from_swav(), 0.02, 1000.0)


def coco_5_percent() -> Run:
    """Fine-tune Deformable DETR on one twentieth of COCO's training images for 500 epochs of these.

    Needs: GPUs; 480–800 px.
    """
    return detection.on_few(_from_swav(), 0.05, 500.0)


def coco_10_percent() -> Run:
    """Fine-tune Deformable DETR on one tenth of COCO's training images for 400 epochs of these.

    Needs: GPUs; 480–800 px.
    """
    return detection.on_few(_from_swav(), 0.1, 400.0)


def tiny() -> Run:
    """Train a small Deformable DETR on images of 64 pixels, such as the generated shapes, without an accelerator.

    Needs: CPU; 64 px.
    """
    run = detection.tiny()
    assert isinstance(run.task, Detection)
    return replace(
        run,
        task=replace(run.task, class_weight=CLASS_WEIGHT),
        detector=DeformableDETRConfig(
            backbone=BackboneConfig(name="tiny", frozen_norm=True, frozen_stages=0),
            num_classes=3,
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


def _deformable(run: Run) -> DeformableDETRConfig:
    assert isinstance(run.detector, DeformableDETRConfig)
    return run.detector


def _from_swav() -> Run:
    detector = replace(_deformable(coco_50()), backbone=BackboneConfig(name="resnet50", weights="swav"))
    return replace(coco_50(), detector=detector)
