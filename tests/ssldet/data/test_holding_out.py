"""What is held out follows from the names of the files, whatever their place and order, and can be measured on."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from downstream.annotations.shapes import write_shapes
from ssldet.data.holding_out import MOST, MeasurablePart, hold_out
from ssldet.data.images import ImageRules
from ssldet.data.joining import joined
from ssldet.data.sources import open_source
from ssldet.engine.sources import open_sources
from ssldet.recipe import override
from ssldet.source import Measurable, Source
from ssldet.testing import check_source
from ssldet.types import Sample
from ssldet.verbs.choosing import resolve

RULES = ImageRules()


class Numbers(Source):
    """Images that are no files."""

    classes = ()
    fingerprint = "numbers"
    skipped = ()

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        raise NotImplementedError


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(41):
        place = folder / "abc"[number % 3]
        place.mkdir(exist_ok=True)
        Image.new("RGB", (20, 20), (number, 0, 0)).save(place / f"{number // 3}.png")
    return folder


def _names(source: Source | None, root: Path) -> set[str]:
    assert source is not None
    return {str(path.relative_to(root)) for path in map(source.path_of, range(len(source))) if path is not None}


def test_every_image_is_either_trained_on_or_held_out(photos: Path) -> None:
    whole = open_source([str(photos)], RULES)
    rest, held = hold_out(whole, 0.1)
    assert held is not None
    assert (len(rest), len(held)) == (37, 4)
    assert _names(rest, photos) | _names(held, photos) == _names(whole, photos)
    check_source(rest)
    check_source(held)


def test_neither_place_nor_order_decides(photos: Path, tmp_path: Path) -> None:
    _, held = hold_out(open_source([str(photos)], RULES), 0.1)
    moved = tmp_path / "elsewhere"
    shutil.copytree(photos, moved)
    _, there = hold_out(open_source([str(moved)], RULES), 0.1)
    assert _names(there, moved) == _names(held, photos)
    parts = [open_source([str(photos / name)], RULES) for name in "cab"]
    _, reordered = hold_out(joined(parts), 0.1)
    assert _names(reordered, photos) == _names(held, photos)


def test_most_stay_held_out_when_images_are_added(photos: Path, tmp_path: Path) -> None:
    before = _names(hold_out(open_source([str(photos)], RULES), 0.2)[1], photos)
    grown = tmp_path / "grown"
    shutil.copytree(photos, grown)
    Image.new("RGB", (20, 20)).save(grown / "a" / "new.png")
    after = _names(hold_out(open_source([str(grown)], RULES), 0.2)[1], grown)
    assert len(before - after) <= 1


@pytest.mark.parametrize(("count", "held_out"), [(19, 0), (20, 1), (39, 1), (4_000, MOST), (9_000, MOST)])
def test_the_share_is_rounded_down_and_bounded(count: int, held_out: int) -> None:
    rest, held = hold_out(Numbers(count), 0.05)
    assert (len(rest), 0 if held is None else len(held)) == (count - held_out, held_out)


def test_labelled_images_that_are_held_out_can_be_measured_on(tmp_path: Path) -> None:
    write_shapes(tmp_path / "made", images=12, seed=3)
    whole = open_source([f"coco:{tmp_path}/made/instances.json:{tmp_path}/made/images"], RULES)
    assert isinstance(whole, Measurable)
    _, held = hold_out(whole, 0.25)
    assert isinstance(held, MeasurablePart)
    check_source(held)
    truth = held.ground_truth()
    assert {row["id"] for row in truth["images"]} == set(held.image_ids)
    expected = [row for row in whole.ground_truth()["annotations"] if row["image_id"] in held.image_ids]
    assert truth["annotations"] == expected
    assert len(held) == 3


def test_nothing_is_held_out_where_other_images_are_measured_on(tmp_path: Path) -> None:
    write_shapes(tmp_path / "made", images=12, seed=3)
    spec = f"coco:{tmp_path}/made/instances.json:{tmp_path}/made/images"
    run = override(resolve("detection/tiny"), {"data.train": (spec,), "data.held_out": 0.25})
    assert len(open_sources(run).train) == 9
    assert len(open_sources(override(run, {"data.val": (spec,)})).train) == 12
