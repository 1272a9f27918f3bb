import io
import os
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssldet.data import shard_files, shard_index
from ssldet.data.images import ImageRules, open_images
from ssldet.data.loader import training_batches
from ssldet.data.shard_files import expand, find_shards
from ssldet.data.shards import ShardSource, open_tar, windowed
from ssldet.data.sources import PartSource, open_source, split_spec
from ssldet.errors import DataError, UnreadableError
from ssldet.verbs import check_data

RULES = ImageRules()


def photo(number: int) -> bytes:
    content = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (30, 20 + number, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def write(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            add(archive, name, content)
    return path


def add(archive: tarfile.TarFile, name: str, content: bytes = b"", **what: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in what.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path):
    """Four archives of five images, and a folder with the same files."""
    for shard in range(4):
        members = {f"{shard}/{number}.png": photo(5 * shard + number) for number in range(5)}
        for name, content in members.items():
            (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "folder" / name).write_bytes(content)
        labels = {name.replace("png", "cls"): b"7" for name in members}
        write(tmp_path / "shards" / f"{shard:06d}.tar", dict(sorted((members | labels).items())))
    return tmp_path / "shards"


def test_an_archive_holds_what_a_folder_holds(shards):
    packed, folder = open_tar(str(shards), RULES), open_images([shards.parent / "folder"], RULES)
    assert len(packed) == len(folder) == 20
    for index in range(20):
        assert torch.equal(packed[index].image, folder[index].image)
    assert packed[7].key == "000001.tar/1/2.png"
    assert packed.name_of(7) == f"{shards}/000001.tar/1/2.png"
    assert packed.path_of(7) is None


@pytest.mark.parametrize(
    "pattern", ["{000000..000003}.tar", "00000[0-3].tar", "{000000,000001}.tar", "", "0{00000..00003}.tar"]
)
def test_patterns(shards, pattern):
    found = find_shards(f"{shards}/{pattern}")
    assert found == [f"{shards}/{number:06d}.tar" for number in range(2 if "," in pattern else 4)]


def test_braces_count_and_list():
    assert list(expand("a{8..11}{x,y}.tar")) == [f"a{n}{c}.tar" for n in range(8, 12) for c in "xy"]
    assert list(expand("{008..010}")) == ["008", "009", "010"]
    for wrong in ("{5..3}", "{0..99999999}"):
        with pytest.raises(DataError, match="count upwards"):
            list(expand(wrong))


def test_missing_archives_are_named(shards):
    with pytest.raises(DataError, match=r"000004\.tar and 2 more of 7 archives are missing \(did you mean"):
        find_shards(f"{shards}/{{000000..000006}}.tar")
    (shards / "empty").mkdir()
    with pytest.raises(DataError, match=r"no archive in .*empty; names end with \.tar"):
        find_shards(f"{shards}/empty")
    assert str(check_data(f"tar:{shards}s")).count("tar:") == 2, "the headline, and the problem"


def test_the_specification(shards):
    assert split_spec(f"tar:{shards}") == ("tar", str(shards))
    source = open_source([f"tar:{shards}/{{000000..000003}}.tar:window=2"], RULES)
    assert isinstance(source, ShardSource)
    assert (source.window, len(source)) == (2, 20)
    with pytest.raises(DataError, match="windwo=2 is no option; say window=K"):
        open_tar(f"{shards}:windwo=2", RULES)
    with pytest.raises(DataError, match="no masks"):
        open_tar(str(shards), RULES, masks=True)


def test_the_order_reads_few_archives_at_once(shards):
    source = open_tar(f"{shards}:window=2", RULES)
    order = source.order(3, 1).tolist()
    assert sorted(order) == list(range(20))
    halves = [{index // 5 for index in half} for half in (order[:10], order[10:])]
    assert len(halves[0]) == len(halves[1]) == 2
    assert halves[0].isdisjoint(halves[1])
    assert order != source.order(3, 2).tolist()
    part = PartSource(source, [index for index in range(20) if index != 7])
    shown = [part.inner(place) for place in part.order(3, 1).tolist()]
    assert {index // 5 for index in shown[:9]} in halves or {index // 5 for index in shown[:10]} in halves


def test_with_a_window_of_all_archives_training_is_that_on_the_folder(shards):
    packed, folder = open_tar(f"{shards}:window=4", RULES), open_images([shards.parent / "folder"], RULES)
    both = [
        training_batches(source, views, seed=5, batch_size=4, total_steps=11, workers=workers)
        for source, workers in ((packed, 2), (folder, 0))
    ]
    for one, other in zip(*both, strict=True):
        assert torch.equal(one.images, other.images)


def views(sample, generator):
    return replace(sample, image=sample.image[:, :20, :20] + torch.randint(256, (), generator=generator).byte())


def test_an_order_of_a_hundred_shards_is_a_permutation_of_any_part():
    first = np.cumsum([0, *np.random.default_rng(0).integers(0, 90, 100)])
    indices = np.random.default_rng(1).permutation(first[-1])[:2000]
    assert torch.equal(windowed(first, None, 7, 4, 2), windowed(first, np.arange(first[-1]), 7, 4, 2))
    order = windowed(first, indices, 7, 0, 0)
    assert order.dtype == torch.int32
    assert sorted(order.tolist()) == list(range(2000))


def test_members_are_judged_like_files(tmp_path):
    path = tmp_path / "a.tar"
    good = photo(1)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        add(archive, "./good.png", good)
        add(archive, "empty.jpg")
        add(archive, "text.png", b"hello")
        add(archive, "cut.png", good[:20])
        add(archive, "link.png", type=tarfile.SYMTYPE, linkname="good.png")
        add(archive, "hard.png", type=tarfile.LNKTYPE, linkname="good.png")
        add(archive, "pipe.png", type=tarfile.FIFOTYPE)
        add(archive, "good.png", good)
        add(archive, "/etc/root.png", good)
        add(archive, "../up.png", good)
        add(archive, "._good.png", good)
        add(archive, "folder.png", type=tarfile.DIRTYPE)
        add(archive, os.fsdecode(b"caf\xe9.png"), good)
        add(archive, "long/" * 60 + "name.png", good)
        add(archive, "label.cls", b"7")
    source = open_tar(str(path), RULES)
    assert [source[index].key for index in range(3)] == [
        "a.tar/good.png",
        "a.tar/caf\\xe9.png",
        f"a.tar/{'long/' * 60}name.png",
    ]
    (tmp_path / "cut.png").write_bytes(good[:20])
    with pytest.raises(DataError, match="is truncated"):
        open_images([tmp_path / "cut.png"], RULES)
    assert {entry.path.removeprefix(f"{path}/"): entry.reason for entry in source.skipped} == {
        "empty.jpg": "empty",
        "text.png": "not-an-image",
        "cut.png": "truncated",
        "link.png": "not-a-file",
        "hard.png": "not-a-file",
        "pipe.png": "not-a-file",
        "good.png": "duplicate-name",
        "/etc/root.png": "odd-name",
        "../up.png": "odd-name",
    }


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[:-700], "no whole tar archive|damaged"),
        (lambda text: text[:1700], "no whole tar archive: unexpected end"),
        (lambda text: text[:2048] + b"\x07" * 512 + text[2560:], "no whole tar archive"),
        (lambda text: b"", "no whole tar archive: empty file"),
        (lambda text: b"hello" * 400, "no whole tar archive"),
        (lambda text: b"\x1f\x8b\x08" + text, "compressed with gzip; unpack it"),
    ],
)
def test_a_damaged_archive_is_told_in_one_line(shards, damage, said):
    whole = (shards / "000001.tar").read_bytes().rstrip(b"\0")
    (shards / "000001.tar").write_bytes(damage(whole))
    with pytest.raises(DataError, match=rf"^1 of 4 archives can't be read: .*1\.tar \(({said}).*; copy them again"):
        open_tar(str(shards), RULES)


def test_archives_that_were_cut_between_two_members_are_told(shards, caplog):
    for shard in (1, 3):
        whole = (shards / f"{shard:06d}.tar").read_bytes()
        with tarfile.open(shards / f"{shard:06d}.tar") as archive:
            last = archive.getmembers()[-1]
        (shards / f"{shard:06d}.tar").write_bytes(whole[: last.offset])
    assert len(open_tar(str(shards), RULES)) == 18
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "000001.tar and 1 more archives end without the blocks that end an archive; where it was cut" in said


def test_an_archive_without_images_and_one_that_is_a_pipe(tmp_path):
    write(tmp_path / "a.tar", {"a.cls": b"7"})
    with pytest.raises(DataError, match="no usable image in 1 archives"):
        open_tar(str(tmp_path / "a.tar"), RULES)
    os.mkfifo(tmp_path / "b.tar")
    with pytest.raises(DataError, match=r"b\.tar \(a pipe, not a regular file\)"):
        open_tar(str(tmp_path / "b.tar"), RULES)


def test_an_index_is_kept_and_only_changed_archives_are_read(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("SSLDET_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(shard_index, "MANY", 20)
    scanned = []
    scan = shard_index.scan
    monkeypatch.setattr(shard_index, "scan", lambda path, rules: scanned.append(Path(path).name) or scan(path, rules))
    before = open_tar(str(shards), RULES)
    assert len(scanned) == 4
    scanned.clear()
    assert open_tar(str(shards), RULES).fingerprint == before.fingerprint
    assert scanned == []
    write(shards / "000002.tar", {f"n/{number}.png": photo(number) for number in range(6)} | {"bad.png": b"x"})
    after = open_tar(str(shards), RULES)
    assert scanned == ["000002.tar"]
    assert (len(after), after.fingerprint == before.fingerprint) == (21, False)
    monkeypatch.setattr(shard_index, "MANY", 10**6)
    (tmp_path / "home" / "shards").rename(tmp_path / "gone")
    fresh = open_tar(str(shards), RULES)
    assert (fresh.fingerprint, fresh.skipped) == (after.fingerprint, after.skipped)


def test_an_archive_that_changes_while_it_is_read_is_told(shards):
    source = open_tar(str(shards), RULES)
    copied = pickle.loads(pickle.dumps(source))
    write(shards / "000000.tar", {"a.png": photo(3)})
    for one in (source, copied):
        with pytest.raises(DataError, match=r"000000\.tar: was changed after it was opened; start again"):
            one[0]
        assert one[6].original_size == (30, 26)


def test_an_archive_that_is_cut_or_gone_costs_its_images(shards):
    source = open_tar(str(shards), RULES)
    assert source[0].original_size == (30, 20)
    size = (shards / "000000.tar").stat().st_size
    os.truncate(shards / "000000.tar", 3000)
    with pytest.raises(UnreadableError, match=r"0/4\.png: (truncated|not-an-image)"):
        source[4]
    assert size > 3000
    (shards / "000001.tar").unlink()
    with pytest.raises(UnreadableError, match=r"1/1\.png: missing"):
        source[6]


def test_more_archives_than_may_be_open(shards, monkeypatch):
    monkeypatch.setattr(shard_files, "OPEN", 2)
    source = open_tar(str(shards), RULES)
    for index in (0, 5, 10, 15, 0, 19):
        assert source[index].original_size == (30, 20 + index)
    assert len(source._reader._open) == 2
