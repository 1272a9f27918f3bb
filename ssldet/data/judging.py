"""an opened file -> an answer about the image in it, or one word for what is wrong: which files are images at all.

Files come from strangers, so nothing about them is believed: only regular files are opened, only six formats are
decoded, sizes are judged before a pixel is unpacked, and whatever a decoder throws becomes an `UnreadableError` with
one word for a reason:

    missing forbidden unreachable not-a-file            the file system says no
    empty not-an-image truncated damaged                the content says no
    too-large too-small too-thin                        the size says no
    float-image integer-image odd-colours               pixel values without a declared range, or of no known meaning
    5-channels odd-axes                                 not the channels that `data.channels` asks for
    closed-folder                                       a folder that can't be listed
"""

import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple, TypeVar

from PIL import Image, UnidentifiedImageError

from ssldet.data.bands import RGB, BandImage, open_bands
from ssldet.data.headers import HEAD, plain_jpeg
from ssldet.errors import DataError, SetupError, UnreadableError
from ssldet.escapes import shown
from ssldet.regular import NotRegularError, open_regular, read_head

Answer = TypeVar("Answer")

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""What is decoded, whatever a file is named. Pillow knows forty more formats; one of them starts a printer language."""
MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "I;16", "I;16L", "I;16B"}
"""Pixel layouts whose meaning is known."""
MAX_ASPECT = 20
"""Longest side over shortest; beyond it a resized image is thinner than one cell of a backbone."""
PAUSES = (0.1, 0.5, 2.0)
"""Seconds to wait before asking a network file system again."""
PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EINTR, errno.EAGAIN}
"""Errors of network file systems that may be gone a moment later."""
REFUSALS = {
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.ELOOP), "missing"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "forbidden"),
    **dict.fromkeys((errno.EISDIR, errno.ENXIO, errno.ENODEV), "not-a-file"),
}
"""Errors of the file system that will not pass, and the word for each."""


@dataclass(frozen=True, kw_only=True)
class ImageRules:
    """Which images are usable; all others count as bad. Sizes are judged by the header, before a pixel is decoded.

    Attributes:
        min_side: Shortest usable image side in pixels.
        max_pixels: Largest usable image in pixels; Pillow's own limit of 178 million stands above it.
        channels: Channels of an image. Three are a picture, of which everything becomes RGB; others are read as they
            are, see `ssldet.data.bands`.
    """

    min_side: int = 17
    max_pixels: int = 64_000_000
    channels: int = RGB


ANY_SIZE = ImageRules(min_side=1, max_pixels=2**31)
"""Every size is usable: for files that belong to an image which has been judged already."""


class Stamp(NamedTuple):
    """What tells whether a file is still the one that was looked at.

    Attributes:
        size: Bytes.
        changed: Time of the last change, in nanoseconds.
    """

    size: int
    changed: int


Use = Callable[[Image.Image | BandImage, Stamp], Answer]
"""What is done with an image whose header was judged, and whose pixels are not decoded."""


def judged(path: str, use: Use[Answer], rules: ImageRules) -> Answer:
    """Open, judge and use an image file; ask again where a file system stumbles.

    Args:
        path: A file.
        use: What to do with it.
        rules: Which images are usable.

    Raises:
        UnreadableError: It can't be used, whatever was raised inside.
        SetupError: Too many files are open.
    """

    def once() -> Answer:
        with open_regular(path) as file:
            info = os.fstat(file.fileno())
            return _judged(file, Stamp(info.st_size, info.st_mtime_ns), path, use, rules)

    return patiently(once, path)


def glanced(path: str, rules: ImageRules) -> tuple[Stamp, tuple[int, int]] | None:
    """Judge an image file by its first bytes, in a fifth of the time that `judged` takes.

    Args:
        path: A file.
        rules: Which images are usable.

    Returns:
        Size and time of a file that can be used, and the width and height of its image, which is upright; `None` where
        only `judged` can tell.
    """
    if rules.channels != RGB:
        return None
    try:
        head, info = read_head(path, HEAD)
    except (OSError, ValueError):
        return None
    size = plain_jpeg(head)
    if size is None or _fault_of_size(size, rules):
        return None
    return Stamp(info.st_size, info.st_mtime_ns), size


def judged_inside(read: Callable[[], BinaryIO], stamp: Stamp, name: str, use: Use[Answer], rules: ImageRules) -> Answer:
    """Judge and use an image that is a part of a file, by the rules for files.

    Args:
        read: Returns the image as a file.
        stamp: Size of the image, and when the file was changed.
        name: What to call the image in messages.
        use: What to do with it.
        rules: Which images are usable.

    Raises:
        UnreadableError: It can't be used, whatever was raised inside.
        SetupError: Too many files are open.
    """
    return patiently(lambda: _judged(read(), stamp, name, use, rules), name)


def patiently(once: Callable[[], Answer], name: str) -> Answer:
    """Do what reads a file again where a file system stumbles, and know one kind of error.

    Args:
        once: What is done.
        name: What to call the file in messages.

    Raises:
        UnreadableError: It failed, and why.
        SetupError: Too many files are open.
    """
    for pause in (*PAUSES, None):
        try:
            return once()
        except (DataError, SetupError):
            raise
        except OSError as error:
            if error.errno not in PASSING or pause is None:
                raise UnreadableError(shown(name), _reason(error)) from error
            time.sleep(pause)
        except Exception as error:  # decoders of damaged files raise anything
            raise UnreadableError(shown(name), _reason(error)) from error
    raise AssertionError


def _judged(file: BinaryIO, stamp: Stamp, name: str, use: Use[Answer], rules: ImageRules) -> Answer:
    if stamp.size == 0:
        raise UnreadableError(shown(name), "empty")
    if rules.channels != RGB:
        bands = open_bands(file, shown(name), rules.channels, FORMATS)
        if fault := _fault_of_size(bands.size, rules):
            raise UnreadableError(shown(name), fault)
        return use(bands, stamp)
    with Image.open(file, formats=FORMATS) as image:
        fault = _fault(image, rules)
        if fault:
            raise UnreadableError(shown(name), fault)
        return use(image, stamp)


def _fault(image: Image.Image, rules: ImageRules) -> str | None:
    """Judge an image by its header."""
    fault = _fault_of_size(image.size, rules)
    if fault == "too-large" or image.mode in MODES:
        return fault
    return {"F": "float-image", "I": "integer-image"}.get(image.mode, "odd-colours")


def _fault_of_size(size: tuple[int, int], rules: ImageRules) -> str | None:
    """Judge width and height."""
    short, long = sorted(size)
    if short * long > rules.max_pixels:
        return "too-large"
    if short < rules.min_side:
        return "too-small"
    return "too-thin" if long > MAX_ASPECT * short else None


def _reason(error: Exception) -> str:
    code = getattr(error, "errno", None)
    if isinstance(error, NotRegularError):
        return "not-a-file"
    if code in REFUSALS:
        return REFUSALS[code]
    if code in PASSING:
        return "unreachable"
    if isinstance(error, UnidentifiedImageError):
        return "not-an-image"
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return "too-large"
    return "truncated" if isinstance(error, EOFError) or "truncated" in str(error).lower() else "damaged"
