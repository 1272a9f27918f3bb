import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import masks_to_boxes

from ssldet import chance
from ssldet.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from ssldet.data.geometry import (
    DETRAugmentation,
    ShortSide,
    crop,
    flip,
    resize,
    resize_short_side,
    short_side_size,
)
from ssldet.types import Sample, Targets


def sample_of(height, width, corners, **more):
    """A sample with boxes in pixels (xyxy)."""
    boxes = xyxy_to_cxcywh(torch.tensor(corners, dtype=torch.float32).reshape(-1, 4))
    boxes = boxes / torch.tensor([width, height, width, height])
    pixels = torch.arange(height * width).reshape(1, height, width) % 251
    return Sample(
        image=pixels.to(torch.uint8).repeat(3, 1, 1),
        targets=Targets(boxes=boxes, labels=torch.arange(len(boxes)), **more),
        key="k",
        original_size=(height, width),
    )


def corners_of(sample):
    height, width = sample.image.shape[1:]
    return cxcywh_to_xyxy(sample.targets.boxes) * torch.tensor([width, height, width, height])


sizes = st.integers(1, 90)


shares = st.tuples(*[st.floats(0, 1, width=32)] * 4)
layouts = st.tuples(sizes, sizes, st.lists(shares, max_size=4))


def built(layout):
    """A sample from height, width and boxes in fractions of the image."""
    height, width, boxes = layout
    corners = [[min(a, c) * width, min(b, d) * height, max(a, c) * width, max(b, d) * height] for a, b, c, d in boxes]
    return sample_of(height, width, corners)


def inside(boxes):
    corners = cxcywh_to_xyxy(boxes)
    return bool(((corners > -1e-5) & (corners < 1 + 1e-5)).all()) and bool((boxes[:, 2:] >= 0).all())


@settings(max_examples=30, deadline=None)
@given(layouts, sizes, sizes)
def test_resizing_keeps_normalised_boxes(layout, height, width):
    sample = built(layout)
    result = resize(sample, (height, width))
    assert result.image.shape == (3, height, width)
    assert result.image.dtype == torch.uint8
    assert torch.equal(result.targets.boxes, sample.targets.boxes)
    assert result.original_size == sample.original_size


@settings(max_examples=30, deadline=None)
@given(layouts)
def test_flipping_twice_changes_nothing(layout):
    sample = built(layout)
    once = flip(sample)
    assert inside(once.targets.boxes)
    assert torch.equal(once.image, sample.image.flip(2))
    twice = flip(once)
    assert torch.equal(twice.image, sample.image)
    torch.testing.assert_close(twice.targets.boxes, sample.targets.boxes, atol=1e-6, rtol=0)


@settings(max_examples=50, deadline=None)
@given(layouts, st.data())
def test_cropping_keeps_what_lies_inside(layout, data):
    sample = built(layout)
    height, width = sample.image.shape[1:]
    rows, columns = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    top, left = data.draw(st.integers(0, height - rows)), data.draw(st.integers(0, width - columns))
    result = crop(sample, top, left, rows, columns)
    assert torch.equal(result.image, sample.image[:, top : top + rows, left : left + columns])
    assert inside(result.targets.boxes)
    expected = {}
    for label, (x1, y1, x2, y2) in enumerate(corners_of(sample).tolist()):
        box = [max(x1 - left, 0), max(y1 - top, 0), min(x2 - left, columns), min(y2 - top, rows)]
        if box[2] - box[0] > 2e-3 and box[3] - box[1] > 2e-3:
            expected[label] = box
    found = dict(zip(result.targets.labels.tolist(), corners_of(result).tolist(), strict=True))
    assert expected.keys() <= found.keys()
    for label, box in expected.items():
        assert found[label] == pytest.approx(box, abs=1e-3)


@settings(max_examples=25, deadline=None)
@given(layouts, st.integers(0, 2**31))
def test_detr_augmentation_on_any_image(layout, seed):
    sample = built(layout)
    views = DETRAugmentation(scales=(40, 60), max_size=99, crop_scales=(30, 50), crop_range=(25, 45))
    result = views(sample, chance.generator(seed))
    again = views(sample, chance.generator(seed))
    assert torch.equal(result.image, again.image)
    assert torch.equal(result.targets.boxes, again.targets.boxes)
    assert inside(result.targets.boxes)
    assert min(result.image.shape[1:]) >= 1
    assert len(result.targets.boxes) == len(result.targets.labels) <= len(sample.targets)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 1000), st.none() | st.integers(1, 1500))
