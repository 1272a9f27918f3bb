"""Recipes of self-training: a share of COCO's labels with all of its images, and three for two CPU cores.

Paper:     Liu et al. 2021 (Unbiased Teacher), whose batch, steps and weights the recipes of COCO take; Xu et al. 2021
           (Soft Teacher); on detection transformers Wang et al. 2022 (Omni-DETR), Zhang et al. 2023 (Semi-DETR).
Command:   ssldet finetune runs/pre --data coco:train.json:train2017 --unlabelled train2017 --val coco:val.json:val2017
             --recipe self_training/coco-1-percent
           ssldet finetune runs/pre --data coco:few.json --unlabelled photos --recipe self_training/small
Recipes:   coco-1-percent, coco-10-percent: the labels of that share of the training images, the same images as those of
           `detection/coco-1-percent` and so on; Deformable DETR. Everything that --unlabelled names is unlabelled.
           small: a user's own photographs. tiny, deformable-tiny: generated shapes.
           A start that was fine-tuned on the same labels knows them: --set task.burn_in=0.
Score:     Published gains of self-training on 1 and 10 percent of COCO's labels: +12.6 and +7.8 AP, for Soft Teacher
           with Faster R-CNN (10.0 to 22.6, 26.9 to 34.7; README of a reimplementation). Not measured with this code.
           tiny: see `docs/self_training.md`.
Differences from the published recipes:
           the burn-in is a share of the steps and longer, because a transformer learns from few labels more slowly; the
           detector, its rates and its augmentation are those of `detection`.

The number of classes comes from the data. The detectors below are only built for `ssldet finetune scratch`; any other
start brings its own.
"""

from dataclasses import fields, replace

from downstream.detection import Detection
from downstream.recipes import deformable_detection, detection
from downstream.self_training import SelfTraining
from ssldet.data.photometric import Jitter
from ssldet.detectors.deformable_detr import DeformableDETRConfig
from ssldet.engine.run import Budget, Run


def coco_1_percent() -> Run:
    """Train Deformable DETR on the labels of a hundredth of COCO: 180,000 steps of 32 images with them, 32 without.

    Needs: GPUs; 480–800 px.
    """
    return _at_full_scale(deformable_detection.coco_1_percent())


def coco_10_percent() -> Run:
    """Train Deformable DETR on the labels of a tenth of COCO: 180,000 steps of 32 images with labels, 32 without.

    Needs: GPUs; 480–800 px.
    """
    return _at_full_scale(deformable_detection.coco_10_percent())


def small() -> Run:
    """Train the detector of `detection/small` on a few labelled and many unlabelled photographs of a user's own.

    Needs: CPU; 288 px.
    """
    run = _self_training(detection.small(), burn_in=0.3)
    return replace(run, optim=replace(run.optim, ema_ramp=10.0))


def tiny() -> Run:
    """Train a two-layer DETR on images of 64 pixels, such as the generated shapes, without an accelerator.

    Needs: CPU; 64 px.
    """
    return _tiny(detection.tiny())


def deformable_tiny() -> Run:
    """Train a small Deformable DETR likewise.

    Needs: CPU; 64 px.
    """
    return _tiny(deformable_detection.tiny())


def _self_training(run: Run, **choices: object) -> Run:
    """Return a run of plain detection as one of self-training, with as many unlabelled images beside the labelled."""
    assert isinstance(run.task, Detection)
    if isinstance(run.detector, DeformableDETRConfig):
        # One sigmoid per class, taught by focal loss, is less sure of what it knows than a softmax.
        choices = {"threshold": 0.5} | choices
    shared = {field.name: getattr(run.task, field.name) for field in fields(Detection)}
    return replace(
        run,
        task=SelfTraining(**shared | choices),
        data=replace(run.data, batch_size=2 * run.data.batch_size),
    )


def _at_full_scale(run: Run) -> Run:
    run = _self_training(run, pseudo_weight=4.0, burn_in=0.1)
    return replace(
        run,
        optim=replace(run.optim, ema=0.9996, ema_ramp=10.0),
        budget=Budget(steps=180_000),
        evaluate_every=10_000,
    )


def _tiny(run: Run) -> Run:
    # Generated classes may differ by hue, which a strong view must not take away.
    run = _self_training(run, burn_in=0.3, jitter=Jitter(hue=0.0, grey=0.0, blur_high=1.0))
    return replace(
        run,
        data=replace(run.data, batch_size=32),
        optim=replace(run.optim, ema=0.99, ema_ramp=10.0),
    )
