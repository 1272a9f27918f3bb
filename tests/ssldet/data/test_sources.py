import pickle
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image

from ssldet import registry
from ssldet.data.images import ImageRules, ImageSource
from ssldet.data.joining import ConcatSource
from ssldet.data.sources import PartSource, open_source
from ssldet.errors import DataError
from ssldet.source import Source
from ssldet.types import Sample, Skipped, Targets

RULES = ImageRules(min_side=17, max_pixels=1_000_000)


class Labelled(Source):
    classes = fingerprint = skipped = category_ids = is_thing = ()  # given to each one

    def __init__(self, classes, count, fingerprint="x", category_ids=(), is_thing=()):
        self.classes, self.count, self.fingerprint = classes, count, fingerprint
        self.category_ids, self.is_thing = category_ids, is_thing
        self.skipped = (Skipped(path=f"{fingerprint}.jpg", reason="empty"),)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return Sample(
            image=torch.full((3, 20, 20), index, dtype=torch.uint8),
            targets=Targets(boxes=torch.rand(2, 4), labels=torch.tensor([0, 1])),
            key=str(index),
            original_size=(20, 20),
        )


def open_toy(rest, rules, *, masks=False):
    assert (rules, masks) == (RULES, False)
    return Labelled(tuple(rest.split(",")), 3, rest)


@pytest.fixture(autouse=True)
def _formats(monkeypatch):
    monkeypatch.setattr(registry, "names", lambda group: ["toys", "voc"])
    monkeypatch.setattr(registry, "find", lambda group, name: open_toy)


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (30, 20)).save(tmp_path / name / "1.png")
    return tmp_path


def test_a_folder_and_several(folder):
    assert isinstance(open_source([str(folder / "a")], RULES), ImageSource)
    both = open_source([str(folder / "a"), str(folder / "b")], RULES)
    assert isinstance(both, ImageSource)
    assert [both[i].key for i in range(len(both))] == ["a/1.png", "b/1.png"]


def test_a_format_by_name():
    source = open_source(["toys:cat,dog"], RULES)
    assert source.classes == ("cat", "dog")


def test_formats_and_folders_together_are_unlabelled(folder):
    source = open_source([str(folder / "a"), "toys:cat,dog"], RULES)
    assert isinstance(source, Source)
    assert source.classes == ()
    assert [source[i].key for i in range(len(source))] == ["0:0", "0:1", "0:2", "1:1.png"]
    assert [len(source[i].targets) for i in range(len(source))] == [0, 0, 0, 0]
    assert source.skipped == (Skipped(path="cat,dog.jpg", reason="empty"),)
    assert source.path_of(3) == folder / "a" / "1.png"
    assert source.path_of(1) is None
    assert source.targets_of(1) is None


def test_equal_classes_join_and_others_do_not():
    source = open_source(["toys:cat,dog", "toys:cat,dog"], RULES)
    assert source.classes == ("cat", "dog")
    assert len(source) == 6
    assert [int(source[i].image[0, 0, 0]) for i in range(6)] == [0, 1, 2, 0, 1, 2]
    assert len(source[5].targets) == 2
    for index in (-1, 6):
        with pytest.raises(IndexError):
            source[index]
    with pytest.raises(DataError, match=r"2 and 3 classes, 'dog' against 'cow'"):
        open_source(["toys:cat,dog", "toys:cat,cow,dog"], RULES)
    with pytest.raises(DataError, match=r"2 and 1 classes\)"):
        open_source(["toys:cat,dog", "toys:cat"], RULES)