def test_the_short_side_rule_never_gives_an_empty_image(height, width, short, longest):
    rows, columns = short_side_size((height, width), short, longest)
    assert min(rows, columns) >= 1
    assert min(rows, columns) <= short
    assert (rows < columns) <= (height < width)
    if longest is not None and max(height, width) < 20 * min(height, width) and longest >= 200:
        assert max(rows, columns) <= longest * 1.1


@pytest.mark.parametrize(
    ("size", "short", "longest", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1066)),  # 1066.67 is cut, not rounded
        ((640, 480), 800, 1333, (1066, 800)),
        ((427, 640), 800, 1333, (800, 1199)),
        ((333, 500), 800, 1333, (800, 1201)),
        ((300, 900), 800, 1333, (444, 1332)),  # the limit shortens the short side
        ((20, 3000), 480, 1333, (9, 1350)),  # and by its rounding is passed
        ((800, 800), 800, 1333, (800, 800)),
        ((480, 600), 480, 600, (480, 600)),
        ((1, 5000), 480, 1333, (1, 5000)),  # 0 rows without the floor
    ],
)
def test_the_short_side_rule_is_detrs(size, short, longest, expected):
    assert short_side_size(size, short, longest) == expected


def test_cropping_keeps_all_that_belongs_to_a_box():
    sample = sample_of(
        40,
        60,
        [[0, 0, 10, 10], [20, 10, 40, 30], [50, 30, 60, 40]],
        embeddings=torch.arange(6.0).reshape(3, 2),
        groups=torch.tensor([7, 8, 9]),
    )
    result = crop(sample, top=5, left=25, height=30, width=30)
    assert result.targets.labels.tolist() == [1, 2]
    assert result.targets.groups.tolist() == [8, 9]
    assert result.targets.embeddings.tolist() == [[2, 3], [4, 5]]
    torch.testing.assert_close(corners_of(result), torch.tensor([[0.0, 5, 15, 25], [25, 25, 30, 30]]))


def test_a_box_that_only_touches_the_crop_is_dropped():
    sample = sample_of(30, 30, [[0, 0, 10, 30], [10, 0, 20, 30], [20, 0, 30, 30]])
    assert crop(sample, 0, 10, 30, 10).targets.labels.tolist() == [1]


@pytest.mark.parametrize("views", [ShortSide((8, 16), 99), DETRAugmentation()])
def test_views_pickle_and_need_no_boxes(views, generator):
    copy = pickle.loads(pickle.dumps(views))
    assert copy == views
    result = copy(sample_of(20, 30, []), generator)
    assert result.targets.boxes.shape == (0, 4)


def test_every_scale_and_both_sides_are_drawn():
    sample = sample_of(20, 30, [[0, 0, 15, 20]])
    lengths = {ShortSide((8, 16, 24))(sample, chance.generator(i)).image.shape[1] for i in range(40)}
    assert lengths == {8, 16, 24}
    views = DETRAugmentation(scales=(20,), crop=0.0)
    sides = {round(views(sample, chance.generator(i)).targets.boxes[0, 0].item(), 2) for i in range(20)}
    assert sides == {0.25, 0.75}


def test_crops_reach_every_border():
    views = DETRAugmentation(scales=(18,), crop_scales=(20,), crop_range=(18, 19), crop=1.0, flip=0.0)
    rows = torch.arange(20, dtype=torch.uint8)[:, None]
    sample = sample_of(20, 20, [[0, 0, 20, 20]])
    sample = replace(sample, image=torch.stack([rows.expand(20, 20), rows.mT.expand(20, 20), rows.expand(20, 20)]))
    firsts, shapes = set(), set()
    for seed in range(80):
        result = views(sample, chance.generator(seed))
        shapes.add(result.image.shape[1:])
        if result.image.shape[1:] == (18, 18):  # the others are resized
            firsts.add(tuple(result.image[:2, 0, 0].tolist()))
    assert {(0, 0), (0, 2), (2, 0), (1, 1)} <= firsts
    assert all(first in {0, 1, 2} for pair in firsts for first in pair)
    assert len(shapes) > 1


