"""Boxes and pixels move together, no side is longer than the window, and objects mostly outside are dropped."""

import pytest
import torch

from ssldet.boxes import to_absolute
from ssldet.data.scale_jitter import ScaleJitter
from ssldet.types import Sample, Targets


def a_sample(height: int = 90, width: int = 60) -> Sample:
    """Black, with one white rectangle whose box is the only target."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, 30:60, 20:40] = 255
    boxes = torch.tensor([[30 / width, 45 / height, 20 / width, 30 / height]])
    return Sample(
        image=image,
        targets=Targets(boxes=boxes, labels=torch.tensor([2])),
        key="one",
        original_size=(height, width),
    )


def drawn(views: ScaleJitter, seed: int) -> Sample:
    return views(a_sample(), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(12))
def test_the_box_stays_around_what_it_was_around(seed: int) -> None:
    sample = drawn(ScaleJitter(side=128, scale=(0.5, 2.0), stretch=1.3), seed)
    assert max(sample.image.shape[1:]) <= 128
    white = sample.image[0] > 127
    if not len(sample.targets):
        assert white.float().mean() < 0.2
        return
    size = (sample.image.shape[1], sample.image.shape[2])
    left, top, right, bottom = to_absolute(sample.targets.boxes, size)[0].tolist()
    rows, columns = white.any(1).nonzero().flatten(), white.any(0).nonzero().flatten()
    # A crop is cut in whole pixels before resizing, which moves an edge by up to one of them.
    assert torch.allclose(torch.tensor([top, bottom]), torch.stack([rows[0], rows[-1] + 1]).float(), atol=3)
    assert torch.allclose(torch.tensor([left, right]), torch.stack([columns[0], columns[-1] + 1]).float(), atol=3)


def test_a_scale_of_one_only_resizes() -> None:
    sample = drawn(ScaleJitter(side=45, scale=(1.0, 1.0), flip=0.0), 0)
    assert sample.image.shape == (3, 45, 30)
    assert torch.allclose(sample.targets.boxes, a_sample().targets.boxes, atol=1e-6)


def test_objects_that_the_window_hardly_shows_are_no_targets() -> None:
    zoomed = {"side": 60, "scale": (3.0, 3.0), "flip": 0.0}
    kept = [
        len(drawn(ScaleJitter(**zoomed, least_left=least), seed).targets) for least in (0.0, 0.9) for seed in range(30)
    ]
    assert sum(kept[:30]) > sum(kept[30:]) > 0


def test_colours_change_only_if_asked_for() -> None:
    calm, lively = (ScaleJitter(side=90, scale=(1.0, 1.0), flip=0.0, colour=colour) for colour in (0.0, 0.8))
    shades = [{*drawn(views, seed).image.unique().tolist()} for views in (calm, lively) for seed in range(8)]
    assert all(values == {0, 255} for values in shades[:8])
    assert any(values != {0, 255} for values in shades[8:])


def test_the_same_seed_draws_the_same() -> None:
    views = ScaleJitter(side=100, scale=(0.4, 2.0), stretch=1.5, colour=0.3)
    assert torch.equal(drawn(views, 5).image, drawn(views, 5).image)
    assert drawn(views, 5).image.shape != drawn(views, 6).image.shape
