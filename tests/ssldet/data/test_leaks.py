"""Leaks: copies are found however they were saved, and different pictures are not taken for copies."""

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssldet.data.images import ImageRules
from ssldet.data.leaks import find_leaks, seen_before
from ssldet.data.sources import open_source
from ssldet.errors import ConfigError
from ssldet.source import Source
from ssldet.types import Sample
from ssldet.verbs import compare_data

RULES = ImageRules(min_side=17, max_pixels=10**6)


def picture(seed: int) -> Image.Image:
    """A picture of a few large blobs."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((120, 90), Image.Resampling.BICUBIC)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    for seed in range(40):
        picture(seed).save(first / f"{seed}.png")
        picture(1000 + seed).save(second / f"other{seed}.png")
    return first, second


def opened(folder: Path) -> Source:
    return open_source([str(folder)], RULES)


def test_copies_are_found_in_archives_too(folders: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = folders
    shutil.copy(first / "3.png", second / "a.png")
    picture(5).save(second / "b.jpg", quality=40)
    for folder in folders:
        with tarfile.open(tmp_path / f"{folder.name}.tar", "w") as archive:
            for path in sorted(folder.iterdir()):
                archive.add(path, path.name)
    plain = find_leaks(opened(first), opened(second), RULES)
    assert len(plain.pairs) == 2
    packed = [open_source([f"tar:{tmp_path}/{folder.name}.tar"], RULES) for folder in folders]
    for ours, theirs in ((packed[0], packed[1]), (opened(first), packed[1]), (packed[0], opened(second))):
        leaks = find_leaks(ours, theirs, RULES)
        assert [Path(leak.second).name for leak in leaks.pairs] == [Path(leak.second).name for leak in plain.pairs]
        assert [(leak.same, leak.distance) for leak in leaks.pairs] == [
            (leak.same, leak.distance) for leak in plain.pairs
        ]
    leaks = find_leaks(packed[0], packed[1], RULES)
    assert leaks.pairs[0].first == f"{tmp_path}/first.tar/3.png"


def test_copies_are_found_and_nothing_else(folders: tuple[Path, Path]) -> None:
    first, second = folders
    shutil.copy(first / "3.png", second / "a.png")
    picture(5).save(second / "b.jpg", quality=40)
    picture(7).resize((60, 60)).save(second / "c.webp")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(9).transpose(Image.Transpose.ROTATE_90).save(second / "d.jpg", exif=turned)
    leaks = find_leaks(opened(first), opened(second), RULES)
    found = {Path(leak.second).name: (Path(leak.first).name, leak.same) for leak in leaks.pairs}
    assert found == {
        "a.png": ("3.png", "file"),
        "b.jpg": ("5.png", "picture"),
        "c.webp": ("7.png", "picture"),
        "d.jpg": ("9.png", "picture"),
    }
    assert "4 of 44 images (9.1 %) are also among the other 40" in str(leaks)
    assert leaks.to_json()["unread"] == 0


def test_one_scene_with_other_contents_is_not_the_same_picture(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
    board = np.asarray(picture(1).resize((320, 240)))
    for number in range(6):
        scene = board.copy()
        x, y = 20 + 45 * number, 30 + 30 * number
        scene[y : y + 15, x : x + 15] = 0 if scene[y : y + 15, x : x + 15].mean() > 127 else 255
        Image.fromarray(scene).save(tmp_path / ("train" if number % 2 else "test") / f"{number}.png")
    with Image.open(tmp_path / "train" / "3.png") as image:
        image.save(tmp_path / "test" / "again.jpg", quality=30)
    found = compare_data(tmp_path / "train", tmp_path / "test")
    assert [(Path(leak.first).name, Path(leak.second).name) for leak in found.pairs] == [("3.png", "again.jpg")]
    assert 0 < found.pairs[0].distance < 8
    assert f"the same picture as {found.pairs[0].first} (distance {found.pairs[0].distance:.1f} %)" in str(found)
    assert "3 more look alike, but differ by more than 10 % somewhere" in str(found)
    assert len(compare_data(tmp_path / "train", tmp_path / "test", threshold=100.0).pairs) == 4
    with pytest.raises(ConfigError, match="is not from 0 to 100 percent"):
        compare_data(tmp_path / "train", tmp_path / "test", threshold=-1.0)


def test_blank_pictures_are_alike_only_as_files(tmp_path: Path) -> None:
    for name, grey in (("first", 200), ("second", 90)):
        (tmp_path / name).mkdir()
        Image.new("L", (60, 40), grey).save(tmp_path / name / "a.png")
    assert not compare_data(tmp_path / "first", tmp_path / "second").pairs
    shutil.copy(tmp_path / "first/a.png", tmp_path / "second/b.png")
    assert [leak.same for leak in compare_data(tmp_path / "first", tmp_path / "second").pairs] == ["file"]


@pytest.mark.parametrize("kind", ["16 bits", "transparent"])
def test_pictures_are_compared_as_they_look(tmp_path: Path, kind: str) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    for seed in range(3):
        grey = picture(seed).convert("L")
        if kind == "16 bits":
            shown = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
        else:
            shown = Image.new("RGBA", grey.size)  # black, and seen by its transparency alone
            shown.putalpha(grey)
        shown.save(tmp_path / "first" / f"{seed}.png")
        if seed:
            shown.resize((60, 45)).save(tmp_path / "second" / f"copy{seed}.png")
    found = compare_data(tmp_path / "first", tmp_path / "second").pairs
    assert [(Path(leak.first).stem, Path(leak.second).stem) for leak in found] == [("1", "copy1"), ("2", "copy2")]


def test_what_can_not_be_decoded_is_counted(folders: tuple[Path, Path]) -> None:
    first, second = folders
    whole = (first / "0.png").read_bytes()
    (second / "cut.png").write_bytes(whole[: len(whole) // 2])
    leaks = find_leaks(opened(first), opened(second), RULES)
    assert (leaks.unread, leaks.pairs) == (1, ())
    assert "1 images can't be read" in str(leaks)


def test_a_source_that_hides_its_files_is_refused(folders: tuple[Path, Path]) -> None:
    class Hidden(Source):
        classes = ()
        fingerprint = "x"
        skipped = ()

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Sample:
            raise IndexError(index)

    with pytest.raises(ConfigError, match="where its images lie"):
        find_leaks(Hidden(), opened(folders[0]), RULES)


def test_what_lies_where_was_looked_before_is_told_without_a_search(folders: tuple[Path, Path]) -> None:
    first, second = folders
    source = opened(second)
    assert seen_before([str(first)], source) == []
    assert len(seen_before([str(second.parent)], source)) == len(source)
    link = second.parent / "link"
    link.symlink_to(second)
    assert len(seen_before([str(link), "coco:x"], source)) == len(source)
    listed = second.parent / "list.txt"
    listed.write_text("second/other3.png\nfirst/1.png\n")
    assert seen_before([str(listed)], source) == [str(second / "other3.png")]
    (link.parent / "links").mkdir()
    (link.parent / "links" / "a.png").symlink_to(first / "1.png")
    assert seen_before([str(first)], opened(link.parent / "links")) == [str(first / "1.png")]


def test_images_of_an_archive_that_was_trained_on_are_told(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for number, folder in enumerate(folders):
        (tmp_path / "shards").mkdir(exist_ok=True)
        with tarfile.open(tmp_path / "shards" / f"{number}.tar", "w") as archive:
            for path in sorted(folder.iterdir()):
                archive.add(path, f"inside/{path.name}")
    source = open_source([f"tar:{tmp_path}/shards/1.tar"], RULES)
    assert seen_before([f"tar:{tmp_path}/shards/0.tar", str(folders[1])], source) == []
    seen = seen_before([f"tar:{tmp_path}/shards/{{0..1}}.tar:window=3"], source)
    assert sorted(seen)[0] == f"{tmp_path}/shards/1.tar/inside/other0.png"
    assert len(seen) == len(source)


def test_real_photos_saved_anew_are_found(real_data: Path, tmp_path: Path) -> None:
    photos = sorted((real_data / "photos_caltech101").rglob("*.jpg"))[::8]
    for number, path in enumerate(photos):
        with Image.open(path) as image:
            small = image.convert("RGB").resize((image.width // 2, image.height // 2))
        small.save(tmp_path / f"{number:03d}.jpg", quality=50)
    listed = tmp_path / "photos.txt"
    listed.write_text("\n".join(map(str, photos)))
    leaks = compare_data(listed, [str(path) for path in sorted(tmp_path.glob("*.jpg"))])
    assert len(leaks.pairs) >= 0.97 * len(photos)
    wrong = [leak for leak in leaks.pairs if Path(leak.first) != photos[int(Path(leak.second).stem)]]
    assert not wrong
