"""torchvision's decoder gives what Pillow gives, or leaves a file to it."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.ExifTags import Base

from ssldet.data import jpegs
from ssldet.data.images import read_image
from ssldet.data.judging import ANY_SIZE
from ssldet.errors import UnreadableError


def written(**how: object) -> bytes:
    noise = np.random.default_rng(3).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((61, 47), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.convert(str(how.pop("mode", "RGB"))).save(file, "JPEG", **{"quality": 85, **how})
    return file.getvalue()


@pytest.fixture
def in_a_worker(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(jpegs, "get_worker_info", lambda: "a worker")
    return monkeypatch


def told(path: Path, *, pillow_only: bool, patch: pytest.MonkeyPatch) -> torch.Tensor | str:
    """Return the pixels of a file, or what is wrong with it."""
    with patch.context() as changed:
        if pillow_only:
            changed.setattr(jpegs, "decoded", lambda image: None)
        try:
            return read_image(path, ANY_SIZE)
        except UnreadableError as error:
            return error.reason


FORMS = {
    "444": {"subsampling": 0},
    "422": {"subsampling": 1},
    "420": {"subsampling": 2},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 3},
    "quality 100": {"quality": 100, "subsampling": 0},
}


@pytest.mark.parametrize("form", FORMS)
def test_pixels_are_those_of_pillow(form: str, tmp_path: Path, in_a_worker: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(written(**FORMS[form]))
    with Image.open(path) as image:
        ours = jpegs.decoded(image)
        assert ours is not None
        assert torch.equal(ours, torch.from_numpy(np.array(image)).permute(2, 0, 1))
        assert ours.stride() == (1, 61 * 3, 3)
    assert torch.equal(read_image(path, ANY_SIZE), ours)


@pytest.mark.parametrize(
    "how", [{"mode": "L"}, {"mode": "CMYK"}, {"exif": {Base.Orientation: 6}}], ids=["grey", "cmyk", "rotated"]
)
def test_what_is_no_plain_picture_is_left_to_pillow(
    how: dict[str, object], tmp_path: Path, in_a_worker: pytest.MonkeyPatch
) -> None:
    if "exif" in how:
        exif = Image.Exif()
        exif[Base.Orientation] = 6
        how = {"exif": exif}
    path = tmp_path / "a.jpg"
    path.write_bytes(written(**how))
    with Image.open(path) as image:
        assert jpegs.decoded(image) is None
    pixels = read_image(path, ANY_SIZE)
    assert pixels.shape == ((3, 61, 47) if "exif" in how else (3, 47, 61))


def test_only_workers_decode_in_this_way(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(written())
    with Image.open(tmp_path / "a.jpg") as image:
        assert jpegs.decoded(image) is None


def test_a_decoder_that_disagrees_is_not_used(tmp_path: Path, in_a_worker: pytest.MonkeyPatch) -> None:
    in_a_worker.setattr("torchvision.io.decode_jpeg", lambda content, mode: torch.zeros(3, 37, 43, dtype=torch.uint8))
    in_a_worker.setattr(jpegs, "_decoder", jpegs._decoder.__wrapped__)
    (tmp_path / "a.jpg").write_bytes(written())
    with Image.open(tmp_path / "a.jpg") as image:
        assert jpegs.decoded(image) is None


def test_damaged_files_are_judged_alike_and_in_silence(
    tmp_path: Path, in_a_worker: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    chance, path = random.Random(5), tmp_path / "a.jpg"
    forms = [written(**form) for form in FORMS.values()]
    read = 0
    for number in range(150):
        content = bytearray(chance.choice(forms))
        place, length = chance.randrange(2, len(content)), chance.randrange(1, 30)
        damage = [b"", bytes(chance.randrange(256) for _ in range(length)), None][number % 3]
        content[place : None if damage is None else place + (length if damage == b"" else 0)] = damage or b""
        path.write_bytes(content)
        ours, theirs = (told(path, pillow_only=only, patch=in_a_worker) for only in (False, True))
        assert type(ours) is type(theirs)
        assert ours == theirs if isinstance(ours, str) else torch.equal(ours, theirs)
        read += not isinstance(ours, str)
    assert 20 < read < 130
    assert capfd.readouterr().err == ""
