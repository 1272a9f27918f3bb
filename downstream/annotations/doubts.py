"""Labels -> what was noted of them, and whether they read better as something else than what they should be."""

import numpy as np
from jaxtyping import Float, Int

from downstream.annotations.labels import CUT, LARGE_AREA, NO_AREA, OUTSIDE, Labels
from downstream.annotations.outlines import ASIDE

OUTSIDE_SHARE = 0.05
"""Share of boxes beyond the border above which a file is suspected to hold [x1, y1, x2, y2]."""
DOUBTS = frozenset((LARGE_AREA, NO_AREA, ASIDE))
"""Notes that are warnings wherever a set is opened."""


def told(labels: Labels) -> dict[str, str]:
    """Return what was noted -> a line that says how often, and where first.

    Args:
        labels: What was read.
    """
    places = {what: f"; the first is {where}" for what, where in labels.firsts.items()}
    return {what: f"{count} {what}{places.get(what, '')}" for what, count in labels.notes.items()}


def looks_like_corners(labels: Labels) -> bool:
    """Say whether so many boxes leave their image that x2, y2 may have been stored as width and height."""
    lost = labels.notes.get(OUTSIDE, 0) + labels.notes.get(CUT, 0)
    return lost > OUTSIDE_SHARE * max(len(labels.boxes), 1)


def looks_like_fractions(labels: Labels) -> bool:
    """Say whether no box is larger than a pixel, or none leaves the first: they may be fractions of their image."""
    return are_fractions(labels.boxes)


def are_fractions(boxes: Float[np.ndarray, "N 4"]) -> bool:
    """Say whether no box is larger than a pixel, or none leaves the first.

    Args:
        boxes: Absolute xywh, or what should be.
    """
    low, sides = boxes[:, :2], boxes[:, 2:]
    return len(boxes) > 0 and bool((sides <= 1).all() or (low + sides <= 1).all())


def are_corners(boxes: Float[np.ndarray, "N 4"], sizes: Int[np.ndarray, "N 2"]) -> bool:
    """Say whether what should be xywh reads better as x1, y1, x2, y2: as such it leaves no image, as xywh it does.

    Args:
        boxes: Of answers, which a detector may let leave their image a little.
        sizes: Height and width of the image of each box; 0 where they are not known.
    """
    known = sizes.all(axis=1)
    low, high, limit = boxes[known, :2], boxes[known, 2:], sizes[known, ::-1] + 1
    leaving = (low + high > limit).any(axis=1)
    ordered = ((high > low) & (high <= limit)).all(axis=1)
    return bool(leaving.sum() > OUTSIDE_SHARE * len(low) and (~ordered).sum() <= OUTSIDE_SHARE * len(low))


def twin_boxes(labels: Labels) -> int:
    """Return how many boxes stand in their image before, with the same class and the same corners.

    Args:
        labels: What was read.
    """
    owner = labels.owners()
    columns = (*labels.boxes.T, labels.labels, labels.crowd, owner)
    order = np.lexsort(columns)
    same = [column[order][1:] == column[order][:-1] for column in columns]
    return int(np.logical_and.reduce(same).sum())
