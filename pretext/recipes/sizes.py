"""Sizes of images that recipes have in common: of photographs on two CPU cores, for all recipes named small."""

from typing import TypedDict


class Sizes(TypedDict):
    """Fields of a task that size and crop images, in pixels.

    Attributes:
        scales: Short sides, one of which is drawn for each training image.
        max_size: Limit of the long side.
        eval_scale: Short side outside training.
        crop_scales: Short sides, to one of which an image is resized before it is cropped.
        crop_range: Smallest and largest side of a crop.
    """

    scales: tuple[int, ...]
    max_size: int
    eval_scale: int
    crop_scales: tuple[int, ...]
    crop_range: tuple[int, int]


SMALL_SIZES: Sizes = {
    "scales": (192, 224, 256),
    "max_size": 320,
    "eval_scale": 240,
    "crop_scales": (256, 320),
    "crop_range": (192, 320),
}
"""Those of `random_query_patch/small`, and crops of the same sizes."""
