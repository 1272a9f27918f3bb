"""Recipes of FP-DETR's pretraining: the authors' **supervised** classification, ours without labels, and for a laptop.

Paper:     Wang et al. 2022 (FP-DETR). Its code holds no pretraining; asked, its authors named DeiT's recipe (Touvron et
           al. 2021) with one class token, and the names of their files say 300 epochs. Where neither says a number, it
           is DeiT's. Without labels: Chen et al. 2020 (SimCLR) on the class token, which is ours.
Command:   ssldet finetune scratch --data folders:imagenet/train --val folders:imagenet/val --recipe fp_detr/base
             --out runs/pre
           ssldet finetune scratch --data folders:photos --recipe fp_detr/tiny --out runs/pre
           ssldet pretrain photos --recipe fp_detr/self-supervised-tiny --out runs/pre
           and then, from any of them: ssldet finetune runs/pre --data coco:… --recipe detection/fp_detr-base, small, …
Recipes:   base, small, lite: supervised, in the authors' three sizes. tiny: supervised. self-supervised: without labels
           in the size of Lite. self-supervised-tiny. The last two are also the recipes of the task of their own name,
           `fp_detr_contrast/lite` and `fp_detr_contrast/tiny`.
Time:      base, small, lite: not published. tiny: minutes on two CPU cores.
Score:     not published for this stage; for detection after it see `downstream/recipes/fp_detr.py`. Not measured with
           this code at that scale.
"""

from dataclasses import replace

from pretext.fp_detr import ImageClassification
from pretext.fp_detr_contrast import TokenContrast
from ssldet.detectors.fp_detr import BASE, LITE, SMALL, FPDETRConfig
from ssldet.engine.run import Budget, CheckpointConfig, DataConfig, OptimConfig, Run


def base() -> Run:
    """Supervised: classify ImageNet by FP-DETR-Base for 300 epochs, as DeiT does, in batches of 1024 at 1e-3.

    Needs: GPUs; 224 px.
    """
    return Run(
        task=ImageClassification(),
        detector=BASE,
        data=DataConfig(batch_size=1024, workers=8),
        # Steps of warm-up are counted on ImageNet-1K.
        optim=OptimConfig(lr=1e-3, lr_backbone=1e-3, weight_decay=0.05, schedule="cosine", warmup_steps=6256, clip=0.0),
        budget=Budget(epochs=300.0),
        checkpoint=CheckpointConfig(every_steps=2000),
        log_every=50,
    )


def small() -> Run:
    """Supervised: classify ImageNet by FP-DETR-Small for 300 epochs, as `fp_detr/base` does.

    Needs: GPUs; 224 px.
    """
    return replace(base(), detector=SMALL)


def lite() -> Run:
    """Supervised: classify ImageNet by FP-DETR-Lite for 300 epochs, as `fp_detr/base` does.

    Needs: GPUs; 224 px.
    """
    return replace(base(), detector=LITE)


def tiny() -> Run:
    """Supervised: classify images of 64 pixels with the detector of `detection/fp_detr-tiny`, on a laptop.

    Needs: CPU; 64 px; minutes.
    """
    return Run(
        task=ImageClassification(
            crop_size=64, min_scale=0.4, colours=0, erase=0.0, mixup=0.0, cutmix=0.0, eval_side=64
        ),
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
        # On images this small a loader process costs more in handing over than it saves.
        data=DataConfig(batch_size=32, workers=0),
        optim=OptimConfig(lr=1e-3, lr_backbone=1e-3, schedule="cosine", warmup_steps=50, clip=1.0),
        budget=Budget(steps=400),
        checkpoint=CheckpointConfig(every_steps=200),
        log_every=20,
    )


def self_supervised() -> Run:
    """Without labels: contrast crops by FP-DETR-Lite for 300 epochs, with the optimiser of `fp_detr/base`.

    Needs: GPUs; 224 px.
    """
    return replace(lite(), task=TokenContrast())


def self_supervised_tiny() -> Run:
    """Without labels: contrast crops of 48 pixels with the detector of `detection/fp_detr-tiny`, on a laptop.

    Needs: CPU; 48 px.
    """
    run = tiny()
    return replace(
        run,
        task=TokenContrast(
            crop_size=48,
            min_scale=0.3,
            # A small network tells photos apart by their colours, which a stronger jitter would destroy.
            colour_strength=0.1,
            blur=0.0,
            hidden_width=128,
            projection_width=64,
            eval_side=48,
        ),
        data=replace(run.data, batch_size=64),
    )
