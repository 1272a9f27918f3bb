"""Recipes of supervised detection: DETR's and UP-DETR's fine-tuning, and one for a laptop.

Paper:     Carion et al. 2020 (DETR); Dai et al. 2021 (UP-DETR), section 4 and the README of its code for fine-tuning.
Command:   ssldet finetune runs/pre --data coco:train.json:train2017 --val coco:val.json:val2017 --recipe detection/r50
           ssldet finetune runs/pre --data coco:instances.json --recipe detection/tiny --out runs/fine
Time:      r50: 28 minutes an epoch on 8 V100, 6 days in all (published).
           tiny: 0.46 s a step on one thread of a busy machine, 15 minutes in all (measured).
Score:     r50 on COCO val2017: 43.1 AP from UP-DETR's released weights (published, README), 42.8 (published, paper),
           42.1 from a SwAV backbone alone, the transformer fresh (published). Not yet measured with this code.
           tiny without pretraining, 1,500 steps on 1,000 generated scenes of 1 to 3 shapes: 4.0 AP, 12.2 AP50 on 200
           others (measured once, one seed): a place to see differences, not a detector.
Differences from the published recipe:
           class numbers are contiguous, 80 instead of 91 with holes; evaluation never pads, so that its figures do not
           depend on the batch. On small data lower `task.no_object_weight`.

The detector below is only built for `ssldet finetune scratch`; any other start brings its own.
"""

from downstream.detection import Detection
from ssldet.detectors.detr import DETRConfig
from ssldet.engine.run import Budget, CheckpointConfig, DataConfig, OptimConfig, Run
from ssldet.nn.backbones import BackboneConfig


def r50() -> Run:
    """Fine-tune for 300 epochs with a drop at 200: batch 16, transformer at 1e-4, backbone at 5e-5."""
    return Run(
        task=Detection(),
        detector=DETRConfig(backbone=BackboneConfig(name="resnet50", weights="swav"), pre_norm=True),
        data=DataConfig(batch_size=16, workers=4),
        optim=OptimConfig(lr=1e-4, lr_backbone=5e-5, weight_decay=1e-4, schedule="step", drops=(2 / 3,), clip=0.1),
        budget=Budget(epochs=300.0),
        checkpoint=CheckpointConfig(every_steps=2000),
        log_every=50,
    )


def tiny() -> Run:
    """Train a two-layer detector on images of 64 pixels, such as the generated shapes, without an accelerator."""
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
    )
