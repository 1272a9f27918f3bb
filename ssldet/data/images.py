"""path -> pixels, folders -> Source: plain images without labels; `judging` says which files can be used."""

import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageFile
from torch import Tensor

from ssldet.data import drafts, jpegs
from ssldet.data.bands import BandImage
from ssldet.data.files import tally
from ssldet.data.image_index import Usable, usable_images
from ssldet.data.judging import ANY_SIZE, Answer, ImageRules, Stamp, Use, glanced, judged, judged_inside
from ssldet.data.orientation import changes_sides, turned_upright, upright_size
from ssldet.data.parallel import over_images
from ssldet.errors import DataError, UnreadableError
from ssldet.escapes import shown
from ssldet.source import Source
from ssldet.types import Pixels, Sample, Skipped, Targets

__all__ = [
    "ANY_SIZE",
    "BACKDROP",
    "ImageRules",
    "ImageSource",
    "image_sizes",
    "is_turned",
    "key_of",
    "open_images",
    "opened",
    "read_image",
    "read_image_inside",
    "read_sample_inside",
    "size_of",
    "thumbnails",
    "thumbnails_inside",
    "turned",
    "unlabelled",
]

BACKDROP = (124, 116, 104)
"""Colour behind transparent pixels: the mean of ImageNet, which normalises to nothing, as padding does."""


def open_images(specs: Sequence[str | Path], rules: ImageRules) -> "ImageSource":
    """Open folders, globs, file lists and files as one source; every header is read, no pixel.

    Args:
        specs: See `files.list_files`.
        rules: Which images are usable.

    Raises:
        DataError: A specification names nothing, or nothing of it is usable.
    """
    source = ImageSource(usable_images(specs, rules), rules)
    if not len(source):
        first = source.skipped[-1]
        raise DataError(
            f"0 of {source.usable.listed} images usable in {', '.join(map(shown, specs))} ({tally(source.skipped)}); "
            f"for one, {first.path} is {first.reason}"
        )
    return source


def read_image(path: str | Path, rules: ImageRules) -> Pixels:
    """Decode one image to RGB: upright as its EXIF says, 16-bit greys scaled, transparency over `BACKDROP`.

    Of an animation the first frame is taken. Where the rules ask for other channels, they are read as floats in 0..1.

    Args:
        path: A file.
        rules: Which images are usable.

    Raises:
        UnreadableError: With a reason from the list on top of `judging`.
    """
    with _quiet():
        return judged(str(path), _decode, rules)


def read_image_inside(read: Callable[[], BinaryIO], stamp: Stamp, name: str, rules: ImageRules) -> Pixels:
    """Decode one image that is a part of a file, as `read_image` does.

    Args:
        read: Returns the image as a file.
        stamp: Size of the image, and when the file was changed.
        name: What to call the image in messages.
        rules: Which images are usable.

    Raises:
        UnreadableError: With a reason from the list on top of `judging`.
    """
    with _quiet():
        return judged_inside(read, stamp, name, _decode, rules)


def read_sample_inside(
    read: Callable[[], BinaryIO], stamp: Stamp, name: str, rules: ImageRules, *, key: str, draft: int
) -> Sample:
    """Decode one image that is a part of a file, as a sample without targets.

    Args:
        read: Returns the image as a file.
        stamp: Size of the image, and when the file was changed.
        name: What to call the image in messages.
        rules: Which images are usable.
        key: Its key.
        draft: See `drafts.draft`.

    Raises:
        UnreadableError: With a reason from the list on top of `judging`.
    """
    with _quiet():
        decoded = judged_inside(read, stamp, name, partial(_decode_drafted, draft=draft), rules)
    return unlabelled(decoded.pixels, key, decoded.size)


def image_sizes(folder: Path, names: Sequence[str], rules: ImageRules) -> list[tuple[int, int] | UnreadableError]:
    """Return height and width of images as `read_image` gives them, from their headers alone.

    Args:
        folder: Where the files lie.
        names: Paths relative to the folder.
        rules: Which images are usable.

    Returns:
        The size of each image, or what is wrong with it.
    """
    return _answers(str(folder), names, size_of, rules, _size_at_a_glance)


def is_turned(path: Path, rules: ImageRules) -> bool:
    """Say whether the file of an image states a rotation that exchanges height and width.

    Args:
        path: A file whose header can be read.
        rules: Which images are usable.

    Raises:
        UnreadableError: It can't be read any more.
    """
    return judged(str(path), turned, rules)


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
    return _answers("", paths, partial(_thumbnail, size=size), rules)


def thumbnails_inside(
    images: Sequence[tuple[str, int]], content: Callable[[int], bytes], size: tuple[int, int], rules: ImageRules
) -> list[UInt8[np.ndarray, "h w"] | UnreadableError]:
    """Return thumbnails of images that are parts of files, as `thumbnails` does.

    Args:
        images: What to call each image in messages, and its number.
        content: Number -> the bytes of an image.
        size: Height and width of a thumbnail.
        rules: Which images are usable.
    """
    use = partial(_thumbnail, size=size)

    def ask(place: int) -> UInt8[np.ndarray, "h w"]:
        name, number = images[place]
        whole = content(number)
        return judged_inside(partial(opened, whole), Stamp(len(whole), 0), name, use, rules)

    return over_images(len(images), ask)


def opened(content: bytes | memoryview) -> BinaryIO:
    """Return the bytes of an image as a file.

    Args:
        content: They are not copied before something is read.
    """
    return io.BufferedReader(_Content(content))


class _Content(io.BytesIO):
    """Bytes as a file that knows how it was opened."""

    mode = "rb"


