"""path -> pixels, folders -> Source: plain images without labels, and every way in which a file can be no good.

Files come from strangers, so nothing about them is believed: only regular files are opened, only six formats are
decoded, sizes are judged before a pixel is unpacked, and whatever a decoder throws becomes an `UnreadableError` with
one word for a reason:

    missing forbidden unreachable not-a-file            the file system says no
    empty not-an-image truncated damaged                the content says no
    too-large too-small too-thin                        the size says no
    float-image integer-image odd-colours               pixel values without a declared range, or of no known meaning
    closed-folder                                       a folder that can't be listed
"""

import errno
import hashlib
import os
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from ssldet.data.files import Listing, list_files, tally
from ssldet.data.orientation import changes_sides, turned_upright, upright_size
from ssldet.errors import DataError, SetupError, UnreadableError
from ssldet.escapes import shown
from ssldet.regular import NotRegularError, open_regular
from ssldet.source import Source
from ssldet.types import Sample, Skipped, Targets

Answer = TypeVar("Answer")

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""What is decoded, whatever a file is named. Pillow knows forty more formats; one of them starts a printer language."""
MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "I;16", "I;16L", "I;16B"}
"""Pixel layouts whose meaning is known."""
MAX_ASPECT = 20
"""Longest side over shortest; beyond it a resized image is thinner than one cell of a backbone."""
BACKDROP = (124, 116, 104)
"""Colour behind transparent pixels: the mean of ImageNet, which normalises to nothing, as padding does."""
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
    """

    min_side: int = 17
    max_pixels: int = 64_000_000


ANY_SIZE = ImageRules(min_side=1, max_pixels=2**31)
"""Every size is usable: for files that belong to an image which has been judged already."""


def open_images(specs: Sequence[str | Path], rules: ImageRules) -> "ImageSource":
    """Open folders, globs, file lists and files as one source; every header is read, no pixel.

    Args:
        specs: See `files.list_files`.
        rules: Which images are usable.

    Raises:
        DataError: A specification names nothing, or nothing of it is usable.
    """
    listing = list_files(specs)
    source = ImageSource(listing, rules)
    if not len(source):
        first = source.skipped[-1]
        raise DataError(
            f"0 of {len(listing.names)} images usable in {', '.join(map(shown, specs))} ({tally(source.skipped)}); "
            f"for one, {first.path} is {first.reason}"
        )
    return source


def read_image(path: str | Path, rules: ImageRules) -> UInt8[Tensor, "3 H W"]:
    """Decode one image to RGB: upright as its EXIF says, 16-bit greys scaled, transparency over `BACKDROP`.

    Of an animation the first frame is taken.

    Args:
        path: A file.
        rules: Which images are usable.

    Raises:
        UnreadableError: With a reason from the list on top of this file.
    """
    # Decoders warn about what does no harm here, and about sizes that `ImageRules.max_pixels` has judged.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _patiently(str(path), _decode, rules)


def image_sizes(folder: Path, names: Sequence[str], rules: ImageRules) -> list[tuple[int, int] | UnreadableError]:
    """Return height and width of images as `read_image` gives them, from their headers alone.

    Args:
        folder: Where the files lie.
        names: Paths relative to the folder.
        rules: Which images are usable.

    Returns:
        The size of each image, or what is wrong with it.
    """
    return _inspect(str(folder), names, lambda image, _: upright_size(image), rules)


def is_turned(path: Path, rules: ImageRules) -> bool:
    """Say whether the file of an image states a rotation that exchanges height and width.

    Args:
        path: A file whose header can be read.
        rules: Which images are usable.

    Raises:
        UnreadableError: It can't be read any more.
    """
    return _patiently(str(path), lambda image, _: changes_sides(image), rules)


def thumbnails(
    paths: Sequence[str], size: tuple[int, int], rules: ImageRules
) -> list[UInt8[np.ndarray, "h w"] | UnreadableError]:
    """Return images shrunk to a few grey pixels, upright, to compare them by.

    Args:
        paths: Files.
        size: Height and width of a thumbnail, whatever the aspect of the image.
        rules: Which images are usable.

    Returns:
        The thumbnail of each image, or what is wrong with it.
    """

    def shrink(image: Image.Image, _: int) -> UInt8[np.ndarray, "h w"]:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        # A JPEG is decoded to an eighth of its size in a fraction of the time.
        image.draft("L", (8 * max(size), 8 * max(size)))
        grey = turned_upright(image).convert("L")
        return np.asarray(grey.resize((size[1], size[0]), Image.Resampling.BOX))

    return _inspect("", paths, shrink, rules)


def key_of(name: str) -> str:
    r"""Return the key of an image: its name with everything escaped that can't be printed, and `\\` for a backslash.

    Without the latter, a name with a byte that is no UTF-8 and one that spells its escape would have one key.

    Args:
        name: Path relative to the source's folder.
    """
    return shown(name.replace("\\", "\\\\"))