def test_joined_sources_keep_what_they_say_of_their_classes(caplog):
    one = Labelled(("cat", "sky"), 3, "a", category_ids=(17, 119), is_thing=(True, False))
    other = Labelled(("cat", "sky"), 2, "b", category_ids=(17, 119))
    both = ConcatSource([one, other])
    assert (both.category_ids, both.is_thing) == ((17, 119), (True, False))
    part = PartSource(both, [4, 0, 1])
    assert (part.category_ids, part.is_thing, len(part)) == ((17, 119), (True, False), 3)
    assert not caplog.records
    unlabelled = ConcatSource([one, Labelled((), 2, "c")])
    assert (unlabelled.classes, unlabelled.category_ids, unlabelled.is_thing) == ((), (), ())


def test_sets_that_number_their_classes_differently_take_the_numbers_of_the_first(caplog):
    unnumbered, coco = Labelled(("cat", "dog"), 2), Labelled(("cat", "dog"), 3, "a", (7, 4))
    assert ConcatSource([unnumbered, coco, Labelled(("cat", "dog"), 1, "b", (0, 1))]).category_ids == (7, 4)
    assert "number their classes differently" in caplog.text


def test_sets_that_disagree_on_what_can_be_counted_are_not_joined():
    kinds = [Labelled(("cat", "sky"), 2, is_thing=(True, sky)) for sky in (True, False)]
    with pytest.raises(DataError, match="'sky' is a countable thing in one and stuff in another"):
        ConcatSource(kinds)


def test_the_fingerprint_knows_the_order():
    a, b = Labelled(("x",), 2, "a"), Labelled(("x",), 2, "b")
    assert ConcatSource([a, b]).fingerprint != ConcatSource([b, a]).fingerprint
    assert pickle.loads(pickle.dumps(ConcatSource([a, b]))).fingerprint == ConcatSource([a, b]).fingerprint


def test_a_near_miss_gets_a_suggestion():
    with pytest.raises(DataError, match=r"no data format 'toy' \(did you mean 'toys'\?\); formats: toys, voc$"):
        open_source(["toy:x"], RULES)
    with pytest.raises(DataError, match=r"no data format 'imagenet'; formats"):
        open_source(["imagenet:x"], RULES)


def test_paths_with_colons_are_paths(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "toys:b").symlink_to("b")
    assert isinstance(open_source(["toys:b"], RULES), ImageSource)
    with pytest.raises(DataError, match=r"no such file or folder: .*C:\\photos"):
        open_source(["C:\\photos"], RULES)


def test_no_specification(folder):
    with pytest.raises(DataError, match="no images given"):
        open_source([], RULES)


def test_fractions_are_nested_and_a_function_of_their_seed(tmp_path: Path) -> None:
    for number in range(40):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(tmp_path / f"{number:02d}.png")

    def keys(fraction: float, seed: int = 0) -> list[str]:
        part = open_source([str(tmp_path)], RULES, fraction=fraction, fraction_seed=seed)
        return [part[index].key for index in range(len(part))]

    chosen = [keys(fraction) for fraction in (0.01, 0.05, 0.1, 0.5, 1.0)]
    assert [len(part) for part in chosen] == [1, 2, 4, 20, 40]
    for small, large in pairwise(chosen):
        assert set(small) < set(large)
        assert small == sorted(small)
    assert keys(0.1) == chosen[2]
    assert keys(0.1, seed=1) != chosen[2]


def test_a_fraction_has_its_own_fingerprint_and_keeps_what_the_whole_is(tmp_path: Path) -> None:
    for number in range(8):
        Image.new("RGB", (20, 20)).save(tmp_path / f"{number}.png")
    (tmp_path / "bad.png").write_bytes(b"")
    whole = open_source([str(tmp_path)], RULES)
    part = open_source([str(tmp_path)], RULES, fraction=0.5)
    other = open_source([str(tmp_path)], RULES, fraction=0.5, fraction_seed=3)
    assert len({whole.fingerprint, part.fingerprint, other.fingerprint}) == 3
    assert (part.classes, part.skipped) == (whole.classes, whole.skipped)
    assert part.path_of(0) == tmp_path / part[0].key
    with pytest.raises(IndexError):
        part[4]
