"""an opened JPEG -> its pixels by torchvision's decoder, in two thirds of the time that Pillow takes.

Both libraries bring a libjpeg of their own. A process asks once whether the two agree to the bit, and else leaves all
files to Pillow, as it does with what is rotated, grey, in CMYK or of several pictures, and with every file that
torchvision refuses: Pillow then says what is wrong with it.
"""

import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import BinaryIO, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from ssldet.data.orientation import is_upright

Decode = Callable[[Tensor], Tensor]
"""Bytes of a JPEG -> `3 H W`, interleaved in memory."""


def decoded(image: Image.Image) -> Tensor | None:
    """Return the pixels of an opened image; `None` for one that Pillow has to decode.

    Only workers of a loader decode in this way: what libjpeg says about damage goes to the standard error of the
    process, which leads nowhere meanwhile.

    Args:
        image: An image as `Image.open` returns it, before `load`.
    """
    if image.format != "JPEG" or image.mode != "RGB" or get_worker_info() is None or not is_upright(image):
        return None
    if getattr(image, "decoderconfig", ()):  # a draft, which torchvision can't decode
        return None
    decode = _decoder()
    if decode is None:
        return None
    file = cast("BinaryIO", image.fp)  # type: ignore[attr-defined]  # of every image that came from a file
    file.seek(0)
    try:
        with _silence():
            pixels = decode(torch.frombuffer(bytearray(file.read()), dtype=torch.uint8))
    except (OSError, RuntimeError):
        pixels = None
    finally:
        file.seek(0)
    width, height = image.size
    return pixels if pixels is not None and pixels.shape == (3, height, width) else None


@cache
def _decoder() -> Decode | None:
    """Return torchvision's decoder, if it is there and agrees with Pillow."""
    try:
        from torchvision.io import ImageReadMode, decode_jpeg

        def decode(content: Tensor) -> Tensor:
            return cast("Tensor", decode_jpeg(content, mode=ImageReadMode.RGB))

        with _silence():
            return decode if all(_agrees(decode, subsampling) for subsampling in range(3)) else None
    except (ImportError, OSError, RuntimeError, AttributeError):  # torchvision may be built without a libjpeg
        return None


def _agrees(decode: Decode, subsampling: int) -> bool:
    noise = np.random.default_rng(0).integers(0, 256, (37, 43, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=80, subsampling=subsampling)
    expected = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
    return torch.equal(decode(torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)), expected)


@contextmanager
def _silence() -> Iterator[None]:
    """Send away what this process writes to standard error, past Python as well, and warnings.

    torchvision from 0.29 on warns that its decoder will move to another package; where it is gone, Pillow decodes.
    """
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