class ImageSource(Source):
    """Images without labels."""

    classes = ()

    def __init__(self, listing: Listing, rules: ImageRules) -> None:
        """Read all headers and keep what is usable.

        Args:
            listing: Files.
            rules: Which images are usable.
        """
        self._root, self._rules = listing.root, rules
        verdicts = _inspect(listing.root, listing.names, lambda image, size: size, rules)
        skipped = [Skipped(path=v.path, reason=v.reason) for v in verdicts if isinstance(v, UnreadableError)]
        self._skipped = (*listing.skipped, *skipped)
        usable = [(name, v) for name, v in zip(listing.names, verdicts, strict=True) if isinstance(v, int)]
        # One block of bytes instead of a million strings: workers share it, since nothing counts references in it.
        encoded = [os.fsencode(name) for name, _ in usable]
        self._names = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])
        digest = hashlib.blake2b(digest_size=6)
        for name, (_, size) in zip(encoded, usable, strict=True):
            digest.update(name + f"\0{size}\0".encode())
        self._fingerprint = digest.hexdigest()

    @property
    def fingerprint(self) -> str:
        """Short hash of the names and sizes of the usable files."""
        return self._fingerprint

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Files that were found but can't be used, known from their headers."""
        return self._skipped

    def __len__(self) -> int:
        """Number of usable images."""
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Sample:
        """Read one image.

        Raises:
            UnreadableError: The file can't be decoded, or is no longer there.
        """
        image = read_image(self.path_of(index), self._rules)
        nothing = Targets(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
        height, width = image.shape[1:]
        return Sample(image=image, targets=nothing, key=key_of(self._name(index)), original_size=(height, width))

    def path_of(self, index: int) -> Path:
        """Return where an image lies."""
        return Path(self._root, self._name(index))

    def _name(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return os.fsdecode(self._names[self._ends[index] : self._ends[index + 1]])


def _inspect(
    root: str, names: Sequence[str], use: Callable[[Image.Image, int], Answer], rules: ImageRules
) -> list[Answer | UnreadableError]:
    """Return what the header of each file tells, or what is wrong with it."""

    def look(part: Sequence[str]) -> list[Answer | UnreadableError]:
        verdicts: list[Answer | UnreadableError] = []
        for name in part:
            try:
                path = os.path.join(root, name)  # noqa: PTH118  # a million times
                verdicts.append(_patiently(path, use, rules))
            except UnreadableError as error:
                verdicts.append(error)
        return verdicts

    parts = [names[first : first + 256] for first in range(0, len(names), 256)]
    # Threads, because on a network file system a header costs a journey and no work.
    with warnings.catch_warnings(), ThreadPoolExecutor(max_workers=8) as pool:
        warnings.simplefilter("ignore")
        return [verdict for part in pool.map(look, parts) for verdict in part]


def _patiently(path: str, use: Callable[[Image.Image, int], Answer], rules: ImageRules) -> Answer:
    """Open, judge and use an image; ask again where a file system stumbles; know one kind of error."""
    for pause in (*PAUSES, None):
        try:
            return _open(path, use, rules)
        except (UnreadableError, SetupError):
            raise
        except OSError as error:
            if error.errno not in PASSING or pause is None:
                raise UnreadableError(shown(path), _reason(error)) from error
            time.sleep(pause)
        except Exception as error:  # decoders of damaged files raise anything
            raise UnreadableError(shown(path), _reason(error)) from error
    raise AssertionError


def _open(path: str, use: Callable[[Image.Image, int], Answer], rules: ImageRules) -> Answer:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise UnreadableError(shown(path), "empty")
        with Image.open(file, formats=FORMATS) as image:
            fault = _fault(image, rules)
            if fault:
                raise UnreadableError(shown(path), fault)
            return use(image, size)


def _fault(image: Image.Image, rules: ImageRules) -> str | None:
    """Judge an image by its header."""
    short, long = sorted(image.size)
    if short * long > rules.max_pixels:
        return "too-large"
    if image.mode not in MODES:
        return {"F": "float-image", "I": "integer-image"}.get(image.mode, "odd-colours")
    if short < rules.min_side:
        return "too-small"
    return "too-thin" if long > MAX_ASPECT * short else None


def _decode(image: Image.Image, _: int) -> Tensor:
    # Other packages switch this on for the whole process; half an image would then pass as grey and whole.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    upright = turned_upright(image)
    if upright.mode.startswith("I;16"):
        # Pillow's own conversion cuts off at 255 and returns white.
        grey = (np.asarray(upright).astype(np.uint32) * 255 + 32767) // 65535
        pixels = np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    elif upright.has_transparency_data:
        backdrop = Image.new("RGBA", upright.size, (*BACKDROP, 255))
        pixels = np.array(Image.alpha_composite(backdrop, upright.convert("RGBA")).convert("RGB"))
    else:
        pixels = np.array(upright.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)


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
