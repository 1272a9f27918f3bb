"""images to train on -> most of them, and a few that are kept aside to measure on.

Which ones follows from the names of the files alone, so that they are the same when a run is resumed, when the set lies
elsewhere, and in whatever order it was named; most of them stay the same when images are added.
"""

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from heapq import nsmallest
from typing import Any

import numpy as np

from ssldet.data.sources import PartSource
from ssldet.source import GroundTruth, Measurable, Source
from ssldet.types import Batch, Detections

log = logging.getLogger(__name__)

USUAL_SHARE = 0.05
"""Share of the images that is held out where neither images to measure on nor a share are named."""
MOST = 200
"""Largest number of images that are held out: more only take time."""


class MeasurablePart(PartSource, Measurable):
    """Some images of a labelled source, on which a metric can be computed as on the whole."""

    source: Measurable

    def __init__(self, whole: Measurable, indices: Sequence[int]) -> None:
        """Choose.

        Args:
            whole: All images.
            indices: Which to keep, in order.
        """
        super().__init__(whole, indices)

    @property
    def keys(self) -> tuple[str, ...]:
        """`Sample.key` of each image."""
        keys = self.source.keys
        return tuple(keys[self.inner(index)] for index in range(len(self)))

    @property
    def image_ids(self) -> tuple[int, ...] | tuple[str, ...]:
        """Original id of each image."""
        ids: Sequence[Any] = self.source.image_ids
        return tuple(ids[self.inner(index)] for index in range(len(self)))

    def ground_truth(self) -> GroundTruth:
        """Return the annotations of these images in COCO's form, with original ids."""
        truth, kept = self.source.ground_truth(), set(self.image_ids)
        return truth | {
            "images": [row for row in truth["images"] if row["id"] in kept],
            "annotations": [row for row in truth["annotations"] if row["image_id"] in kept],
        }

    def to_results(self, detections: Sequence[Detections], batch: Batch) -> list[dict[str, Any]]:
        """Return detections as COCO results with original ids.

        Args:
            detections: One entry per image, absolute xyxy in pixels of the image on disk.
            batch: Where they were found.
        """
        return self.source.to_results(detections, batch)


def hold_out(whole: Source, share: float) -> tuple[Source, Source | None]:
    """Split a source into what is trained on and what is measured on.

    Args:
        whole: All images.
        share: Share to hold out, rounded down and at most `MOST`; of fewer images than make up one, none is held out.

    Returns:
        The images to train on, and those held out; `None` where there are none.
    """
    count = min(int(share * len(whole)), MOST)
    if not count:
        if share:
            log.info("%d images are too few to hold some out, so nothing is measured; name images by --val", len(whole))
        return whole, None
    digests = nsmallest(count, zip(_digests(whole), range(len(whole)), strict=True))
    held = sorted(place for _, place in digests)
    log.info(
        "%d of %d images are held out: measured, not trained on (--val IMAGES measures on others, --val none on none)",
        count,
        len(whole),
    )
    part = MeasurablePart(whole, held) if isinstance(whole, Measurable) else PartSource(whole, held)
    return PartSource(whole, np.delete(np.arange(len(whole)), held)), part


def _digests(source: Source) -> Iterator[bytes]:
    """Yield a hash of each image's path below the folder that all of them lie in; of its number where it has none."""
    folders = {os.path.dirname(name) or os.curdir for name in source.all_names() if name is not None}  # noqa: PTH120
    root = os.path.commonpath(folders) if folders else ""
    start = os.path.join(root, "")  # noqa: PTH118
    for number, name in enumerate(source.all_names()):
        if name is None:
            inside = str(number)
        # What needs no normalising is a million times faster without.
        elif name.startswith(start) and "/.." not in name:
            inside = name[len(start) :]
        else:
            inside = os.path.relpath(name, root)
        yield hashlib.blake2b(os.fsencode(inside), digest_size=8).digest()
