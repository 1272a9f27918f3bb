import pickle
from dataclasses import replace

import pytest
import torch

from ssldet.data.collate import collate, of_one_size
from ssldet.patches import Patches
from ssldet.types import Sample, Skipped, Targets


def sample(height, width, boxes=0, patches=3, **more):
    return Sample(
        image=torch.full((3, height, width), height, dtype=torch.uint8),
        targets=Targets(boxes=torch.rand(boxes, 4), labels=torch.zeros(boxes, dtype=torch.int64)),
        key=f"{height}x{width}",
        original_size=(height * 2, width * 2),
        problem=Patches(pixels=torch.zeros(patches, 3, 8, 9, dtype=torch.uint8)),
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
    assert batch.problem.pixels.shape == (2, 3, 3, 8, 9)
    assert batch.problem.jitter is None
    assert pickle.loads(pickle.dumps(collate)) is collate


def test_joins_what_was_skipped():
    first, second = Skipped(path="a", reason="empty"), Skipped(path="b", reason="truncated")
    batch = collate([sample(5, 5, skipped=(first,)), sample(5, 5), sample(5, 5, skipped=(second, first))])
    assert batch.skipped == (first, second, first)


def test_unequal_patches_are_named():
    with pytest.raises(ValueError, match=r"Patches\.pixels of one batch must have one shape.*'5x5'.*'6x6'"):
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


def test_parts_of_one_size_are_free_of_padding():
    samples = [sample(5, 7, boxes=2), sample(6, 4, boxes=1), sample(5, 7)]
    masks = torch.ones(2, 5, 7, dtype=torch.bool)
    samples[0] = replace(samples[0], targets=replace(samples[0].targets, masks=masks))
    parts = list(of_one_size(collate(samples)))
    assert [places for places, _ in parts] == [[0, 2], [1]]
    for places, part in parts:
        assert not part.padding.any()
        for row, place in enumerate(places):
            assert torch.equal(part.images[row], samples[place].image)
            assert torch.equal(part.targets[row].boxes, samples[place].targets.boxes)
        assert part.keys == [samples[place].key for place in places]
        assert part.original_sizes.tolist() == [list(samples[place].original_size) for place in places]
        assert part.problem.pixels.shape == (len(places), 3, 3, 8, 9)
    assert torch.equal(parts[0][1].targets[0].masks, masks)


def test_the_canvas_can_be_a_multiple_of_some_pixels():
    batch = collate([sample(5, 7, boxes=2), sample(6, 16)], multiple=8)
    assert batch.images.shape == (2, 3, 8, 16)
    assert batch.sizes.tolist() == [[5, 7], [6, 16]]
    assert batch.padding[0].logical_not().sum() == 35
    assert batch.images[batch.padding[:, None].expand_as(batch.images)].sum() == 0
