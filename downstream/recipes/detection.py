"""Recipes of supervised detection: DETR's and UP-DETR's fine-tuning on VOC and COCO, on few labels, and on a laptop.

Paper:     Carion et al. 2020 (DETR); Dai et al. 2021 (UP-DETR), section 4 and the README of its code for fine-tuning.
Command:   ssldet finetune runs/pre --data voc:VOC2007:trainval voc:VOC2012:trainval --val voc:VOC2007:test
             --recipe detection/voc-300
           ssldet finetune runs/pre --data coco:train.json:train2017 --val coco:val.json:val2017
             --recipe detection/coco-150
           ssldet finetune runs/pre --data coco:instances.json --recipe detection/tiny --out runs/fine
Recipes:   small: a few hundred photographs on two CPU cores, see `docs/small.md` for its figures.
           voc-150, voc-300, coco-150, coco-300: epochs; rates drop to a tenth after two thirds of them. r50 is 300 too.
           coco-1-percent, coco-2-percent, coco-5-percent, coco-10-percent: that share of the training images, chosen by
           `data.fraction_seed`, each lot within the next larger one.
           tiny (generated shapes), voc-tiny, coco-tiny (photographs of few and of many objects), coco-tiny-10-percent.
Time:      r50: 28 minutes an epoch on 8 V100, 6 days in all (published).
           tiny: 0.46 s a step on one thread of a busy machine, 15 minutes in all (measured).
Score:     r50 on COCO val2017: 43.1 AP from UP-DETR's released weights (published, README), 42.8 (published, paper),
           42.1 from a SwAV backbone alone, the transformer fresh (published). Not yet measured with this code.
           tiny: a place to see differences, not a detector; see `docs/benchmarks.md`. voc-tiny and coco-tiny from fresh
           weights learn the photographs that they are shown, and find hardly anything in others. small: see
           `docs/small.md`.
Differences from the published recipe:
           class numbers are contiguous, 80 instead of 91 with holes; evaluation never pads, so that its figures do not
           depend on the batch. On small data lower `task.no_object_weight`.
           Few labels have no recipe in either paper: the epochs are those of DETReg (Bar et al. 2022), without a
           drop as there; its subsets and its batch are others.

Measuring: where --val is given, every 10,000 steps (r50; about every 10 epochs of VOC, every 1.4 of COCO) or 250 steps
           (tiny). The weights that measured best are kept beside the last; the last are handed over unless
           `--weights best` is said. `--set evaluate_every=N` changes how often.

The number of classes comes from the data. The detectors below are only built for `ssldet finetune scratch`; any other
start brings its own.
"""

from dataclasses import replace

from downstream.detection import Detection
from ssldet.detectors.deformable_detr import DeformableDETRConfig
from ssldet.detectors.detr import DETRConfig
from ssldet.engine.run import Budget, CheckpointConfig, DataConfig, OptimConfig, Run
from ssldet.nn.backbones import BackboneConfig

SMALL_SIDE = 288
"""Longest side of images of `small`, in pixels."""


def r50() -> Run:
    """Fine-tune for 300 epochs with a drop at 200: batch 16, transformer at 1e-4, backbone at 5e-5.

    Needs: GPUs; 480–800 px; 6 days on 8 V100 (published).
    """
    return Run(
        task=Detection(),
        detector=DETRConfig(backbone=BackboneConfig(name="resnet50", weights="swav"), pre_norm=True),
        data=DataConfig(batch_size=16, workers=4),
        optim=OptimConfig(lr=1e-4, lr_backbone=5e-5, weight_decay=1e-4, schedule="step", drops=(2 / 3,), clip=0.1),
        budget=Budget(epochs=300.0),
        checkpoint=CheckpointConfig(every_steps=2000),
        log_every=50,
        evaluate_every=10_000,
    )


def voc_150() -> Run:
    """Fine-tune on VOC for 150 epochs with a drop at 100.

    Needs: GPUs; 480–800 px.
    """
    return _for_epochs(150.0)


def voc_300() -> Run:
    """Fine-tune on VOC for 300 epochs with a drop at 200.

    Needs: GPUs; 480–800 px.
    """
    return _for_epochs(300.0)


def coco_150() -> Run:
    """Fine-tune on COCO for 150 epochs with a drop at 100.

    Needs: GPUs; 480–800 px; 3 days on 8 V100 (published: 28 minutes an epoch).
    """
    return _for_epochs(150.0)


def coco_300() -> Run:
    """Fine-tune on COCO for 300 epochs with a drop at 200.

    Needs: GPUs; 480–800 px; 6 days on 8 V100 (published).
    """
    return _for_epochs(300.0)


def coco_1_percent() -> Run:
    """Fine-tune on one hundredth of COCO's training images for 2,000 epochs of these.

    Needs: GPUs; 480–800 px.
    """
    return on_few(r50(), 0.01, 2000.0)


def coco_2_percent() -> Run:
    """Fine-tune on one fiftieth of COCO's training images for 1,000 epochs of these.

    Needs: GPUs; 480–800 px.
    """
    return on_few(r50(), 0.02, 1000.0)


