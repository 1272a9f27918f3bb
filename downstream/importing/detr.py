"""DETR's files -> `Opened`: detection, or panoptic segmentation if the detector has a mask head."""

from collections.abc import Callable, Sequence
from functools import partial

from downstream.detection import Detection
from downstream.panoptic import Panoptic
from ssldet.importing.base import Candidate, Importer, Opened
from ssldet.importing.detr import Assumptions, is_detr, open_detr
from ssldet.weights.coco import STUFF, coco_numbering
from ssldet.weights.detr import DetrFile


def published_task(*, masks: bool, category_ids: Sequence[int]) -> Callable[..., Detection]:
    """Return a function that makes the task of a published detector; its arguments are fields, such as image sizes.

    Args:
        masks: Whether the detector has a mask head.
        category_ids: COCO's id of each class, which tells whether it is stuff; empty if unknown.
    """
    if not masks:
        return Detection
    return partial(Panoptic, stuff=tuple(label for label, key in enumerate(category_ids) if key in STUFF))


def open_file(candidate: Candidate) -> Opened:
    """Build the detector that a file of DETR's authors holds.

    Args:
        candidate: A file with DETR's names.

    Raises:
        CheckpointError: The file holds another model, or its tensors are not exactly those of such a detector.
    """
    return open_detr(candidate, _assume)


def _assume(file: DetrFile) -> Assumptions:
    classes, category_ids = coco_numbering(file.config.num_classes)
    task = published_task(masks=file.config.masks, category_ids=category_ids)()
    return Assumptions(task=task, classes=classes, category_ids=category_ids)


IMPORTER = Importer(
    reads="DETR's files, and those of its authors' model for detectron2",
    recognises=is_detr,
    open=open_file,
    general=True,
)