def test_the_long_side_follows_the_short_one():
    assert resize_short_side(sample_of(8, 30, []), 4).image.shape == (3, 4, 15)


def masked(height, width, corners, generator):
    """A sample whose masks are random within their boxes and touch all four sides of them."""
    whole = sample_of(height, width, corners)
    masks = torch.zeros(len(corners), height, width, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, corners, strict=True):
        mask[top:bottom, left:right] = torch.rand(bottom - top, right - left, generator=generator) > 0.5
        mask[[top, bottom - 1], left:right] = True
        mask[top:bottom, [left, right - 1]] = True
    return replace(whole, targets=replace(whole.targets, masks=masks))


whole_boxes = st.lists(st.tuples(*[st.integers(0, 39)] * 4), min_size=1, max_size=3)


def boxed(corners):
    return [[min(a, c), min(b, d), max(a, c) + 1, max(b, d) + 1] for a, b, c, d in corners]


def tight(masks):
    return masks_to_boxes(masks) + torch.tensor([0.0, 0, 1, 1])


@settings(deadline=None, max_examples=40)
@given(whole_boxes, st.integers(0, 99))
def test_masks_stay_with_their_boxes(corners, seed):
    generator = torch.Generator().manual_seed(seed)
    sample = masked(40, 40, boxed(corners), generator)
    flipped = flip(sample)
    torch.testing.assert_close(tight(flipped.targets.masks), corners_of(flipped), atol=1e-4, rtol=0)
    larger = resize(sample, (97, 123))
    assert larger.targets.masks.shape[1:] == larger.image.shape[1:]
    difference = tight(larger.targets.masks) - corners_of(larger)
    # A pixel belongs to the mask that lies under its middle.
    assert difference.abs().max() <= 0.501
    top, left = (int(torch.randint(0, 20, (), generator=generator)) for _ in range(2))
    cut = crop(sample, top, left, 17, 20)
    kept = cut.targets.labels
    window = sample.targets.masks[:, top : top + 17, left : left + 20]
    assert kept.tolist() == window.flatten(1).any(1).nonzero().flatten().tolist()
    assert torch.equal(cut.targets.masks, window[kept])
    if len(kept):
        # The frame of each mask is whole, so that nothing but a cut makes its box larger than what remains.
        inner, outer = tight(cut.targets.masks), corners_of(cut)
        assert (inner[:, :2] >= outer[:, :2] - 1e-3).all()
        assert (inner[:, 2:] <= outer[:, 2:] + 1e-3).all()


def test_a_box_without_a_pixel_left_is_dropped_with_its_mask():
    diagonal = torch.eye(20, dtype=torch.bool)[None]
    sample = sample_of(20, 20, [[0, 0, 20, 20]], masks=diagonal)
    assert len(crop(sample, 0, 10, 10, 10).targets) == 0
    assert len(crop(replace(sample, targets=replace(sample.targets, masks=None)), 0, 10, 10, 10).targets) == 1


def test_augmentation_moves_masks_with_pixels():
    views = DETRAugmentation(scales=(40, 56), max_size=99, crop_scales=(48,), crop_range=(20, 40), crop=0.5)
    bright = torch.zeros(30, 50, dtype=torch.bool)
    bright[5:25, 10:30] = True
    pixels = bright.to(torch.uint8).mul(200).expand(3, -1, -1).contiguous()
    sample = replace(sample_of(30, 50, [[10, 5, 30, 25]], masks=bright[None]), image=pixels)
    for seed in range(12):
        seen = views(sample, torch.Generator().manual_seed(seed))
        shown = seen.image[0] > 100
        mask = seen.targets.masks.any(0) if len(seen.targets) else torch.zeros_like(shown)
        # The edge is blurred by the resize, by less than a pixel of the original.
        assert (mask != shown).sum() <= 0.02 * mask.numel() + 4
