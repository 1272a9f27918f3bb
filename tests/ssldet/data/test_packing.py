import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import webdataset

from ssldet.data import packing
from ssldet.data.images import ImageRules, open_images
from ssldet.data.packing import members, pack
from ssldet.data.shards import open_tar
from ssldet.disk import Disk
from ssldet.errors import ConfigError, DataError, SetupError
from ssldet.verbs import pack_data
from tests.ssldet.data.test_shards import photo

RULES = ImageRules()
NAMES = [
    "a/1.png",
    "a/1.jpg.rf.8a7d.png",
    "a/1.jpg.PNG",
    "a/1.v2.png",
    "b/100%.png",
    "b/1.png",
    "c.png",
    "long/" * 50 + "d.png",
]


@pytest.fixture
def photos(tmp_path):
    for number, name in enumerate(NAMES):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(photo(number))
    (tmp_path / "photos" / "bad.png").write_bytes(b"hello")
    return tmp_path / "photos"


@pytest.fixture
def two_images_each(monkeypatch):
    """As many archives as a million images have: here each holds two or three."""
    shards = packing._shards
    monkeypatch.setattr(packing, "_shards", lambda usable, sizes, largest: shards(usable, sizes, largest // 150))


@pytest.mark.usefixtures("two_images_each")
def test_packed_images_are_those_of_the_folder_in_its_order(photos, tmp_path):
    packed = pack([photos], tmp_path / "out", RULES, 1)
    assert (packed.images, packed.left_out) == (len(NAMES), {"not-an-image": 1})
    assert 1 < packed.shards == packed.written
    assert packed.spec == f"tar:{tmp_path}/out"
    source, folder = open_tar(packed.spec.removeprefix("tar:"), RULES), open_images([photos], RULES)
    assert len(source) == len(folder)
    for index in range(len(source)):
        assert torch.equal(source[index].image, folder[index].image)
    assert sum(path.stat().st_size for path in (tmp_path / "out").glob("*.tar")) == packed.bytes


@pytest.mark.filterwarnings("ignore")
def test_webdataset_reads_what_is_packed(photos, tmp_path):
    pack([photos], tmp_path / "out", RULES)
    samples = list(webdataset.WebDataset(str(tmp_path / "out" / "000000.tar"), shardshuffle=False))
    folder = open_images([photos], RULES)
    assert len(samples) == len({sample["__key__"] for sample in samples}) == len(NAMES)
    for index, sample in enumerate(samples):
        (ending,) = [name for name in sample if not name.startswith("__")]
        assert sample[ending] == folder.path_of(index).read_bytes()
        assert ending == "png"


def test_no_two_names_have_one_key():
    names = sorted(["x/a.jpg", "x/a.png", "x/a.JPG", "x/a.b.png", "x/a%2Eb.png", "x/ab.png", "x.y/a.jpg"])
    found = list(members(iter(names)))
    assert found == [
        "x.y/a.jpg", "x/a%252Eb.png", "x/a.JPG", "x/a%2Eb.png", "x/a%2Ejpg.jpg", "x/a%2Epng.png", "x/ab.png",
    ]  # fmt: skip
    keys = [name.rpartition(".")[0] for name in found]
    assert len(set(keys)) == len(keys)
    for odd in ("x/photo", "x/.a.jpg", ".jpg", "x/a.txt"):
        with pytest.raises(DataError, match=r"would pass it by; give it a name such as photo\.jpg"):
            list(members(iter([odd])))


@pytest.mark.usefixtures("two_images_each")
def test_packing_that_was_killed_goes_on(photos, tmp_path, monkeypatch):
    out, replace = tmp_path / "out", Disk.replace

    def fail(disk: Disk, old: Path, new: Path) -> None:
        if new.name == "000002.tar":
            (out / "000002.tar.tmp-1").touch()  # what a kill would leave
            raise OSError(28, "No space left on device")
        replace(disk, old, new)

    with monkeypatch.context() as patch:
        patch.setattr(Disk, "replace", fail)
        with pytest.raises(OSError, match="No space"):
            pack([photos], out, RULES, 1)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert sorted(before) == ["000000.tar", "000001.tar"]
    packed = pack([photos], out, RULES, 1)
    assert packed.shards - packed.written == 2
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert not list(out.glob("*.tmp-*"))
    whole = pack([photos], tmp_path / "again", RULES, 1)
    for number in range(whole.shards):
        name = f"{number:06d}.tar"
        assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert pack([photos], out, RULES, 1).written == 0
    assert "were there already" in str(packed)


def test_nothing_is_overwritten(photos, tmp_path):
    out = tmp_path / "out"
    pack([photos], out, RULES)
    content = (out / "000000.tar").read_bytes()
    for change in (lambda: pack([photos], out, RULES, 7), lambda: pack([photos / "a"], out, RULES)):
        with pytest.raises(ConfigError, match="holds archives of other images or of another size, and nothing is"):
            change()
    (out / "mine.txt").touch()
    with pytest.raises(ConfigError, match="nothing is overwritten; choose a new folder"):
        pack([photos], out, RULES)
    assert (out / "000000.tar").read_bytes() == content
    with pytest.raises(ConfigError, match="holds something else"):
        pack([photos / "a"], photos / "b", RULES)
    with pytest.raises(SetupError, match="can't be written"):
        pack([photos], photos / "c.png", RULES)


def test_an_image_that_changes_meanwhile_is_told(photos, tmp_path, monkeypatch):
    begin = packing._begin

    def change(*what: object) -> None:
        begin(*what)
        (photos / "c.png").write_bytes(photo(17))

    monkeypatch.setattr(packing, "_begin", change)
    with pytest.raises(DataError, match=r"c\.png: was changed while it was packed"):
        pack([photos], tmp_path / "out", RULES)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [packing.PLAN]


def test_what_can_not_be_packed_is_told(photos, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"^coco:a\.json:b: pack takes images"):
        pack_data(["coco:a.json:b"], out=tmp_path / "out")
    with pytest.raises(ConfigError, match="--megabytes 0: expects"):
        pack_data(photos, out=tmp_path / "out", megabytes=0)
    with pytest.raises(DataError, match="0 of 1 images usable"):
        pack_data(photos / "bad.png", out=tmp_path / "out")
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(SetupError, match="GB are needed"):
        pack_data(photos, out=tmp_path / "out")
    assert json.loads((tmp_path / "out" / packing.PLAN).read_text())["images"] == len(NAMES)
