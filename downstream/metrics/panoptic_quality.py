"""Segmentations -> PQ: COCO's panoptic quality (Kirillov et al. 2019), as panopticapi counts it.

An answer matches a segment of its class if they overlap by more than half; pixels without a label (void) do not count.
A crowd is never matched; an answer of which more than half lies in void or in a crowd of its class is not counted as
wrong. Each image is reduced to a few counts at once, so that many images need little memory and their order has no
influence.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from downstream.annotations.segments import EveryPixelLabelled, other_areas
from ssldet.errors import DataError
from ssldet.source import Source
from ssldet.types import Batch, Detections, Segmentation

log = logging.getLogger(__name__)

OTHER_AREAS = (
    "another area than stated; their pixels are counted, where panopticapi takes what is stated and differs; "
    "ssldet data check counts them"
)
"""What is said of segments whose stated area is not the number of their pixels."""
Counts = Float[np.ndarray, "C 4"]
"""For each class: sum of the overlaps of matches, number of matches, of wrong answers and of missed segments."""


class PanopticQuality:
    """Panoptic quality over a whole source.

    An image that never came in a batch counts as an image without answers; an image that came twice counts once.

    Attributes:
        source: The source that is evaluated.
    """

    def __init__(self, source: Source) -> None:
        """Start without answers.

        Args:
            source: The source that is evaluated.

        Raises:
            DataError: The pixels of the source are not labelled.
        """
        if not isinstance(source, EveryPixelLabelled):
            raise DataError("no labelled pixels to measure against; evaluate on one panoptic:ANN.json:PNGS:IMAGES")
        self.source: EveryPixelLabelled = source
        self._counts: dict[str, Counts] = {}
        self._warned = False

    def update(self, detections: list[Detections], batch: Batch) -> None:
        """Take in one batch.

        Args:
            detections: One entry per image, each with a segmentation in pixels of the image on disk.
            batch: The images of the detections.

        Raises:
            DataError: An answer has no segmentation, another size, or a class that the source lacks.
        """
        for one, key in zip(detections, batch.keys, strict=True):
            if one.segmentation is None:
                raise DataError(f"image {key}: detections without a segmentation have no panoptic quality")
            answer, classes = one.segmentation, len(self.source.classes)
            if len(answer.labels) and int(answer.labels.max()) >= classes:
                raise DataError(
                    f"image {key}: class number {int(answer.labels.max())} was found, but the data has {classes} "
                    "classes; evaluate on data with the classes of the training set"
                )
            truth = self.source.truth(key)
            if truth.segments.shape != answer.segments.shape:
                sizes = " and ".join(" x ".join(map(str, part.segments.shape)) for part in (answer, truth))
                raise DataError(f"image {key}: answer and truth differ in size, {sizes} (height x width)")
            if not self._warned and other_areas(truth.segments, self.source.stated(key)[2].numpy()):
                self._warned = True
                log.warning("image %s: segments of %s", key, OTHER_AREAS)
            self._counts[key] = count(truth, answer, classes)

    def take_rows(self) -> dict[str, Counts]:
        """Return the counts of each image since the last call, and forget them."""
        taken, self._counts = self._counts, {}
        return taken

    def add_rows(self, rows: Mapping[str, Counts]) -> None:
        """Take in counts that another evaluator of the same source has taken."""
        self._counts.update(rows)

    def results(self) -> dict[str, Any]:
        """Return `PQ`, `SQ` and `RQ` of all classes, of `things` and of `stuff`, and of each class in `per_class`."""
        for key in self.source.all_keys:
            if key not in self._counts:
                labels, crowd, _ = self.source.stated(key)
                self._counts[key] = _all_missed(labels, crowd, len(self.source.classes))
        # In the order of the source, because sums of floating-point numbers depend on their order.
        counts = np.sum([self._counts[key] for key in self.source.all_keys], axis=0)
        return panoptic_quality(counts, self.source.classes, self.source.is_thing)


def count(truth: Segmentation, answer: Segmentation, classes: int) -> Counts:
    """Compare truth and answer of one image. Areas are counted, so that no overlap is above 1 whatever a file states.

    Args:
        truth: The true segmentation.
        answer: The predicted segmentation of the same pixels.
        classes: Number of classes.

    Returns:
        Counts that add up over images.
    """
    labels, found = truth.labels.cpu().numpy(), answer.labels.cpu().numpy()
    crowd = np.zeros(len(labels), dtype=bool) if truth.crowd is None else truth.crowd.cpu().numpy()
    pairs = truth.segments.cpu().numpy().astype(np.int64) * (len(found) + 1) + answer.segments.cpu().numpy()
    shared = np.bincount(pairs.ravel(), minlength=(len(labels) + 1) * (len(found) + 1))
    shared = shared.reshape(len(labels) + 1, len(found) + 1)
    sizes, void, common = shared.sum(axis=0)[1:], shared[0, 1:], shared[1:, 1:]
    areas = shared.sum(axis=1)[1:]
    overlap = common / np.maximum(areas[:, None] + sizes - common - void, 1)
    match = (overlap > 0.5) & (labels[:, None] == found) & ~crowd[:, None]
    forgiven = void + _in_crowd(common, labels, crowd, found)
    wrong = ~match.any(axis=0) & (2 * forgiven <= sizes) & (sizes > 0)
    missed = ~match.any(axis=1) & ~crowd
    true = labels[np.nonzero(match)[0]]
    columns = (
        np.bincount(true, weights=overlap[match], minlength=classes),
        np.bincount(true, minlength=classes),
        np.bincount(found[wrong], minlength=classes),
        np.bincount(labels[missed], minlength=classes),
    )
    return np.stack(columns, axis=1).astype(np.float64)


def _in_crowd(
    common: Int[np.ndarray, "N M"],
    labels: Int[np.ndarray, " N"],
    crowd: Bool[np.ndarray, " N"],
    found: Int[np.ndarray, " M"],
) -> Int[np.ndarray, " M"]:
    """Return the number of pixels of each answer in the crowd of its class; of several crowds the last one counts."""
    inside = np.zeros(len(found), dtype=np.int64)
    for number in np.flatnonzero(crowd):
        inside = np.where(found == labels[number], common[number], inside)
    return inside


def _all_missed(labels: Int[Tensor, " N"], crowd: Bool[Tensor, " N"], classes: int) -> Counts:
    counts = np.zeros((classes, 4))
    counts[:, 3] = np.bincount(labels.numpy()[~crowd.numpy()], minlength=classes)
    return counts


def panoptic_quality(counts: Counts, classes: Sequence[str], is_thing: Sequence[bool]) -> dict[str, Any]:
    """Compute the figures from counts.

    Args:
        counts: Counts summed over all images.
        classes: Class names.
        is_thing: Whether each class is a thing, that is, has countable objects.

    Returns:
        `PQ`, `SQ` and `RQ` in 0..1, means over the classes that occur in truth or answers; the same three under
        `things`, `stuff` and, for each class by name, under `per_class`; -1 if no class occurs.
    """
    overlap, matched, wrong, missed = counts.T
    whole = matched + (wrong + missed) / 2
    occurs = whole > 0
    overlap, matched, whole = overlap[occurs], matched[occurs], whole[occurs]
    figures = np.full((len(classes), 3), -1.0)
    figures[occurs] = np.stack([overlap / whole, overlap / np.maximum(matched, 1), matched / whole], axis=1)
    things = np.asarray(is_thing, dtype=bool)
    return {
        **_mean(figures[occurs]),
        "things": _mean(figures[occurs & things]),
        "stuff": _mean(figures[occurs & ~things]),
        "per_class": {name: _named(row) for name, row in zip(classes, figures, strict=True)},
    }


def _mean(figures: Float[np.ndarray, "N 3"]) -> dict[str, float]:
    return _named(figures.mean(axis=0) if len(figures) else np.full(3, -1.0))


def _named(figures: Float[np.ndarray, " 3"]) -> dict[str, float]:
    return dict(zip(("PQ", "SQ", "RQ"), figures.tolist(), strict=True))
