import errno
import json
import os
import random
from pathlib import Path

import pytest
from PIL import Image

from ssldet.data.files import find_images, list_files, tally
from ssldet.data.images import ImageRules
from ssldet.data.inspection import inspect_images
from ssldet.data.sources import open_source
from ssldet.errors import DataError, SetupError
from ssldet.escapes import shown
from ssldet.types import Skipped


@pytest.fixture
def tree(tmp_path):
    """Some files; nothing in them, since nothing is opened here."""
    names = ["a/1.jpg", "a/2.PNG", "a/deep/3.jpeg", "b/1.jpg", "b/x.jpg/4.webp", "top.gif"]
    others = ["a/notes.txt", ".hidden/5.jpg", "a/._1.jpg", "b/Thumbs.db", "a/.DS_Store"]
    random.Random(0).shuffle(names)
    for name in names + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


EVERYTHING = ["a/1.jpg", "a/2.PNG", "a/deep/3.jpeg", "b/1.jpg", "b/x.jpg/4.webp", "top.gif"]


def test_a_folder_is_searched_to_its_bottom_in_one_order(tree):
    listing = list_files([tree])
    assert listing.names == EVERYTHING
    assert listing.root == str(tree)
    assert listing.skipped == ()
    assert find_images([str(tree)]) == [tree / name for name in EVERYTHING]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a/*.jpg", ["a/1.jpg"]),
        ("*/1.jpg", ["a/1.jpg", "b/1.jpg"]),
        ("**/*.jpg", ["a/1.jpg", "b/1.jpg", "b/x.jpg/4.webp"]),
        ("**", EVERYTHING),
        ("[ab]", [name for name in EVERYTHING if name != "top.gif"]),
        ("a/**/3.*", ["a/deep/3.jpeg"]),
        ("*.gi?", ["top.gif"]),
    ],
)
def test_globs(tree, pattern, expected):
    assert find_images([f"{tree}/{pattern}"]) == [tree / name for name in expected]


def test_a_name_that_looks_like_a_glob_but_exists_is_a_path(tree):
    (tree / "set[1]").mkdir()
    (tree / "set[1]" / "7.jpg").touch()
    assert list_files([tree / "set[1]"]).names == ["7.jpg"]


def test_lists_are_relative_to_themselves(tree, tmp_path_factory):
    (tree / "a" / "train.txt").write_bytes(b"\xef\xbb\xbf1.jpg\r\n\n  ../b/1.jpg\n" + os.fsencode(tree / "top.gif"))
    assert find_images([tree / "a" / "train.txt"]) == [tree / name for name in ["a/1.jpg", "b/1.jpg", "top.gif"]]
    (tree / "train.json").write_text(json.dumps(["a/1.jpg", "missing.jpg"]))
    assert find_images([tree / "train.json"]) == [tree / "a/1.jpg", tree / "missing.jpg"]


def test_several_specifications_meet_in_one_order_without_twins(tree):
    several = list_files([tree / "b", tree / "a" / "1.jpg", tree / "a" / "deep", f"{tree}/a/*", tree / "b"])
    assert several.names == ["a/1.jpg", "a/2.PNG", "a/deep/3.jpeg", "b/1.jpg", "b/x.jpg/4.webp"]
    assert several.root == str(tree)
    assert list_files([tree / "b", tree / "a"]) == list_files([tree / "a", tree / "b"])


def test_links_in_circles_and_twins_are_listed_once(tree):
    (tree / "a" / "again").symlink_to(tree, target_is_directory=True)
    (tree / "b" / "self").symlink_to(".", target_is_directory=True)
    (tree / "b" / "self2").symlink_to(".", target_is_directory=True)
    (tree / "c").symlink_to("a", target_is_directory=True)
    (tree / "z.jpg").symlink_to("a/1.jpg")
    os.link(tree / "top.gif", tree / "zz.gif")
    found = find_images([tree])
    assert len(found) == 6
    assert len(find_images([f"{tree}/**/*.jpg"])) == 3


def test_of_twins_in_one_folder_the_first_name_stays(tree):
    (tree / "a" / "0.jpg").symlink_to("2.PNG")
    (tree / "a" / "9.jpg").symlink_to("1.jpg")
    assert list_files([tree / "a"]).names == ["0.jpg", "1.jpg", "deep/3.jpeg"]


