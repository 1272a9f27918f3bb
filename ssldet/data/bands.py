"""open file -> an image of any number of channels: TIFF (multi-band, 16 bit), NumPy's `.npy`, or what Pillow reads.

Values are kept as they are, as floats in 0..1: 16 bits are divided by 65535, 8 bits by 255, and nothing is squeezed.
Images are turned upright where they state that they are stored otherwise, as pictures are.
Satellite and microscopy files are read by `tifffile`, which the extra `bands` installs. Axes are told apart by what the
file states, else by which of them has the wanted number of channels.
"""

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ssldet.data.orientation import take_orientation
from ssldet.errors import SetupError, UnreadableError

RGB = 3
"""Channels of an ordinary picture, which Pillow reads."""
TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
NPY_MAGIC = b"\x93NUMPY"
FULL = {"uint8": 255, "uint16": 65_535}
"""Kinds of numbers that are read, and the value that becomes 1; of others no range is declared."""

TURNED: dict[int, tuple[bool, tuple[int, ...]]] = {
    2: (False, (2,)),
    3: (False, (1, 2)),
    4: (False, (1,)),
    5: (True, ()),
    6: (True, (2,)),
    7: (True, (1, 2)),
    8: (True, (1,)),
}
"""EXIF's orientation -> whether rows and columns change places, and which axes of `C H W` are mirrored then."""


@dataclass(frozen=True)
class BandImage:
    """The header of an image, and how its values are read.

    Attributes:
        size: Width and height of the upright image, as Pillow says it.
        read: Returns the upright values, `C H W` in 0..1.
        changes_sides: Whether it is stored with height and width exchanged.
    """

    size: tuple[int, int]
    read: Callable[[], Float[Tensor, "C H W"]]
    changes_sides: bool = False


def open_bands(file: BinaryIO, path: str, channels: int, formats: tuple[str, ...]) -> BandImage:
    """Read the header of an image.

    Args:
        file: The open file.
        path: Its name, for messages.
        channels: Number of channels that it must have.
        formats: What Pillow may decode, where the file is neither a TIFF nor NumPy's.

    Raises:
        UnreadableError: It has other channels or numbers, or is damaged.
        SetupError: It is a TIFF, and tifffile is not installed.
    """
    start = file.read(8)
    file.seek(0)
    if start.startswith(NPY_MAGIC):
        values = np.load(file, allow_pickle=False)
        return _laid_out(values.shape, values.dtype, None, channels, path, lambda: values)
    if start[:4] in TIFF_MAGICS:
        return _of_tiff(file, path, channels)
    image = Image.open(file, formats=formats)
    found = _laid_out(*_of_pillow(image, path), channels, path, lambda: np.asarray(image))
    return _upright(found, take_orientation(image))


def _of_pillow(image: Image.Image, path: str) -> tuple[tuple[int, ...], np.dtype[Any], str]:
    bands = len(image.getbands())
    if image.mode.startswith("I;16"):
        return (image.height, image.width), np.dtype("uint16"), "YX"
    if image.mode not in {"L", "LA", "RGB", "RGBA", "CMYK"}:
        raise UnreadableError(path, "odd-colours")
    shape = (image.height, image.width) if bands == 1 else (image.height, image.width, bands)
    return shape, np.dtype("uint8"), "YX" if bands == 1 else "YXS"


def _of_tiff(file: BinaryIO, path: str, channels: int) -> BandImage:
    if importlib.util.find_spec("tifffile") is None:
        raise SetupError(
            f"{path}: images of {channels} channels in TIFF are read by tifffile; pip install 'ssldet[bands]'"
        )
    import tifffile  # here, because few need it

    with warnings.catch_warnings(action="ignore"):
        series = tifffile.TiffFile(file).series[0]
        stated = series.keyframe.tags.get("Orientation")
    found = _laid_out(tuple(series.shape), series.dtype, str(series.axes), channels, path, series.asarray)
    return _upright(found, 1 if stated is None else int(stated.value))


def _upright(image: BandImage, orientation: int) -> BandImage:
    """Return an image as EXIF says that it is to be turned."""
    if orientation not in TURNED:
        return image
    exchanged, axes = TURNED[orientation]

    def values() -> Float[Tensor, "C H W"]:
        stored = image.read()
        return (stored.transpose(1, 2) if exchanged else stored).flip(axes).contiguous()

    width, height = image.size
    return BandImage((height, width) if exchanged else (width, height), values, exchanged)


def _laid_out(
    shape: tuple[int, ...],
    kind: np.dtype[Any] | None,
    axes: str | None,
    channels: int,
    path: str,
    read: Callable[[], np.ndarray],
) -> BandImage:
    """Find which axes are height, width and channels.

    Raises:
        UnreadableError: None fit, or the numbers have no declared range.
    """
    if kind is None or kind.name not in FULL:
        raise UnreadableError(path, "float-image" if kind is not None and kind.kind == "f" else "integer-image")
    whole = FULL[kind.name]
    kept = [place for place, length in enumerate(shape) if length > 1]
    if axes is not None:
        kept = [place for place in kept if axes[place] in "YX"] + [place for place in kept if axes[place] not in "YX"]
        order = [*kept[2:], *kept[:2]]
    elif len(kept) == 3 and shape[kept[-1]] == channels != shape[kept[0]]:
        order = [kept[2], kept[0], kept[1]]
    else:
        order = kept
    sides = [shape[place] for place in order]
    found = sides[0] if len(sides) == 3 else 1
    if len(sides) not in {2, 3} or found != channels:
        raise UnreadableError(path, f"{found}-channels" if len(sides) in {2, 3} else "odd-axes")
    height, width = sides[-2:]

    def values() -> Float[Tensor, "C H W"]:
        array = read().reshape(shape).transpose([*order, *(place for place in range(len(shape)) if place not in order)])
        pixels = np.ascontiguousarray(array.reshape(channels, height, width), dtype=np.float32)
        return torch.from_numpy(pixels / whole)

    return BandImage(size=(width, height), read=values)
