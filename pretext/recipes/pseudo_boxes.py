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
    return _clustered(detreg.small(), clusters=64)


def tiny() -> Run:
    """Pretrain a small detector on small images without an accelerator: selective search, 16 clusters, two rounds.

    Needs: CPU; 64 px; minutes.
    """
    return _clustered(detreg.tiny(), clusters=16)


def deformable_tiny() -> Run:
    """Pretrain the Deformable DETR of `random_query_patch/deformable-tiny` on clusters of regions, in two rounds.

    Needs: CPU; 64 px; minutes.
    """
    return detreg.on_deformable(tiny())


def _clustered(run: Run, clusters: int) -> Run:
    """Return a run on regions with their clusters as classes, of which the detector gets as many."""
    assert isinstance(run.task, RegionTask)
    of_regions = {field.name: getattr(run.task, field.name) for field in fields(RegionTask)}
    task = PseudoBoxes(**of_regions, clusters=clusters)
    return replace(run, task=task, detector=replace(run.detector, num_classes=clusters))