def test_links_to_nowhere_stay_in_the_list_to_be_counted(tree):
    (tree / "gone.jpg").symlink_to("nowhere")
    (tree / "loop.jpg").symlink_to("loop.jpg")
    assert {"gone.jpg", "loop.jpg"} <= set(list_files([tree]).names)


def test_twins_by_unicode_or_case_are_two_files(tree):
    for name in ("caf\u00e9.jpg", "cafe\u0301.jpg", "X.jpg", "x2.jpg"):
        (tree / name).touch()
    if len({entry.name for entry in tree.iterdir()}) == 3 + 1 + 4:
        assert len(list_files([tree]).names) == 10


def test_the_home_folder_is_found(tree, monkeypatch):
    monkeypatch.setenv("HOME", str(tree))
    assert list_files(["~/a"]).root == str(tree / "a")


def test_paths_relative_to_here(tree, monkeypatch):
    monkeypatch.chdir(tree / "a")
    assert list_files(["../b"]).names == ["1.jpg", "x.jpg/4.webp"]
    assert list_files(["."]).root == str(tree / "a")


def test_missing_paths_name_their_neighbour(tree):
    with pytest.raises(DataError, match=r"no such file or folder: .*/a/depe/more \(did you mean 'deep'\?\)$"):
        list_files([tree / "a" / "depe" / "more"])
    with pytest.raises(DataError, match=r"no such file or folder: .*/tpo\.gif \(did you mean 'top\.gif'\?\)$"):
        list_files([tree / "tpo.gif"])
    with pytest.raises(DataError, match=r"no such file or folder: .*/qqqq$"):
        list_files([tree / "qqqq" / "*.jpg"])


def test_what_holds_nothing_is_told(tree):
    (tree / "empty").mkdir()
    for spec in (tree / "empty", f"{tree}/*.bmp"):
        with pytest.raises(DataError, match=r"^no image in .*; names are searched for \.jpg"):
            list_files([spec])
    (tree / "empty.txt").write_text("\n\n")
    with pytest.raises(DataError, match=r"no image in .*empty\.txt"):
        list_files([tree / "empty.txt"])
    with pytest.raises(DataError, match="no images given"):
        list_files([])


@pytest.mark.parametrize("content", ["{}", "[1]", "[", '"a"'])
def test_json_that_is_no_list_is_told(tree, content):
    (tree / "a.json").write_text(content)
    with pytest.raises(DataError, match=r"a\.json: (not readable as JSON|expects a JSON list of paths)"):
        list_files([tree / "a.json"])


def test_a_list_that_is_a_pipe_is_not_read(tree):
    os.mkfifo(tree / "list.txt")
    assert list_files([tree / "list.txt"]).names == ["list.txt"]


def test_names_are_shown_with_escapes():
    assert shown(os.fsdecode(b"caf\xe9.jpg")) == "caf\\xe9.jpg"
    assert shown(Path("caf\u00e9.jpg")) == "caf\u00e9.jpg"


def test_reasons_are_counted_most_frequent_first():
    entries = [Skipped(path="x", reason=reason) for reason in ["empty", "truncated", "truncated"]]
    assert tally(entries) == "truncated 2, empty 1"


def test_a_folder_is_not_passed_by_because_too_many_files_are_open(tree, monkeypatch):
    whole = os.scandir

    def scandir(place):
        if os.fsdecode(place).endswith("deep"):
            raise OSError(errno.EMFILE, "Too many open files")
        return whole(place)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(SetupError, match=r"too many open files at .*deep"):
        list_files([tree])


def test_pictures_in_other_formats_are_counted_with_the_remedy(tmp_path, caplog):
    for name in ("b.HEIC", "sub/c.heic", "d.avif", "e.txt", ".f.heic"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    (said,) = inspect_images(str(tmp_path), ImageRules()).warnings
    assert said.startswith("3 pictures in formats that are not read (.heic 2, .avif 1), such as ")
    assert said.endswith("b.HEIC; save them as JPEG or PNG")
    assert not caplog.text
    open_source([str(tmp_path)], ImageRules())
    assert said in caplog.text
    assert list_files([f"{tmp_path}/*.png"]).unread == ""
    with pytest.raises(DataError, match=r"1 picture in formats that are not read \(\.heic 1\), such as .*c\.heic"):
        list_files([tmp_path / "sub"])
