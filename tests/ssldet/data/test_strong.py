"""Strong views: pixels change, sizes and targets stay, and erased rectangles have the stated size."""

from dataclasses import replace

import pytest
import torch

from ssldet.data.photometric import Jitter
from ssldet.data.strong import Erasing, StrongView
from ssldet.errors import ConfigError
from ssldet.recipe import check
from ssldet.types import Sample, Targets

STILL = Jitter(probability=0.0, grey=0.0, blur=0.0)


def a_sample() -> Sample:
    image = torch.full((3, 40, 60), 128, dtype=torch.uint8)
    return Sample(
        image=image,
        targets=Targets(boxes=torch.tensor([[0.5, 0.5, 0.2, 0.4]]), labels=torch.tensor([1])),
        key="one",
        original_size=(40, 60),
    )


def test_geometry_and_targets_stay() -> None:
    sample = a_sample()
    view = StrongView(jitter=Jitter(), erasing=Erasing(most=3))
    seen = [view(sample, torch.Generator().manual_seed(seed)) for seed in range(6)]
    assert all(one.image.shape == sample.image.shape and one.targets is sample.targets for one in seen)
    assert any(not torch.equal(one.image, sample.image) for one in seen)
    assert bool((sample.image == 128).all())
    again = view(sample, torch.Generator().manual_seed(2))
    assert torch.equal(again.image, seen[2].image)


def test_rectangles_have_the_stated_area_and_there_may_be_none() -> None:
    erasing = Erasing(most=1, smallest=0.1, largest=0.2, aspect=2.0)
    shares = []
    for seed in range(40):
        changed = erasing(a_sample().image, torch.Generator().manual_seed(seed)) != 128
        shares.append(float(changed.any(0).float().mean()))
    assert 0 in shares
    assert all(0.08 < share < 0.22 for share in shares if share)


def test_nothing_is_changed_where_nothing_is_asked_for() -> None:
    view = StrongView(jitter=STILL, erasing=Erasing(most=0))
    assert torch.equal(view(a_sample(), torch.Generator()).image, a_sample().image)


def test_areas_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="is above largest"):
        check(replace(Erasing(), smallest=0.3))
