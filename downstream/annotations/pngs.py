"""a PNG of COCO's panoptic kind -> the number of the segment that each pixel belongs to."""

import warnings
from collections.abc import Collection
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import Image, ImageFile

from ssldet.data.bands import BandImage
from ssldet.data.judging import ANY_SIZE, Stamp, judged
from ssldet.data.orientation import turned_upright

GREY = 1 + 256 + 65_536
"""What an id is divided by where red, green and blue are equal and a program has saved them as one channel."""


def read_ids(path: Path, listed: Collection[int]) -> Int[np.ndarray, "H W"]:
    """Return the number that each pixel of a PNG stands for: R + 256 G + 65536 B, or its value in a grey one.

    Values are taken as they are stored, unlike those of a photograph. Programs that make files smaller save colours as
    grey where all of them are equal; that is told by the ids that are listed.

    Args:
        path: A PNG of COCO's kind.
        listed: The ids of the segments that it should hold.

    Raises:
        UnreadableError: It can't be decoded.
    """
    with warnings.catch_warnings(action="ignore"):  # of decoders, about sizes that were judged
        ids: Int[np.ndarray, "H W"] = judged(str(path), partial(_ids, listed=listed), ANY_SIZE)
    return ids


def _ids(image: Image.Image | BandImage, _: Stamp, *, listed: Collection[int]) -> Int[np.ndarray, "H W"]:
    assert isinstance(image, Image.Image)
    # Other packages switch this on for the whole process; half a PNG would then pass as whole.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    upright = turned_upright(image)
    if len(upright.getbands()) == 1 and upright.mode != "P":
        values: Int[np.ndarray, "H W"] = np.asarray(upright).astype(np.int32)
        present, known = set(np.unique(values).tolist()) - {0}, set(listed)
        colours = {GREY * value for value in present}
        return GREY * values if colours <= known and not present <= known else values
    red, green, blue = np.asarray(upright.convert("RGB")).astype(np.int32).transpose(2, 0, 1)
    ids: Int[np.ndarray, "H W"] = red + 256 * green + 65_536 * blue
    return ids
