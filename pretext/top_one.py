"""likely classes of images -> how often the first is right: the evaluator of image classification."""

from collections import Counter

from ssldet.errors import DataError
from ssldet.types import Batch, Detections


class TopOne:
    """Counts images whose most likely class is the true one, and those that have it among the five most likely."""

    def __init__(self) -> None:
        """Start without images."""
        self._truths: list[int] = []
        self._first = self._five = 0

    def update(self, answers: list[Detections], batch: Batch) -> None:
        """Take in one batch.

        Args:
            answers: The likely classes of each image, the likeliest first.
            batch: The one label of each image is its class.
        """
        for answer, targets in zip(answers, batch.targets, strict=True):
            truth, likely = int(targets.labels[0]), answer.labels.tolist()
            self._truths.append(truth)
            self._first += likely[:1] == [truth]
            self._five += truth in likely[:5]

    def results(self) -> dict[str, float | int]:
        """Return the figures of the images so far.

        Returns:
            `top1` and `top5`, shares of the images; `chance`, the share of the most frequent class; and `classes`, the
            number of classes that were seen.

        Raises:
            DataError: There was no image.
        """
        count, seen = len(self._truths), Counter(self._truths)
        if not count:
            raise DataError("no image to classify; give at least one")
        return {
            "top1": self._first / count,
            "top5": self._five / count,
            "chance": max(seen.values()) / count,
            "classes": len(seen),
        }
