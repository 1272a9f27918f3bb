"""Recipes of panoptic segmentation: boxes of things and stuff first, then masks on top of a detector at rest.

Paper:     Carion et al. 2020 (DETR), section 4.4; Dai et al. 2021 (UP-DETR), section 4.4.
Command:   ssldet finetune runs/pre --data panoptic:train.json:train:train2017 --recipe panoptic/r50-boxes
             --out runs/boxes
           ssldet finetune runs/boxes --data panoptic:train.json:train:train2017 --val panoptic:val.json:val:val2017
             --recipe panoptic/r50
Score:     r50 on COCO val2017: 44.3 PQ, 32.9 mask AP from a supervised backbone, 44.5 PQ, 34.0 mask AP from UP-DETR
           (published). Not measured with this code.
           tiny: see `docs/panoptic.md`.
Differences from the published recipe:
           see `downstream/panoptic.py`.

`tiny-boxes` and `tiny` are the two stages on generated scenes of 64 pixels, for a laptop. The detectors below are only
built for `ssldet finetune scratch`; any other start brings its own.
"""

from dataclasses import replace

from downstream.detection import Detection
from downstream.panoptic import Panoptic
from downstream.recipes import detection
from ssldet.detectors.detr import DETRConfig
from ssldet.engine.run import Budget, DataConfig, Run


def r50_boxes() -> Run:
    """Fine-tune boxes of things and stuff for 300 epochs, as `detection/r50` does.

    Needs: GPUs; 480–800 px.
    """
    return detection.r50()


def r50() -> Run:
    """Train the mask head for 25 epochs with a drop at 15, at 1e-4, the detector at rest: batch 8 or 16.

    Needs: GPUs; 480–800 px.
    """
    run = detection.r50()
    return replace(
        run,
        task=Panoptic(),
        detector=_with_masks(run),
        data=DataConfig(batch_size=8, workers=4),
        optim=replace(run.optim, lr=1e-4, drops=(15 / 25,)),
        budget=Budget(epochs=25.0),
    )


def tiny_boxes() -> Run:
    """Train a small detector on things and stuff of generated scenes.

    Needs: CPU; 64 px.
    """
    return detection.tiny()


def tiny() -> Run:
    """Train the mask head of a detector that `panoptic/tiny-boxes` trained.

    Needs: CPU; 64 px; 7 minutes (measured).
    """
    run = detection.tiny()
    boxes = run.task
    assert isinstance(boxes, Detection)
    task = Panoptic(scales=boxes.scales, max_size=boxes.max_size, eval_scale=boxes.eval_scale, crop=boxes.crop)
    return replace(run, task=task, detector=_with_masks(run), budget=Budget(steps=500))


def _with_masks(run: Run) -> DETRConfig:
    assert isinstance(run.detector, DETRConfig)
    return replace(run.detector, masks=True)
