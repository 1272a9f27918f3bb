"""Sizes of objects and images, the resize of a recipe -> how many objects are small, and tiles that help.

COCO calls an object small below 32 x 32 pixels. Here this is counted after the resize, since a detector sees no other
pixels.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

SMALL = 32
"""Side of the square below whose area an object is small, in pixels."""
WANTED = 48
"""Side that a small object of middling size has in the recommended tiles, at least, in pixels."""
MANY = 0.5
"""Share of small objects from which something is recommended."""
STEP, LEAST = 32, 128
"""Recommended sides of tiles are multiples of the first, and at least the second."""


@runtime_checkable
class Resizing(Protocol):
    """Views that say how large an image becomes."""

    def of(self, size: tuple[int, int], /) -> tuple[int, int]:
        """Return height and width of an image after the resize, from those before it."""
        ...


@dataclass(frozen=True, kw_only=True)
class ObjectSizes:
    """How large the objects of a data set are.

    Attributes:
        boxes: Width and height of each object in pixels of its image on disk.
        images: Height and width of the image of each object.
    """

    boxes: Float[np.ndarray, "N 2"]
    images: Int[np.ndarray, "N 2"]

    def small(self, resizing: Resizing) -> Bool[np.ndarray, " N"]:
        """Return which objects are small after the resize.

        Args:
            resizing: How images are resized.
        """
        sizes, of = np.unique(self.images, axis=0, return_inverse=True)
        scales = [np.prod(resizing.of((int(height), int(width)))) / (height * width) for height, width in sizes]
        small: Bool[np.ndarray, " N"] = self.boxes.prod(1) * np.array(scales)[of.reshape(-1)] < SMALL**2
        return small

    def advice(self, resizing: Resizing, recipe: str) -> str:
        """Say what helps if most objects are small after the resize; empty if they are not.

        Args:
            resizing: How images are resized.
            recipe: Name of the recipe that does it.
        """
        small = self.small(resizing)
        if not len(small) or small.mean() < MANY:
            return ""
        height, width = np.median(self.images[small], axis=0).astype(int).tolist()
        rows, columns = resizing.of((height, width))
        side = self._tile(float(np.sqrt(np.median(self.boxes[small].prod(1)))), max(height, width), resizing)
        remedy = (
            f"train in tiles, --set task.tile_size={side}"
            if side
            else "enlarge images, by task.eval_scale, task.scales and task.max_size"
        )
        return (
            f"{small.mean():.0%} of the objects are smaller than {SMALL} x {SMALL} pixels as {recipe} sees them: it "
            f"makes {columns} x {rows} of an image of {width} x {height}; {remedy}"
        )

    @staticmethod
    def _tile(object_side: float, image_side: int, resizing: Resizing) -> int:
        """Return the largest side of a tile that shows an object large enough; 0 where no tile does."""
        for side in range((image_side - 1) // STEP * STEP, LEAST - 1, -STEP):
            if object_side * min(resizing.of((side, side))) / side >= WANTED:
                return side
        return 0
