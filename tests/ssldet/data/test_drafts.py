"""JPEGs of training without labels are decoded smaller, by the rule that the documentation states."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssldet.data.images import ImageRules, open_images
from ssldet.data.sources import Unlabelled, open_source
from ssldet.engine.run import Run
from ssldet.engine.sources import open_sources
from ssldet.errors import ConfigError
from ssldet.recipe import check, override
from ssldet.registry import find
from ssldet.source import Source

RULES = ImageRules()


def photo(path: Path, width: int, height: int, orientation: int = 1, **how: object) -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, **how)


def one(folder: Path, short: int) -> tuple[tuple[int, ...], tuple[int, int]]:
    sample = open_images([folder], RULES).drafted(short)[0]
    return tuple(sample.image.shape[1:]), sample.original_size


@pytest.mark.parametrize(
    ("short", "shape"),
    [(0, (203, 331)), (102, (203, 331)), (101, (102, 166)), (51, (102, 166)), (50, (51, 83)), (25, (26, 42))],
)
def test_the_smallest_is_taken_whose_short_side_is_long_enough(
    tmp_path: Path, short: int, shape: tuple[int, int]
) -> None:
    photo(tmp_path / "a.jpg", 331, 203)
    assert one(tmp_path, short) == (shape, (203, 331))


def test_an_eighth_is_the_smallest(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg", 640, 480)
    assert one(tmp_path, 17) == ((60, 80), (480, 640))


def test_a_turned_photo_keeps_its_upright_size(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg", 331, 203, orientation=6)
    assert one(tmp_path, 50) == ((83, 51), (331, 203))


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_other_formats_are_decoded_whole(tmp_path: Path, suffix: str) -> None:
    photo(tmp_path / f"a.{suffix}", 331, 203)
    assert one(tmp_path, 50) == ((203, 331), (203, 331))


def test_a_draft_shows_the_same_picture(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg", 640, 480, quality=95)
    source = open_images([tmp_path], RULES)
    whole, small = source[0].image, source.drafted(240)[0].image
    wanted = torch.nn.functional.interpolate(whole[None].float(), (240, 320), mode="area")[0]
    assert (small.float() - wanted).abs().mean() < 1


def test_wrappers_and_archives_pass_it_on(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    photo(photos / "a.jpg", 331, 203)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(photos / "a.jpg", "b.jpg")
    both: Source = Unlabelled(open_source([str(photos), f"tar:{tmp_path / 'a.tar'}"], RULES))
    assert [tuple(both.drafted(50)[number].image.shape) for number in (0, 1)] == [(3, 51, 83)] * 2
    assert [tuple(both[number].image.shape) for number in (0, 1)] == [(3, 203, 331)] * 2
    assert [both.drafted(50)[number].key for number in (0, 1)] == [both[number].key for number in (0, 1)]


def test_a_run_drafts_what_it_trains_on_and_nothing_else(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg", 331, 203)
    run: Run = find("ssldet.recipes", "random_query_patch/tiny")()
    sources = open_sources(
        override(run, {"data.train": (str(tmp_path),), "data.val": (str(tmp_path),), "data.draft": 50})
    )
    assert sources.val is not None
    assert sources.train[0].image.shape[1:] == (51, 83)
    assert sources.val[0].image.shape[1:] == (203, 331)


def test_a_task_with_labels_refuses_it() -> None:
    run: Run = find("ssldet.recipes", "detection/tiny")()
    with pytest.raises(ConfigError, match=r"data\.draft: Detection reads labels.*leave it at 0"):
        check(override(run, {"data.train": ("coco:a.json",), "data.draft": 50}))