def key_of(name: str) -> str:
    r"""Return the key of an image: its name with everything escaped that can't be printed, and `\\` for a backslash.

    Without the latter, a name with a byte that is no UTF-8 and one that spells its escape would have one key.

    Args:
        name: Path relative to the source's folder.
    """
    return shown(name.replace("\\", "\\\\"))


class ImageSource(Source):
    """Images without labels.

    Attributes:
        usable: The images, and what is known of them.
    """

    classes = ()

    def __init__(self, usable: Usable, rules: ImageRules) -> None:
        """Take images that were judged.

        Args:
            usable: The images.
            rules: Which images are usable.
        """
        self.usable, self._rules, self._draft = usable, rules, 0
        self._skipped = usable.skipped

    @property
    def fingerprint(self) -> str:
        """Short hash of the names and sizes of the usable files."""
        return self.usable.fingerprint

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Files that were found but can't be used, known from their headers."""
        return self._skipped

    def __len__(self) -> int:
        """Number of usable images."""
        return len(self.usable.names)

    def __getitem__(self, index: int) -> Sample:
        """Read one image.

        Raises:
            UnreadableError: The file can't be decoded, or is no longer there.
        """
        name = self._name(index)
        path, decode = os.path.join(self.usable.root, name), partial(_decode_drafted, draft=self._draft)  # noqa: PTH118
        with _quiet():
            decoded = judged(path, decode, self._rules)
        self.usable.require_same(index, decoded.stamp)
        return unlabelled(decoded.pixels, key_of(name), decoded.size)

    def drafted(self, short: int) -> "ImageSource":
        """Return the same images, JPEGs decoded smaller."""
        other = copy(self)
        other._draft = short
        return other

    def path_of(self, index: int) -> Path:
        """Return where an image lies."""
        return Path(self.usable.root, self._name(index))

    def name_of(self, index: int) -> str:
        """Return where an image lies, as text."""
        return os.path.join(self.usable.root, self._name(index))  # noqa: PTH118  # a million times

    def all_names(self) -> Iterator[str]:
        """Yield where each image lies, as text."""
        return map(os.path.join(self.usable.root, "").__add__, self.usable.names)  # noqa: PTH118

    def _name(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.usable.names[index]


def unlabelled(image: Pixels, key: str, size: tuple[int, int] | None = None) -> Sample:
    """Return an image as a sample without targets.

    Args:
        image: Its pixels.
        key: Its key.
        size: Height and width on disk, where they are others.
    """
    height, width = image.shape[1:]
    return Sample(image=image, targets=Targets.none(), key=key, original_size=size or (height, width))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep decoders from warning about what does no harm here, and about sizes that `ImageRules` has judged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _Decoded(NamedTuple):
    pixels: Tensor
    size: tuple[int, int] | None
    stamp: Stamp


def _decode_drafted(image: Image.Image | BandImage, stamp: Stamp, *, draft: int) -> _Decoded:
    size = None if isinstance(image, BandImage) else drafts.draft(image, draft)
    return _Decoded(_decode(image, stamp), size, stamp)


def size_of(image: Image.Image | BandImage, _: Stamp) -> tuple[int, int]:
    """Return height and width of an opened image as `read_image` gives it."""
    return (image.size[1], image.size[0]) if isinstance(image, BandImage) else upright_size(image)


def turned(image: Image.Image | BandImage, _: Stamp) -> bool:
    """Say whether an opened image states a rotation that exchanges height and width."""
    return image.changes_sides if isinstance(image, BandImage) else changes_sides(image)


def _thumbnail(image: Image.Image | BandImage, _: Stamp, *, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    if isinstance(image, BandImage):
        small = Image.fromarray((255 * image.read().mean(0)).byte().numpy())
        return np.asarray(small.resize((size[1], size[0]), Image.Resampling.BOX))
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    # A JPEG is decoded to an eighth of its size in a fraction of the time.
    image.draft("L", (8 * max(size), 8 * max(size)))
    grey = _in_bytes(turned_upright(image)).convert("L")
    return np.asarray(grey.resize((size[1], size[0]), Image.Resampling.BOX))


def _size_at_a_glance(path: str, rules: ImageRules) -> tuple[int, int] | None:
    return None if (seen := glanced(path, rules)) is None else (seen[1][1], seen[1][0])


def _nothing_at_a_glance(_: str, __: ImageRules) -> None:
    """Return `None`: the whole file is needed."""


def _answers(
    root: str,
    names: Sequence[str],
    use: Use[Answer],
    rules: ImageRules,
    glance: Callable[[str, ImageRules], Answer | None] = _nothing_at_a_glance,
) -> list[Answer | UnreadableError]:
    """Return what is found in each file, at a glance where that is possible, or what is wrong with it."""

    def ask(number: int) -> Answer:
        path = os.path.join(root, names[number])  # noqa: PTH118  # a million times
        seen = glance(path, rules)
        return judged(path, use, rules) if seen is None else seen

    return over_images(len(names), ask)


def _decode(image: Image.Image | BandImage, _: Stamp) -> Tensor:
    if isinstance(image, BandImage):
        return image.read()
    # Other packages switch this on for the whole process; half an image would then pass as grey and whole.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    if (decoded := jpegs.decoded(image)) is not None:
        return decoded
    upright = _in_bytes(turned_upright(image))
    pixels = np.array(upright if upright.mode == "RGB" else upright.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _in_bytes(image: Image.Image) -> Image.Image:
    """Return an image that Pillow converts as it looks: 16 bits scaled to 8, transparency over `BACKDROP`."""
    if image.mode.startswith("I;16"):
        # Pillow's own conversion cuts off at 255 and returns white.
        return Image.fromarray(((np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))
    if image.has_transparency_data:
        backdrop = Image.new("RGBA", image.size, (*BACKDROP, 255))
        return Image.alpha_composite(backdrop, image.convert("RGBA")).convert("RGB")
    return image
