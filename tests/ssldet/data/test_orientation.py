import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from ssldet.data.images import ANY_SIZE, image_sizes, read_image, thumbnails

TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


@pytest.fixture
def photo():
    """A grey picture of 24 x 40 without any symmetry."""
    return Image.fromarray((np.add.outer(np.arange(24) * 3, np.arange(40) * 4)).astype(np.uint8)).convert("RGB")


def exif_of(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def xmp_of(orientation):
    return f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def raw_profile(orientation):
    content = exif_of(orientation)
    return f"\nexif\n{len(content):8}\n{content.hex()}\n".encode()


PNG_CHUNKS = {
    "eXIf": lambda o: chunk(b"eXIf", exif_of(o).removeprefix(b"Exif\0\0")),
    "tEXt": lambda o: chunk(b"tEXt", b"Raw profile type exif\0" + raw_profile(o)),
    "zTXt": lambda o: chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw_profile(o))),
    "iTXt": lambda o: chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp_of(o)),
    "iTXt packed": lambda o: chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp_of(o))),
}


def png(photo, extra, *, late):
    """A PNG with one more chunk, before or behind its pixels."""
    stream = BytesIO()
    photo.save(stream, "PNG")
    whole = stream.getvalue()
    place = len(whole) - 12 if late else 33
    return whole[:place] + extra + whole[place:]


def saved(photo, form, **options):
    stream = BytesIO()
    photo.save(stream, form, **options)
    return stream.getvalue()


def tiff(photo, **tags):
    entries = ImageFileDirectory_v2()
    for tag, value in tags.items():
        entries[int(tag[1:])] = value
    return saved(photo, "TIFF", tiffinfo=entries)


CARRIERS = {
    "jpeg exif": lambda p, o: saved(p, "JPEG", exif=exif_of(o), quality=100, subsampling=0),
    "jpeg xmp": lambda p, o: saved(p, "JPEG", xmp=xmp_of(o), quality=100, subsampling=0),
    "webp exif": lambda p, o: saved(p, "WEBP", exif=exif_of(o), lossless=True),
    "webp xmp": lambda p, o: saved(p, "WEBP", xmp=xmp_of(o), lossless=True),
    "tiff tag": lambda p, o: tiff(p, t274=o),
    "tiff xmp": lambda p, o: tiff(p, t700=xmp_of(o)),
    "tiff tag before xmp": lambda p, o: tiff(p, t274=o, t700=xmp_of(9 - o)),
    **{
        f"png {name} {'late' if late else 'early'}": (lambda p, o, b=build, late=late: png(p, b(o), late=late))
        for name, build in PNG_CHUNKS.items()
        for late in (False, True)
    },
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("carrier", CARRIERS)
def test_header_and_pixels_are_turned_alike(photo, tmp_path, carrier, orientation):
    (tmp_path / "a").write_bytes(CARRIERS[carrier](photo, orientation))
    expected = TURNED[orientation](np.asarray(photo))
    assert image_sizes(tmp_path, ["a"], ANY_SIZE) == [expected.shape[:2]]
    pixels = read_image(tmp_path / "a", ANY_SIZE).permute(1, 2, 0).numpy()
    assert np.allclose(pixels.astype(int), expected, atol=3)
    (small,) = thumbnails([str(tmp_path / "a")], expected.shape[:2], ANY_SIZE)
    assert np.allclose(small.astype(int), expected[..., 0], atol=3)


@pytest.mark.parametrize("late", [False, True])
def test_exif_of_a_png_goes_before_its_xmp_wherever_they_stand(photo, tmp_path, late):
    stream = png(photo, PNG_CHUNKS["iTXt"](3), late=not late)
    place = len(stream) - 12 if late else 33
    (tmp_path / "a.png").write_bytes(stream[:place] + PNG_CHUNKS["eXIf"](6) + stream[place:])
    assert read_image(tmp_path / "a.png", ANY_SIZE).shape == (3, 40, 24)
    assert image_sizes(tmp_path, ["a.png"], ANY_SIZE) == [(40, 24)]


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff\xff"),
        chunk(b"tEXt", b"Raw profile type exif\0not hex at all\n\n\n\nzz"),
        chunk(b"zTXt", b"Raw profile type exif\0\0not zlib"),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1"),
        chunk(b"eXIf", exif_of(9).removeprefix(b"Exif\0\0")),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_damaged_metadata_costs_only_the_turn(photo, tmp_path, extra, late):
    (tmp_path / "a.png").write_bytes(png(photo, extra, late=late))
    sizes = image_sizes(tmp_path, ["a.png"], ANY_SIZE)
    assert sizes == [(24, 40)]
    assert read_image(tmp_path / "a.png", ANY_SIZE).shape == (3, 24, 40)
