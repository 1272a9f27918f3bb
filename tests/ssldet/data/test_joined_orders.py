"""Archives that are joined with other sets are read a few at a time; sets without an order of their own as ever."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from downstream.annotations.shapes import write_shapes
from ssldet.data.images import ImageRules
from ssldet.data.mixing import MixedSource
from ssldet.data.sources import PartSource, open_source
from ssldet.source import Source, shuffled
from ssldet.testing import check_source

RULES = ImageRules()
ARCHIVES, IMAGES = 6, 5


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of archives, and a folder."""
    root = tmp_path_factory.mktemp("sets")
    photo = io.BytesIO()
    Image.new("RGB", (20, 30)).save(photo, "PNG")
    for number in range(13):
        (root / "folder").mkdir(exist_ok=True)
        (root / "folder" / f"{number}.png").write_bytes(photo.getvalue())
    for name in ("a", "b"):
        (root / name).mkdir()
        for shard in range(ARCHIVES):
            with tarfile.open(root / name / f"{shard}.tar", "w") as archive:
                for number in range(IMAGES):
                    member = tarfile.TarInfo(f"{shard}-{number}.png")
                    member.size = len(photo.getvalue())
                    archive.addfile(member, io.BytesIO(photo.getvalue()))
    return root


def opened(sets: Path, *specs: str) -> Source:
    return open_source([spec.replace("ROOT", str(sets)) for spec in specs], RULES)


def archives(source: Source, order: torch.Tensor, among: str) -> list[str]:
    """The archives of one set in the order in which their images come."""
    names = [source.name_of(number) or "" for number in order.tolist()]
    return [name.rpartition("/")[0] for name in names if name.rpartition("/")[0].endswith(".tar") and among in name]


def most_at_once(archives: list[str]) -> int:
    """The most archives whose first image has come and whose last one has not."""
    first = {name: archives.index(name) for name in archives}
    last = {name: len(archives) - 1 - archives[::-1].index(name) for name in archives}
    return max(sum(first[name] <= place <= last[name] for name in first) for place in range(len(archives)))


@pytest.mark.parametrize(
    "specs",
    [("tar:ROOT/a:window=1", "tar:ROOT/b:window=2"), ("tar:ROOT/a:window=1", "ROOT/folder")],
    ids=["archives", "archives and a folder"],
)
def test_every_set_keeps_its_order(sets: Path, specs: tuple[str, ...]) -> None:
    source = opened(sets, *specs)
    check_source(source)
    part = PartSource(source, [number for number in range(len(source)) if number % 3])
    check_source(part)
    for shown in (source, part):
        order = shown.order(3, 1)
        assert most_at_once(archives(shown, order, "/a/")) == 1
        assert most_at_once(archives(shown, order, "/b/") or ["none"]) <= 2
        from_first = torch.tensor(["/a/" in (shown.name_of(number) or "") for number in order.tolist()]).int()
        assert from_first.diff().abs().sum() >= 6, "one set comes after the other"


def test_sets_without_an_order_of_their_own_are_shuffled_as_one(sets: Path) -> None:
    for specs in (("tar:ROOT/a:window=9", "ROOT/folder"), ("tar:ROOT/a/0.tar", "tar:ROOT/b:window=6")):
        source = opened(sets, *specs)
        assert torch.equal(source.order(3, 1), shuffled(len(source), 3, 1))
        some = np.arange(4, 9)
        assert torch.equal(source.part_order(some, 3, 1), shuffled(5, 3, 1))


@pytest.mark.parametrize("ratio", [1, 7])
def test_unlabelled_images_in_archives_are_read_in_their_order(sets: Path, tmp_path: Path, ratio: int) -> None:
    labelled = open_source([f"coco:{write_shapes(tmp_path, images=7, size=24)}"], RULES)
    source = MixedSource(labelled, opened(sets, "tar:ROOT/a:window=1"), ratio)
    check_source(source)
    whole = ARCHIVES * IMAGES
    for epoch in range(2):
        order = archives(source, source.order(3, epoch), "/a/")
        for begin in range(0, len(order), whole):
            assert most_at_once(order[begin : begin + whole]) == 1
    assert not torch.equal(source.order(3, 0), source.order(3, 1))
