import logging
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.ExifTags import Base

from ssldet.data import image_index, parallel
from ssldet.data.image_index import usable_images
from ssldet.data.images import ImageRules, open_images
from ssldet.data.names import Names
from ssldet.errors import UnreadableError

RULES = ImageRules()
COUNT = 12


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Some images and two files that are none, last changed long ago; so few count as many."""
    monkeypatch.setenv("SSLDET_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(image_index, "MANY", COUNT)
    folder = tmp_path / "photos"
    for number in range(COUNT):
        place = folder / f"{number % 3}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + number, 30)).save(place)
    (folder / "1" / "empty.jpg").touch()
    (folder / "2" / "text.jpg").write_text("hello")
    settle(folder)
    return folder


def settle(folder: Path) -> None:
    """Let everything in a folder have been changed an hour ago."""
    for place in (folder, *folder.rglob("*")):
        os.utime(place, (place.stat().st_mtime - 3600,) * 2)


@pytest.fixture
def opened(monkeypatch):
    """Files whose headers are read."""
    paths = []
    judged = image_index.judged
    monkeypatch.setattr(image_index, "judged", lambda path, *rest: paths.append(Path(path).name) or judged(path, *rest))
    return paths


def test_an_index_says_what_the_files_say(photos, opened):
    first = usable_images([photos], RULES)
    assert len(opened) == COUNT + 2
    opened.clear()
    second = usable_images([photos], RULES)
    assert sorted(opened) == ["empty.jpg", "text.jpg"], "files that could not be used are asked again"
    image_index._place([photos], RULES).unlink()
    third = usable_images([photos], RULES)
    for other in (second, third):
        assert other.names == first.names
        assert (other.root, other.skipped, other.fingerprint) == (first.root, first.skipped, first.fingerprint)
    assert {entry.reason for entry in second.skipped} == {"empty", "not-an-image"}
    assert second.listed == COUNT + 2


def test_few_images_have_no_index(photos, monkeypatch):
    monkeypatch.setattr(image_index, "MANY", COUNT + 3)
    whole = usable_images([photos], RULES).fingerprint
    assert not image_index._place([photos], RULES).exists()
    monkeypatch.setattr(image_index, "MANY", COUNT)
    assert usable_images([photos], RULES).fingerprint == whole
    assert image_index._place([photos], RULES).exists()


def test_only_what_is_new_is_opened(photos, opened):
    usable_images([photos], RULES)
    opened.clear()
    Image.new("RGB", (40, 40)).save(photos / "1" / "new.png")
    (photos / "0" / "0.png").unlink()
    Image.new("RGB", (90, 90)).save(photos / "2" / "2.png")
    usable = usable_images([photos], RULES)
    assert set(opened) == {"new.png", "2.png", "empty.jpg", "text.jpg"}
    assert "1/new.png" in usable.names
    assert "0/0.png" not in usable.names
    image_index._place([photos], RULES).unlink()
    assert usable_images([photos], RULES).fingerprint == usable.fingerprint


def test_a_folder_that_was_just_changed_is_listed_again(photos, opened):
    (photos / "0").touch()
    usable_images([photos], RULES)
    Image.new("RGB", (40, 40)).save(photos / "0" / "new.png")
    assert "0/new.png" in usable_images([photos], RULES).names


def test_a_mended_file_is_noticed(photos):
    assert len(open_images([photos], RULES)) == COUNT
    Image.new("RGB", (40, 40)).save(photos / "1" / "empty.jpg")
    assert len(open_images([photos], RULES)) == COUNT + 1


def test_an_image_exchanged_in_place_is_noticed_when_it_is_read(photos, caplog):
    caplog.set_level(logging.INFO)
    before = open_images([photos], RULES)
    Image.new("RGB", (99, 99)).save(photos / "0" / "0.png")
    again = open_images([photos], RULES)
    assert again.fingerprint == before.fingerprint, "nobody has looked yet"
    assert again[0].original_size == (99, 99)
    after = open_images([photos], RULES)
    assert after.fingerprint != before.fingerprint
    assert open_images([photos], RULES).fingerprint == after.fingerprint


def test_other_rules_have_an_index_of_their_own(photos):
    assert len(open_images([photos], RULES)) == COUNT
    assert len(open_images([photos], ImageRules(min_side=25))) == COUNT - 5
    assert len(open_images([photos], RULES)) == COUNT


@pytest.mark.parametrize("damage", [lambda text: text[:-9], lambda text: b"\xff" * 40, lambda text: b"", bytes.upper])
def test_a_damaged_index_is_made_again(photos, damage):
    whole = usable_images([photos], RULES)
    place = image_index._place([photos], RULES)
    place.write_bytes(damage(place.read_bytes()))
    assert usable_images([photos], RULES).fingerprint == whole.fingerprint
    assert image_index._load(place) is not None


def test_a_home_that_can_not_be_written_costs_only_the_index(photos, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SSLDET_HOME", str(tmp_path / "file"))
    assert len(open_images([photos], RULES)) == COUNT
    assert "can't be kept" in caplog.text


def test_an_indexed_source_travels(photos):
    open_images([photos], RULES)
    source = pickle.loads(pickle.dumps(open_images([photos], RULES)))
    assert source[3].key == open_images([photos], RULES)[3].key


def test_processes_and_threads_give_the_same(monkeypatch):
    def look(part):
        return list(part), os.getpid()

    monkeypatch.setattr(parallel, "PART", 8)
    monkeypatch.setattr(parallel, "READERS", 2)
    many, few = list(parallel.over_parts(1000, look)), list(parallel.over_parts(9, look))
    assert [number for part, _ in many for number in part] == list(range(1000))
    assert [number for part, _ in few for number in part] == list(range(9))
    assert os.getpid() not in {process for _, process in many}
    assert {process for _, process in few} == {os.getpid()}


def test_a_process_that_is_killed_costs_only_time(monkeypatch, caplog):
    home = os.getpid()

    def look(part):
        if os.getpid() != home and part.start == 320:
            time.sleep(0.05)
            os._exit(1)
        return list(part)

    monkeypatch.setattr(parallel, "PART", 8)
    monkeypatch.setattr(parallel, "READERS", 2)
    answers = [number for part in parallel.over_parts(1000, look) for number in part]
    assert answers == list(range(1000))
    assert "this one reads on" in caplog.text


def test_what_is_wrong_with_an_image_stands_in_its_place(monkeypatch):
    def ask(number):
        if number % 3 == 1:
            raise UnreadableError(f"{number}.jpg", "truncated")
        return 10 * number

    monkeypatch.setattr(parallel, "PART", 4)
    for count in (0, 5, 70):  # the last in processes
        found = parallel.over_images(count, ask)
        said = [str(answer) if isinstance(answer, UnreadableError) else answer for answer in found]
        assert said == [f"{n}.jpg: truncated" if n % 3 == 1 else 10 * n for n in range(count)]


def test_names_are_a_list():
    names = Names.of([b"a.jpg", b"", b"caf\xe9.png", b"z"])
    assert list(names) == [names[number] for number in range(4)] == names[:]
    assert (names[-1], names[1:3]) == ("z", ["", "caf\udce9.png"])
    assert names == ["a.jpg", "", "caf\udce9.png", "z"]
    assert names != ["a.jpg"]
    assert names.kept([True, False, False, True]) == ["a.jpg", "z"]
    with pytest.raises(IndexError):
        names[4]
    with pytest.raises(ValueError, match="nowhere"):
        Names(names.block, np.array([0, 9, 3], dtype=np.uint32)).require_whole()


def test_what_is_judged_at_a_glance_is_judged_alike(photos, monkeypatch):
    turned = Image.Exif()
    turned[Base.Orientation] = 6
    for number, how in enumerate(({}, {"exif": turned}, {"progressive": True}, {"quality": 1})):
        Image.new("RGB", (16 + 4 * number, 40)).save(photos / "0" / f"{number}.jpg", **how)
    (photos / "0" / "cut.jpg").write_bytes((photos / "0" / "1.jpg").read_bytes()[:20])
    Image.new("RGB", (20, 900)).save(photos / "0" / "thin.jpg")
    glanced = usable_images([photos], RULES)
    image_index._place([photos], RULES).unlink()
    monkeypatch.setattr(image_index, "glanced", lambda path, rules: None)
    judged = usable_images([photos], RULES)
    assert glanced.names == judged.names
    assert (glanced.fingerprint, glanced.bad) == (judged.fingerprint, judged.bad)
    assert np.array_equal(glanced.stamps, judged.stamps)
    assert dict(judged.bad)["0/thin.jpg"] == "too-thin"
    assert dict(judged.bad)["0/0.jpg"] == "too-small"
