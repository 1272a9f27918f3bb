"""What is taken for a plain JPEG, Pillow opens with the same size, upright; everything else is left to it."""

import io
import random
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from PIL.ExifTags import Base

from ssldet.data.headers import HEAD, plain_jpeg
from ssldet.data.judging import FORMATS, MODES
from ssldet.data.orientation import upright_size


def written(mode: str = "RGB", **how: object) -> bytes:
    noise = np.random.default_rng(3).integers(0, 256, (47, 61, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, "JPEG", **how)
    return file.getvalue()


def exif() -> Image.Exif:
    turned = Image.Exif()
    turned[Base.Orientation] = 6
    return turned


PLAIN = {
    "usual": written(),
    "progressive": written(progressive=True, quality=95),
    "grey": written("L"),
    "CMYK, with a segment by Adobe": written("CMYK"),
    "comment": written(comment=b"\xff\xd8 no beginning"),
    "colour profile": written(icc_profile=b"p" * 3000),
    "restarts": written(restart_marker_blocks=1),
    "dots per inch": written(dpi=(72, 72)),
}
LEFT = {
    "stated turn": written(exif=exif()),
    "XMP": written(xmp=b"<x/>"),
    "large colour profile": written(icc_profile=b"p" * HEAD),
    "12 bits": written().replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),
    "junk between segments": written()[:2] + b"\0" + written()[2:],
    "other data of programs": written(extra=b"\xff\xed\x00\x10Photoshop 3.0\0"),
    "cut off": written()[:300],
    "PNG": b"\x89PNG\r\n\x1a\n" + bytes(90),
    "nothing": b"",
}


@pytest.mark.parametrize("content", PLAIN.values(), ids=list(PLAIN))
def test_plain_files_need_no_pillow(content: bytes) -> None:
    assert plain_jpeg(content[:HEAD]) == (61, 47)


@pytest.mark.parametrize("content", LEFT.values(), ids=list(LEFT))
def test_unusual_files_are_left_to_pillow(content: bytes) -> None:
    assert plain_jpeg(content[:HEAD]) is None


def damaged(count: int) -> Iterator[bytes]:
    """Files with bytes exchanged, taken out and put in, mostly where segments begin."""
    chance = random.Random(5)
    originals = [*PLAIN.values(), *(LEFT[name] for name in ("stated turn", "XMP", "other data of programs"))]
    for _ in range(count):
        content = bytearray(chance.choice(originals))
        marks = [place for place in range(len(content) - 1) if content[place] == 0xFF and content[place + 1] >= 0xC0]
        for _ in range(chance.choice((1, 1, 2, 4))):
            place = chance.choice(marks) + chance.randrange(12) if chance.random() < 0.8 else chance.randrange(650)
            some = bytes([chance.choice((0, 1, 7, 8, 0xC0, 0xD8, 0xDA, 0xE1, 0xE2, 0xEE, 0xFF, chance.randrange(256)))])
            content[place : place + chance.choice((0, 1, 1, 1, 2))] = some
        yield bytes(content[: chance.randrange(2, 700)] if chance.random() < 0.1 else content)


def test_of_damaged_files_no_more_is_believed_than_pillow_says() -> None:
    believed = 0
    for content in damaged(1500):
        size = plain_jpeg(content[:HEAD])
        if size is None or 0 in size:
            continue
        believed += 1
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            assert (image.size, image.format, image.mode in MODES) == (size, "JPEG", True)
            assert upright_size(image) == size[::-1]
    assert believed > 300