def coco_5_percent() -> Run:
    """Fine-tune on one twentieth of COCO's training images for 500 epochs of these.

    Needs: GPUs; 480–800 px.
    """
    return on_few(r50(), 0.05, 500.0)


def coco_10_percent() -> Run:
    """Fine-tune on one tenth of COCO's training images for 400 epochs of these.

    Needs: GPUs; 480–800 px.
    """
    return on_few(r50(), 0.1, 400.0)


def tiny() -> Run:
    """Train a two-layer detector on images of 64 pixels, such as the generated shapes, without an accelerator.

    Needs: CPU; 64 px; 15 minutes (measured).
    """
    return Run(
        task=Detection(scales=(64,), max_size=128, eval_scale=64, crop=0.0, flip=0.5),
        detector=DETRConfig(
            backbone=BackboneConfig(name="tiny", frozen_norm=True, frozen_stages=0),
            num_classes=3,
            num_queries=10,
            width=64,
            heads=4,
            encoder_layers=1,
            decoder_layers=2,
            feedforward=128,
            dropout=0.0,
            pre_norm=True,
            normalise_features=True,
            query_scale=0.3,
            position_at_input=True,
        ),
        # On images this small a loader process costs more in handing over than it saves.
        data=DataConfig(batch_size=32, workers=0),
        optim=OptimConfig(lr=2e-3, lr_backbone=5e-4, schedule="cosine", warmup_steps=50, clip=1.0),
        budget=Budget(steps=1000),
        checkpoint=CheckpointConfig(every_steps=500),
        log_every=20,
        evaluate_every=250,
    )


def small() -> Run:
    """Train a small two-stage Deformable DETR with a pretrained backbone on a user's own photographs, on two CPU cores.

    What makes it learn from few images: a backbone that knows photographs and learns along, three levels, queries that
    begin at proposals of the encoder, boxes that each layer refines, images of many scales, averaged weights.

    Needs: CPU; 288 px; half an hour.
    """
    return Run(
        task=Detection(
            augmentation="scale_jitter",
            jitter_scale=(0.6, 1.6),
            jitter_stretch=1.2,
            jitter_colour=0.3,
            scales=(SMALL_SIDE,),
            max_size=SMALL_SIDE,
            eval_scale=SMALL_SIDE,
            crop=0.0,
            # Those of Deformable DETR, whose focal loss is smaller than DETR's cross entropy.
            class_weight=2.0,
        ),
        detector=small_detector(),
        data=DataConfig(batch_size=4),
        optim=OptimConfig(
            lr=3e-4,
            lr_backbone=1e-4,
            schedule="cosine",
            warmup_steps=100,
            clip=1.0,
            ema=0.995,
            ema_ramp=10.0,
            weight_decay=1e-4,
        ),
        budget=Budget(steps=2500),
        checkpoint=CheckpointConfig(every_steps=500),
        log_every=20,
        evaluate_every=250,
    )


def small_detector() -> DeformableDETRConfig:
    """Return a Deformable DETR of one encoder layer and three decoder layers, with EfficientNet-Lite0."""
    return DeformableDETRConfig(
        # Up to stride 8 the backbone is frozen: most of its time, and little of what photographs differ in.
        backbone=BackboneConfig(name="timm/tf_efficientnet_lite0", weights="imagenet", frozen_stages=2),
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
    )


def voc_tiny() -> Run:
    """Train a small detector on photographs of a few large objects, at 128 pixels, without an accelerator.

    Needs: CPU; 128–160 px.
    """
    run = tiny()
    task = Detection(scales=(128, 144, 160), max_size=224, eval_scale=128, crop=0.0)
    return replace(run, task=task, data=replace(run.data, batch_size=8), optim=replace(run.optim, lr=1e-3))


def coco_tiny() -> Run:
    """Train a somewhat wider detector on photographs of many objects, at 160 pixels, without an accelerator.

    Needs: CPU; 128–160 px.
    """
    run = voc_tiny()
    assert isinstance(run.task, Detection)
    assert isinstance(run.detector, DETRConfig)
    return replace(
        run,
        task=replace(run.task, eval_scale=160),
        detector=replace(run.detector, num_queries=40, width=128, feedforward=256),
    )


def coco_tiny_10_percent() -> Run:
    """Train as `detection/coco-tiny` does, on a tenth of the training images.

    Needs: CPU; 128–160 px.
    """
    run = coco_tiny()
    return replace(run, data=replace(run.data, fraction=0.1, fraction_seed=0))


def _for_epochs(epochs: float) -> Run:
    return replace(r50(), budget=Budget(epochs=epochs))


def on_few(run: Run, fraction: float, epochs: float) -> Run:
    """Return a run on a share of the training images, without a drop of the rates.

    Args:
        run: What is changed.
        fraction: Share of the training images; all runs take the same ones.
        epochs: Passes over these.
    """
    return replace(
        run,
        data=replace(run.data, fraction=fraction, fraction_seed=0),
        optim=replace(run.optim, schedule="constant"),
        budget=Budget(epochs=epochs),
    )
