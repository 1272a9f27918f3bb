import pickle
from dataclasses import replace

import pytest
import torch

from ssldet.data.collate import collate
from ssldet.types import Sample, Skipped, Targets


def sample(height, width, boxes=0, patches=3, **more):
    return Sample(
        image=torch.full((3, height, width), height, dtype=torch.uint8),
        targets=Targets(boxes=torch.rand(boxes, 4), labels=torch.zeros(boxes, dtype=torch.int64)),
        key=f"{height}x{width}",
        original_size=(height * 2, width * 2),
        patches=torch.zeros(patches, 3, 8, 9, dtype=torch.uint8),
        **more,
    )


def test_pads_at_the_bottom_and_the_right():
    batch = collate([sample(5, 7, boxes=2), sample(6, 4)])
    assert batch.images.shape == (2, 3, 6, 7)
    assert batch.sizes.tolist() == [[5, 7], [6, 4]]
    assert batch.original_sizes.tolist() == [[10, 14], [12, 8]]
    assert (~batch.padding).sum((1, 2)).tolist() == [35, 24]
    assert not batch.padding[0, :5, :7].any()
    assert not batch.padding[1, :6, :4].any()
    assert batch.images[0, :, :5].unique().tolist() == [5]
    assert batch.images[batch.padding[:, None].expand_as(batch.images)].sum() == 0
    assert [len(targets) for targets in batch.targets] == [2, 0]
    assert batch.keys == ["5x7", "6x4"]
    assert batch.patches.shape == (2, 3, 3, 8, 9)
    assert batch.jitter is None
    assert pickle.loads(pickle.dumps(collate)) is collate


def test_joins_what_was_skipped():
    first, second = Skipped(path="a", reason="empty"), Skipped(path="b", reason="truncated")
    batch = collate([sample(5, 5, skipped=(first,)), sample(5, 5), sample(5, 5, skipped=(second, first))])
    assert batch.skipped == (first, second, first)


def test_unequal_patches_are_named():
    with pytest.raises(ValueError, match=r"patches of one batch must have one shape.*'5x5'.*'6x6'"):
        collate([sample(5, 5), sample(6, 6, patches=2)])


def test_masks_are_padded_to_the_canvas():
    samples = [sample(5, 7, boxes=2), sample(6, 4, boxes=1), sample(6, 7)]
    for number in (0, 1):
        targets = samples[number].targets
        masks = torch.ones(len(targets), *samples[number].image.shape[1:], dtype=torch.bool)
        samples[number] = replace(samples[number], targets=replace(targets, masks=masks))
    batch = collate(samples)
    assert [None if t.masks is None else tuple(t.masks.shape) for t in batch.targets] == [(2, 6, 7), (1, 6, 7), None]
    assert torch.equal(batch.targets[1].masks[0], ~batch.padding[1])
    assert batch.targets[0].masks[1].sum() == 35
