"""an opened image -> which way is up: the one rule by which headers and decoded pixels are turned upright.

EXIF counts eight orientations; from 5 on height and width change places. A file states its orientation in EXIF, in a
PNG's raw profile of EXIF, or in XMP; EXIF goes first. In a PNG each of these may stand behind the pixels.
"""

import zlib
from collections.abc import Iterator
from typing import BinaryIO, cast

from PIL import Image
from PIL.ExifTags import Base
from PIL.TiffImagePlugin import TiffImageFile

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Orientation -> what turns the stored pixels upright; 1 is upright already."""
CHUNKS = 65_536
"""Chunks of a PNG that are walked at most; libpng writes 8 KB of pixels into each."""
PROFILE = 1 << 20
"""Bytes of metadata that are read at most from one chunk, unpacked."""


def take_orientation(image: Image.Image) -> int:
    """Return what is left to do to an opened image, and take it out of the image's EXIF so that it is done once.

    No pixel is decoded. Pillow turns a TIFF whose tag states an orientation by itself, size and pixels alike: nothing
    is left to do then.

    Args:
        image: An image as `Image.open` returns it, before `load`.

    Returns:
        A key of `TURNS`, or 1 for an image that is upright, or whose EXIF is damaged.
    """
    if isinstance(image, TiffImageFile) and Base.Orientation in image.tag_v2:
        return 1
    if image.format == "PNG":
        _add_late_metadata(image)
    try:
        # A PNG's own `getexif` would decode the pixels to reach what stands behind them.
        exif = Image.Image.getexif(image)
        stated = exif.pop(Base.Orientation, 1)
    except Exception:  # damaged EXIF around whole pixels
        return 1
    return stated if stated in TURNS else 1


def is_upright(image: Image.Image) -> bool:
    """Say whether the EXIF of an opened JPEG asks for no turn, or is damaged; it is left as it is.

    Args:
        image: A JPEG as `Image.open` returns it, before `load`.
    """
    try:
        return image.getexif().get(Base.Orientation, 1) not in TURNS
    except Exception:  # damaged EXIF around whole pixels
        return True


def exchanges_sides(image: Image.Image) -> bool:
    """Say whether the EXIF of an opened JPEG exchanges height and width; it is left as it is.

    Args:
        image: A JPEG as `Image.open` returns it, before `load`.
    """
    try:
        return image.getexif().get(Base.Orientation, 1) in {5, 6, 7, 8}
    except Exception:  # damaged EXIF around whole pixels
        return False


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return height and width of an opened image after it was turned upright; no pixel is decoded."""
    width, height = image.size
    return (width, height) if take_orientation(image) >= 5 else (height, width)


def changes_sides(image: Image.Image) -> bool:
    """Say whether an opened image is stored with height and width exchanged; no pixel is decoded."""
    if isinstance(image, TiffImageFile) and Base.Orientation in image.tag_v2:
        return image.tag_v2[Base.Orientation] in {5, 6, 7, 8}
    return take_orientation(image) >= 5


def turned_upright(image: Image.Image) -> Image.Image:
    """Return an opened image decoded and turned upright."""
    orientation = take_orientation(image)
    image.load()
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def _add_late_metadata(image: Image.Image) -> None:
    """Add to a PNG's `info` what its chunks behind the pixels state."""
    file = cast("BinaryIO", image.fp)  # type: ignore[attr-defined]  # of every image that came from a file
    here = file.tell()
    for kind, content in _chunks_after_pixels(file):
        if kind == b"eXIf":
            image.info.setdefault("exif", b"Exif\0\0" + content)
            continue
        key, _, rest = content.partition(b"\0")
        text = _text_of(kind, rest)
        if key == b"Raw profile type exif":
            image.info.setdefault("Raw profile type exif", text.decode("latin-1"))
        elif key == b"XML:com.adobe.xmp":
            image.info.setdefault("xmp", text)
    file.seek(here)


def _chunks_after_pixels(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and content of the metadata chunks behind the pixels of a PNG."""
    place, pixels_passed = 8, False
    for _ in range(CHUNKS):
        file.seek(place)
        head = file.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if len(head) < 8 or kind == b"IEND":
            return
        if kind == b"IDAT":
            pixels_passed = True
        elif pixels_passed and kind in {b"eXIf", b"tEXt", b"zTXt", b"iTXt"} and length <= PROFILE:
            yield kind, file.read(length)
        place += 12 + length


def _text_of(kind: bytes, rest: bytes) -> bytes:
    """Return the text behind the key of a PNG's text chunk; empty where it can't be unpacked."""
    if kind == b"tEXt":
        return rest
    if kind == b"zTXt":
        return _unpacked(rest[1:])
    packed, languages = rest[:1] == b"\1", rest[2:].split(b"\0", 2)
    if len(languages) < 3:
        return b""
    return _unpacked(languages[2]) if packed else languages[2]


def _unpacked(content: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(content, PROFILE)
    except zlib.error:
        return b""
