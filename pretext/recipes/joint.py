"""Recipes of joint pretraining of backbone and transformer: at UP-DETR's scale, on your photographs, for a laptop.

Paper:     none; the future work that Dai et al. 2021 (UP-DETR) name in section 5, with the contrast of MoCo v2.
Command:   ssldet pretrain imagenet/train --recipe joint/r50 --out runs/pre
           ssldet pretrain photos --recipe joint/small --out runs/pre
           ssldet pretrain photos --recipe joint/tiny --val held-out --out runs/pre
Time:      r50: not measured. small, tiny: minutes on two CPU cores.
Score:     none published. UP-DETR with a backbone that learns reaches 74.0 AP50 on VOC, with a frozen one 78.7
           (published); what the contrast changes at this scale has not been measured with this code. small: see
           docs/joint.md; tiny: see docs/benchmarks.md.
"""

from dataclasses import fields, replace
from typing import Any

from pretext.joint import Joint
from pretext.random_query_patch import RandomQueryPatch
from pretext.recipes import random_query_patch
from ssldet.data.photometric import Jitter
from ssldet.detectors.deformable_detr import DeformableDETRConfig
from ssldet.engine.run import Run
from ssldet.nn.backbones import BackboneConfig


def r50() -> Run:
    """Pretrain DETR with ResNet-50 from random weights, on the schedule of `random_query_patch/r50`.

    Needs: GPUs; 320–480 px.
    """
    return _whole(random_query_patch.r50())


def deformable_r50() -> Run:
    """Pretrain Deformable DETR with ResNet-50 from random weights.

    Needs: GPUs; 320–480 px.
    """
    return _whole(random_query_patch.deformable_r50())


def small() -> Run:
    """Pretrain the detector of `detection/small` with its backbone, which starts from pretrained weights and learns.

    Needs: CPU; 192–256 px; half an hour.
    """
    run = random_query_patch.small()
    assert isinstance(run.task, RandomQueryPatch)
    # Batches of few images: a short queue and few groups of keys; the other view changes as much as the patch does.
    task = _joint(run, view_jitter=run.task.jitter, queue_length=2048, momentum=0.996, key_groups=2)
    # A backbone that knows photographs already learns as slowly as in fine-tuning.
    learning = replace(run, task=task, optim=replace(run.optim, lr_backbone=5e-5))
    assert isinstance(run.detector, DeformableDETRConfig)
    return _with_backbone(learning, replace(run.detector.backbone, frozen_norm=False, frozen_stages=0))


def tiny() -> Run:
    """Pretrain the detector of `random_query_patch/tiny` with its backbone, on small images without an accelerator.

    Needs: CPU; 64 px.
    """
    return _small(random_query_patch.tiny())


def deformable_tiny() -> Run:
    """Pretrain the small Deformable DETR of `random_query_patch/deformable-tiny` with its backbone.

    Needs: CPU; 64 px.
    """
    return _small(random_query_patch.deformable_tiny())


def _whole(run: Run) -> Run:
    """Let the backbone of a run learn from random weights, at the rate of the rest."""
    learning = replace(run, task=_joint(run), optim=replace(run.optim, lr_backbone=run.optim.lr))
    return _with_backbone(learning, BackboneConfig(name="resnet50", frozen_norm=False, frozen_stages=0))


def _small(run: Run) -> Run:
    """Likewise with little of everything."""
    task = _joint(
        run,
        # The patch that is looked for stays as it is: finding it in other colours is too hard for a fresh backbone.
        view_jitter=Jitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.0, grey=0.0, blur=0.0),
        contrast_hidden=128,
        contrast_width=64,
        queue_length=1024,
        momentum=0.99,
        key_groups=4,
    )
    learning = replace(run, task=task, optim=replace(run.optim, lr_backbone=3e-4))
    return _with_backbone(learning, BackboneConfig(name="tiny", frozen_norm=False, frozen_stages=0))


def _joint(run: Run, **choices: Any) -> Joint:
    """Return the joint task with the choices of a run of random query patch detection, and others."""
    task = run.task
    assert isinstance(task, RandomQueryPatch)
    kept = {field.name: getattr(task, field.name) for field in fields(RandomQueryPatch)}
    return Joint(**{**kept, "freeze_backbone": False, **choices})


def _with_backbone(run: Run, backbone: BackboneConfig) -> Run:
    return replace(run, detector=replace(run.detector, backbone=backbone))  # type: ignore[call-arg]
