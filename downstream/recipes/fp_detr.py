"""Recipes of detection by FP-DETR: the authors' fine-tuning on COCO in three sizes, and one for a laptop.

Paper:     Wang et al. 2022 (FP-DETR); the configurations and the README of its code for all numbers below.
Command:   ssldet finetune runs/pre --data coco:train.json:train2017 --val coco:val.json:val2017
             --recipe detection/fp_detr-base
           ssldet finetune scratch --data coco:instances.json --recipe detection/fp_detr-tiny --out runs/fine
           `runs/pre` is a run of `fp_detr/base`, `small`, `lite` or `tiny`; see `pretext/recipes/fp_detr.py`.
Time:      not published; batches of 16 on 8 A100. tiny: see below.
Score:     COCO val2017, AP / AP50 / AP75 / small / medium / large after ImageNet-1K, 300 epochs of supervised
           classification (published, README; Lite and Base are the authors' later runs, not those of the paper):
           lite 37.9 / 57.5 / 41.1 / 21.7 / 40.6 / 50.7, small 42.5 / 62.6 / 45.9 / 25.3 / 45.5 / 56.9,
           base 43.2 / 63.1 / 47.5 / 25.7 / 46.7 / 57.5, base after ImageNet-21K-P 43.7 / 64.1 / 47.8 / 26.5 / 46.7 /
           58.2. Not measured with this code, which has not been run at that scale.
           tiny: see the comparison of detectors in `docs/benchmarks.md`.
Differences from the published recipe:
           none that is known, but for sizes and rates of `tiny`, whose offsets of sampling points and reference points
           learn at the rate of the rest.
"""

from dataclasses import replace

from downstream.detection import Detection
from downstream.recipes import detection
from ssldet.detectors.fp_detr import BASE, LITE, SMALL, FPDETRConfig
from ssldet.engine.run import Budget, CheckpointConfig, DataConfig, OptimConfig, Run


def base() -> Run:
    """Fine-tune FP-DETR-Base for 50 epochs with a drop at 40: batch 16, transformer at 1e-4, tokenizer at 1e-5.

    Needs: GPUs; 480–800 px.
    """
    return Run(
        # The weight of the class is that of focal loss, twice the one of DETR's cross entropy.
        task=Detection(class_weight=2.0),
        detector=BASE,
        data=DataConfig(batch_size=16, workers=4),
        optim=OptimConfig(
            lr=1e-4,
            lr_backbone=1e-5,
            lr_sampling_factor=0.1,
            weight_decay=1e-4,
            schedule="step",
            drops=(0.8,),
            clip=0.1,
        ),
        budget=Budget(epochs=50.0),
        checkpoint=CheckpointConfig(every_steps=2000),
        log_every=50,
    )


def small() -> Run:
    """Fine-tune FP-DETR-Small for 50 epochs, as `detection/fp_detr-base` does.

    Needs: GPUs; 480–800 px.
    """
    return replace(base(), detector=SMALL)


def lite() -> Run:
    """Fine-tune FP-DETR-Lite for 50 epochs, as `detection/fp_detr-base` does.

    Needs: GPUs; 480–800 px.
    """
    return replace(base(), detector=LITE)


def tiny() -> Run:
    """Train a small FP-DETR, one layer for cells and two for queries too, on images of 64 pixels, on a laptop.

    Needs: CPU; 64 px.
    """
    run = detection.tiny()
    assert isinstance(run.task, Detection)
    return replace(
        run,
        task=replace(run.task, class_weight=2.0),
        detector=FPDETRConfig(
            num_classes=3,
            num_queries=10,
            strides=(4, 8, 16),
            tokenizer_width=64,
            width=64,
            heads=4,
            encoder_layers=1,
            joined_layers=2,
            feedforward=128,
            dropout=0.0,
        ),
        optim=replace(run.optim, lr=1e-3, lr_backbone=1e-3),
    )
