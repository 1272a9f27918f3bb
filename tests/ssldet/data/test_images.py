import errno
import os
import pickle
import shutil
import signal
import struct
import time
import warnings
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from ssldet import regular
from ssldet.data import images, judging
from ssldet.data.images import BACKDROP, ImageRules, image_sizes, open_images, read_image
from ssldet.errors import DataError, SetupError, UnreadableError
from ssldet.source import Source
from ssldet.types import Skipped

RULES = ImageRules(min_side=17, max_pixels=1_000_000)


@pytest.fixture
def photo():
    """A picture with structure everywhere: no two rows or columns alike."""
    ramp = np.indices((48, 64)).sum(axis=0)
    pixels = np.stack([ramp * 2, ramp[::-1] * 2, (ramp * 7) % 256], axis=2).astype(np.uint8)
    return Image.fromarray(pixels)


def png(width, height, rows, *, depth=8, colour=2):
    """A PNG written by hand, so that it may be as odd as wished."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def reason_of(path, **limits):
    with pytest.raises(UnreadableError) as caught:
        read_image(path, replace(RULES, **limits))
    assert caught.value.path == str(path)
    return caught.value.reason


def test_reads_the_very_pixels(photo, tmp_path):
    photo.save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", RULES)
    assert image.dtype == torch.uint8
    assert image.shape == (3, 48, 64)
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(photo))


@pytest.mark.parametrize("ending", ["jpg", "webp", "bmp", "gif", "tif", "png"])
def test_every_format_of_the_list_is_read(photo, tmp_path, ending):
    photo.save(tmp_path / f"a.{ending}")
    image = read_image(tmp_path / f"a.{ending}", RULES)
    assert image.shape == (3, 48, 64)
    difference = image.permute(1, 2, 0).numpy().astype(int) - np.asarray(photo)
    assert np.abs(difference).mean() < 25  # lossy formats and 256 colours


@pytest.mark.parametrize("ending", ["jpg", "png", "bmp", "gif", "tif", "webp"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.8, 0.95])
def test_truncated_files_are_refused(photo, tmp_path, ending, share, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as another package might
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole.{ending}")
    content = (tmp_path / f"whole.{ending}").read_bytes()
    (tmp_path / f"a.{ending}").write_bytes(content[: int(len(content) * share)])
    reason = reason_of(tmp_path / f"a.{ending}")
    assert reason in ({"truncated"} if ending in {"jpg", "png", "bmp"} else {"truncated", "damaged", "not-an-image"})


def test_a_png_without_its_last_chunk_is_whole(photo, tmp_path):
    photo.save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[:-12])
    image = read_image(tmp_path / "a.png", RULES)
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(photo))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"<html>not found</html>", "not-an-image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not-an-image"),
        (b"\xff\xd8\xff", "not-an-image"),
        (b"%PDF-1.4\n", "not-an-image"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path, content, reason):
    (tmp_path / "a.jpg").write_bytes(content)
    assert reason_of(tmp_path / "a.jpg") == reason


def test_no_printer_language_is_started(tmp_path, monkeypatch):
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "holiday.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 90\n%%EndComments\nshowpage\n%%EOF\n"
    )
    assert reason_of(tmp_path / "holiday.jpg") == "not-an-image"
    assert not (tmp_path / "started").exists()


@pytest.mark.timing
def test_bombs_are_refused_before_they_unpack(tmp_path):
    rows = [b"\0" * 1625] * 13000
    bomb = png(13000, 13000, rows, depth=1, colour=0)
    assert len(bomb) < 30_000  # for 169 million pixels
    (tmp_path / "a.png").write_bytes(bomb)
    begin = time.perf_counter()
    assert reason_of(tmp_path / "a.png") == "too-large"
    assert time.perf_counter() - begin < 2
    (tmp_path / "a.png").write_bytes(png(40_000, 40_000, [b"\0"]))
    assert reason_of(tmp_path / "a.png", max_pixels=10**12) == "too-large"


def test_flipped_bits_in_a_png_never_get_through_or_kill(tmp_path):
    noise = np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    random = np.random.default_rng(0)
    reasons = set()
    for _ in range(300):
        damaged = bytearray(content)
        bit = int(random.integers(0, len(content) * 8))
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / "a.png").write_bytes(damaged)
        reasons.add(reason_of(tmp_path / "a.png"))
    assert reasons <= {"damaged", "truncated", "not-an-image", "too-large"}


def test_cmyk_is_read(photo, tmp_path):
    photo.convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    image = read_image(tmp_path / "a.jpg", RULES).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(image - np.asarray(photo)).mean() < 12


def test_grey_of_16_bits_is_scaled_and_not_cut_off(tmp_path):
    values = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values).save(tmp_path / "a.tif")
    expected = np.round(values / 257).astype(np.uint8)
    for name in ("a.png", "a.tif"):
        image = read_image(tmp_path / name, RULES).numpy()
        assert np.array_equal(image, np.stack([expected] * 3))


def test_colour_of_16_bits_is_scaled(tmp_path):
    row = b"".join(struct.pack(">HHH", 0x1234, 0x8000, 0xFF00) for _ in range(20))
    (tmp_path / "a.png").write_bytes(png(20, 20, [row] * 20, depth=16))
    image = read_image(tmp_path / "a.png", RULES)
    assert [channel.unique().tolist() for channel in image] == [[0x12], [0x80], [0xFF]]


@pytest.mark.parametrize(("kind", "reason"), [(np.float32, "float-image"), (np.int32, "integer-image")])
def test_values_without_a_range_are_refused(tmp_path, kind, reason):
    Image.fromarray(np.ones((32, 32), dtype=kind)).save(tmp_path / "a.tif")
    assert reason_of(tmp_path / "a.tif") == reason


def test_palette_with_transparency_warns_nobody(photo, tmp_path):
    palette = photo.quantize(16)
    palette.info["transparency"] = bytes([0] + [255] * 15)
    palette.save(tmp_path / "a.png")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        image = read_image(tmp_path / "a.png", RULES)
    assert not caught
    clear = torch.from_numpy(np.array(palette)) == 0
    assert image[:, clear].unique(dim=1).flatten().tolist() == list(BACKDROP)


def test_transparent_pixels_hide_their_colour(photo, tmp_path):
    rgba = photo.convert("RGBA")
    rgba.putalpha(Image.fromarray(np.tile(np.array([[0, 255]], dtype=np.uint8), (48, 32))))
    rgba.save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", RULES)
    assert image[:, :, 0::2].unique(dim=1).unique(dim=2).flatten().tolist() == list(BACKDROP)
    assert np.array_equal(image[:, :, 1::2].permute(1, 2, 0).numpy(), np.asarray(photo)[:, 1::2])


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_of_an_animation_the_first_frame_is_read(tmp_path, ending):
    frames = [Image.new("RGB", (20, 30), colour) for colour in [(250, 0, 0), (0, 250, 0), (0, 0, 250)]]
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:], lossless=True)
    assert read_image(tmp_path / f"a.{ending}", RULES)[:, 5, 5].tolist() == [250, 0, 0]


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].swapaxes(0, 1)),
        (8, np.rot90),
    ],
)
def test_images_are_turned_upright(photo, tmp_path, orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo.save(tmp_path / "a.png", exif=exif)
    source = open_images([tmp_path], RULES)
    expected = turn(np.asarray(photo))
    assert np.array_equal(source[0].image.permute(1, 2, 0).numpy(), expected)
    assert source[0].original_size == expected.shape[:2]


def test_damaged_exif_costs_only_the_turn(photo, tmp_path):
    photo.save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\xff\xff\xff")
    assert read_image(tmp_path / "a.jpg", RULES).shape == (3, 48, 64)


@pytest.mark.parametrize(
    ("size", "reason"),
    [((1, 1), "too-small"), ((16, 300), "too-small"), ((20, 401), "too-thin"), ((1, 5000), "too-small")],
)
def test_sizes_are_judged(tmp_path, size, reason):
    Image.new("RGB", size).save(tmp_path / "a.png")
    assert reason_of(tmp_path / "a.png") == reason
    Image.new("RGB", size[::-1]).save(tmp_path / "a.png")
    assert reason_of(tmp_path / "a.png") == reason


def test_sizes_at_the_limit_pass(tmp_path):
    for size in [(17, 17), (20, 400), (1000, 1000)]:
        Image.new("RGB", size).save(tmp_path / "a.png")
        assert read_image(tmp_path / "a.png", RULES).shape == (3, *size[::-1])


@pytest.fixture
def impatient():
    """Kills a test that hangs, at once and not after five minutes."""

    def stop(*_):
        raise AssertionError("hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(2)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("impatient")
def test_pipes_devices_and_folders_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("pipe.jpg", "device.jpg", "folder.jpg"):
        assert reason_of(tmp_path / name) == "not-a-file"


def test_what_the_file_system_says(tmp_path):
    (tmp_path / "nowhere.jpg").symlink_to(tmp_path / "gone")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    assert reason_of(tmp_path / "nowhere.jpg") == "missing"
    assert reason_of(tmp_path / "loop.jpg") == "missing"
    assert reason_of(tmp_path / "gone") == "missing"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_closed_files_and_folders_are_counted(photo, tmp_path):
    photo.save(tmp_path / "open.png")
    photo.save(tmp_path / "closed.png")
    (tmp_path / "closed.png").chmod(0)
    (tmp_path / "folder").mkdir(mode=0)
    skipped = {entry.reason for entry in open_images([tmp_path], RULES).skipped}
    assert skipped == {"forbidden", "closed-folder"}


@pytest.mark.parametrize("fails", [2, 99])
def test_a_stumbling_file_system_is_asked_again(photo, tmp_path, monkeypatch, fails):
    photo.save(tmp_path / "a.png")
    calls = []
    plain = os.open

    def stumble(path, flags):
        calls.append(path)
        if len(calls) <= fails:
            raise OSError(errno.ESTALE, "Stale file handle")
        return plain(path, flags)

    monkeypatch.setattr(regular, "_without_waiting", stumble)
    monkeypatch.setattr(judging, "PAUSES", (0.0, 0.0, 0.0))
    if fails == 2:
        assert read_image(tmp_path / "a.png", RULES).shape == (3, 48, 64)
    else:
        assert reason_of(tmp_path / "a.png") == "unreachable"
    assert len(calls) == min(fails, 3) + 1


@pytest.mark.timing
def test_other_errors_are_not_asked_again(tmp_path):
    begin = time.perf_counter()
    assert reason_of(tmp_path / "gone.jpg") == "missing"
    assert time.perf_counter() - begin < 0.1


def test_too_many_open_files_are_no_fault_of_the_image(photo, tmp_path, monkeypatch):
    photo.save(tmp_path / "a.png")

    def refuse(path, flags):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(regular, "_without_waiting", refuse)
    with pytest.raises(SetupError, match=r"too many open files.*ulimit"):
        open_images([tmp_path], RULES)


@pytest.mark.parametrize("orientation", [1, 6])
def test_sizes_come_from_headers_alone(photo, tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo.save(tmp_path / "a.png", exif=exif)
    photo.save(tmp_path / "b.jpg", exif=exif)
    photo.save(tmp_path / "c.webp", exif=exif)
    content = (tmp_path / "b.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(content[:-300])  # the header is whole, the pixels are not
    size = (48, 64) if orientation == 1 else (64, 48)
    *sizes, missing = image_sizes(tmp_path, ["a.png", "b.jpg", "c.webp", "gone.jpg"], RULES)
    assert sizes == [size] * 3
    assert missing.reason == "missing"


def test_memory_that_runs_out_is_an_unreadable_image(photo, tmp_path, monkeypatch):
    photo.save(tmp_path / "a.png")

    def burst(*_):
        raise MemoryError

    monkeypatch.setattr(images, "_decode", burst)
    assert reason_of(tmp_path / "a.png") == "too-large"


def test_a_source_reads_every_usable_image_and_names_the_others(photo, tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    photo.save(tmp_path / "b.PNG")
    photo.save(tmp_path / "deep" / "er" / "a.jpg")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("hello")
    Image.new("RGB", (5, 5)).save(tmp_path / "tiny.png")
    (tmp_path / "nowhere.jpg").symlink_to("gone")
    os.mkfifo(tmp_path / "pipe.jpg")
    for name in (".DS_Store", "._b.png", "Thumbs.db", "readme.txt"):
        (tmp_path / name).write_text("x")
    source = open_images([tmp_path], RULES)
    assert isinstance(source, Source)
    assert source.classes == ()
    assert [source[i].key for i in range(len(source))] == ["b.PNG", "deep/er/a.jpg"]
    assert source[0].original_size == (48, 64)
    assert len(source[1].targets) == 0
    assert {(Path(entry.path).name, entry.reason) for entry in source.skipped} == {
        ("empty.jpg", "empty"),
        ("text.png", "not-an-image"),
        ("tiny.png", "too-small"),
        ("nowhere.jpg", "missing"),
        ("pipe.jpg", "not-a-file"),
    }
    for index in (2, -1):
        with pytest.raises(IndexError):
            source[index]


def test_the_scan_leaves_the_warning_filters_alone(photo, tmp_path):
    photo.save(tmp_path / "0.png")
    for number in range(1, 600):
        shutil.copy(tmp_path / "0.png", tmp_path / f"{number}.png")
    before = warnings.filters[:]
    assert len(open_images([tmp_path], RULES)) == 600
    assert warnings.filters == before


def test_a_source_travels_light(photo, tmp_path):
    for number in range(30):
        photo.save(tmp_path / f"a_rather_long_name_{number:05}.png")
    source = open_images([tmp_path], RULES)
    parcel = pickle.dumps(source)
    assert len(parcel) < 30 * 60
    copy = pickle.loads(parcel)
    assert copy.fingerprint == source.fingerprint
    assert torch.equal(copy[7].image, source[7].image)


def test_the_fingerprint_knows_names_and_sizes_but_not_the_place(photo, tmp_path):
    (tmp_path / "one").mkdir()
    photo.save(tmp_path / "one" / "a.png")
    photo.save(tmp_path / "one" / "b.png")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    first = open_images([tmp_path / "one"], RULES).fingerprint
    assert open_images([tmp_path / "two"], RULES).fingerprint == first
    (tmp_path / "two" / "a.png").rename(tmp_path / "two" / "c.png")
    second = open_images([tmp_path / "two"], RULES).fingerprint
    Image.new("RGB", (30, 30)).save(tmp_path / "two" / "c.png")
    third = open_images([tmp_path / "two"], RULES).fingerprint
    assert len({first, second, third}) == 3


def test_a_file_deleted_after_the_scan_is_unreadable(photo, tmp_path):
    photo.save(tmp_path / "a.png")
    source = open_images([tmp_path], RULES)
    (tmp_path / "a.png").unlink()
    with pytest.raises(UnreadableError, match="missing"):
        source[0]


def test_nothing_usable_is_told_with_reasons(tmp_path):
    for number in range(3):
        Image.new("RGB", (9, 9)).save(tmp_path / f"{number}.png")
    (tmp_path / "z.jpg").touch()
    with pytest.raises(
        DataError, match=r"^0 of 4 images usable in .*\(too-small 3, empty 1\); for one, .*z\.jpg is empty$"
    ):
        open_images([tmp_path], RULES)


def test_a_file_that_is_no_image_is_told(tmp_path):
    (tmp_path / "notes.md").write_text("hello")
    with pytest.raises(DataError, match=r"0 of 1 images usable in .*notes\.md is not-an-image"):
        open_images([tmp_path / "notes.md"], RULES)


def test_names_that_are_not_utf8_work_and_can_be_written(photo, tmp_path):
    name = tmp_path / os.fsdecode(b"caf\xe9.png")
    photo.save(tmp_path / "a.png")
    try:
        (tmp_path / "a.png").rename(name)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    (tmp_path / "\u65b0\n<b>.png").write_bytes(b"")
    source = open_images([tmp_path], RULES)
    sample = pickle.loads(pickle.dumps(source))[0]
    assert sample.key == "caf\\xe9.png"
    sample.key.encode()
    assert source.skipped == (Skipped(path=f"{tmp_path}/\u65b0\\n<b>.png", reason="empty"),), "a line end is escaped"
    name.unlink()
    with pytest.raises(UnreadableError, match=r"caf\\xe9\.png: missing"):
        source[0]
