"""Levels that were kept are those that the network computes, and are found only where it would compute the same."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ssldet.nn.backbones import Backbone, BackboneConfig, build_backbone, calibrate
from ssldet.nn.backbones.kept import DiskStore, KeptLevels


def build(name: str = "resnet18") -> Backbone:
    torch.manual_seed(1)
    backbone = build_backbone(BackboneConfig(name=name, frozen_stages=0))
    calibrate(backbone, torch.randn(2, 3, 64, 64))
    return backbone.requires_grad_(False).eval()


def keep(backbone: Backbone, folder: Path, limit: int = 10**8) -> DiskStore:
    store = DiskStore(folder, limit)
    backbone.kept = KeptLevels(store)
    return store


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", ["resnet18", "tiny"])
def test_kept_levels_are_to_the_bit_those_of_each_image_alone(name: str, tmp_path: Path) -> None:
    backbone, images = build(name), torch.randn(2, 3, 70, 90)
    alone = [torch.cat(level) for level in zip(*map(backbone.levels, images.split(1)), strict=True)]
    together = backbone.levels(images)
    store = keep(backbone, tmp_path)
    first, again = backbone.levels(images), backbone.levels(images)
    assert equal(first, alone)
    assert equal(again, alone)
    for level, computed in zip(first, together, strict=True):
        assert difference(level, computed) < 1e-5  # how the convolutions of a batch are rounded depends on its size
        assert level.is_contiguous(memory_format=torch.channels_last)
    assert (store.computed, store.found) == (2, 2)
    assert torch.equal(backbone(images), alone[-1])
    assert (store.computed, store.found) == (4, 2)  # the last level alone lies in files of its own


def test_what_an_image_gets_does_not_depend_on_its_batch_or_on_what_was_kept(tmp_path: Path) -> None:
    backbone, images = build(), torch.randn(5, 3, 64, 80)
    keep(backbone, tmp_path / "one")
    whole = backbone.levels(images)
    store = keep(backbone, tmp_path / "two")
    backbone.levels(images[1:3])
    parts = backbone.levels(images)
    assert equal(whole, parts)
    assert (store.computed, store.found) == (5, 2)


def test_another_image_canvas_or_network_is_computed(tmp_path: Path) -> None:
    backbone, images = build(), torch.randn(1, 3, 64, 64)
    store = keep(backbone, tmp_path)
    backbone(images)
    wider = torch.nn.functional.pad(images, (0, 32))
    assert backbone(wider).shape[3] == backbone(images).shape[3] + 1
    assert (store.computed, store.found) == (2, 1)
    before = backbone(images)
    next(backbone.body.parameters()).mul_(1.5)
    assert not torch.equal(backbone(images), before)
    assert store.computed == 3
    other = build("timm/resnet18")
    other.kept = KeptLevels(store)
    other(images)
    assert store.computed == 4
    with torch.autocast("cpu", torch.bfloat16):
        assert backbone(images).dtype == torch.bfloat16
    assert store.computed == 5


def test_a_network_that_learns_or_trains_is_left_alone(tmp_path: Path) -> None:
    backbone, images = build(), torch.randn(1, 3, 64, 64)
    store = keep(backbone, tmp_path)
    backbone.requires_grad_(True)
    assert backbone(images).requires_grad
    backbone.requires_grad_(False)
    backbone.body.train()
    backbone(images)
    assert (store.computed, store.found) == (0, 0)


def test_a_damaged_file_is_computed_anew_and_replaced(tmp_path: Path) -> None:
    backbone, images = build("tiny"), torch.randn(1, 3, 64, 64)
    keep(backbone, tmp_path)
    whole = backbone(images)
    (path,) = tmp_path.glob("*/*/*")
    for damage in (b"", path.read_bytes()[:-3], b"x" * 400):
        path.write_bytes(damage)
        store = keep(backbone, tmp_path)
        assert torch.equal(backbone(images), whole)
        assert torch.equal(backbone(images), whole)
        assert (store.computed, store.found) == (1, 1)


def test_no_more_is_kept_than_was_allowed(tmp_path: Path) -> None:
    backbone, images = build("tiny"), torch.randn(4, 3, 64, 64)
    store = keep(backbone, tmp_path)
    backbone(images[:1])
    size = store.used
    assert size == sum(path.stat().st_size for path in tmp_path.glob("*/*/*"))
    store = keep(backbone, tmp_path, limit=2 * size)
    backbone(images)
    backbone(images)
    assert (store.found, store.computed) == (3, 5)
    assert store.used == 2 * size


def test_a_disk_that_fails_is_said_once_and_nothing_else_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone, images = build("tiny"), torch.randn(3, 3, 64, 64)
    plain = backbone(images)
    (tmp_path / "features").write_text("in the way")
    keep(backbone, tmp_path / "features")
    assert difference(backbone(images), plain) < 1e-6
    assert len(caplog.records) == 1
    assert "can't be written" in caplog.text


def test_a_copy_looks_in_the_same_place(tmp_path: Path) -> None:
    backbone, images = build("tiny"), torch.randn(2, 3, 64, 64)
    store = keep(backbone, tmp_path)
    assert torch.equal(backbone(images), deepcopy(backbone)(images))
    assert (store.computed, store.found) == (2, 2)
