"""Recipes of pseudo boxes: at the scale of the published relatives, for a user's own photographs, and for a laptop.

Paper:     Metaxas et al. 2023 (SimDETR) is the nearest; `pretext/pseudo_boxes.py` says what differs.
Command:   ssldet pretrain imagenet/train --recipe pseudo_boxes/imagenet --out runs/pre
           ssldet pretrain photos --recipe pseudo_boxes/small --out runs/pre
           ssldet pretrain photos --recipe pseudo_boxes/tiny --out runs/pre
Time:      imagenet: not known. small, tiny: minutes on two CPU cores.
Score:     not measured at full scale with this code. SimDETR claims to be ahead of earlier pretext tasks on COCO, with
           all labels and with few.
"""

from dataclasses import fields, replace

from pretext.proposals import Proposals
from pretext.pseudo_boxes import PseudoBoxes
from pretext.recipes import detreg
from pretext.regions import RegionTask
from ssldet.engine.run import Run


def imagenet() -> Run:
    """Pretrain Deformable DETR on ImageNet: boxes by normalised cuts of SwAV's features, 256 clusters, two rounds.

    Needs: GPUs; 320–480 px.
    """
    run = detreg.imagenet()
    proposals = Proposals(method="objectness", backbone=detreg.SWAV, count=10, side=480, smallest_share=0.05)
    return replace(
        run,
        task=PseudoBoxes(proposals=proposals),
        detector=replace(run.detector, num_classes=256),
    )


def small() -> Run:
    """Pretrain the detector of `detection/small` on regions of a user's own photographs: 64 clusters, two rounds.

    Needs: CPU; 192–256 px; half an hour.
    """
    run = detreg.small()
    assert isinstance(run.task, RegionTask)
    chosen = {name.name: getattr(run.task, name.name) for name in fields(RegionTask)}
    return replace(run, task=PseudoBoxes(**chosen, clusters=64), detector=replace(run.detector, num_classes=64))


def tiny() -> Run:
    """Pretrain a small detector on small images without an accelerator: selective search, 16 clusters, two rounds.

    Needs: CPU; 64 px; minutes.
    """
    run = detreg.tiny()
    task = PseudoBoxes(
        proposals=run.task.proposals,  # type: ignore[attr-defined]
        crop_size=32,
        embedding_level=1,
        jitter=detreg.WITHOUT_JITTER,
        scales=(64,),
        max_size=128,
        eval_scale=64,
        crop=0.0,
        class_weight=1.0,
        clusters=16,
    )
    return replace(run, task=task, detector=replace(run.detector, num_classes=16))
