"""A mixed source: whole groups, every image in its turn, a function of the step, and no label of the second part."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from downstream.annotations.coco import open_coco
from downstream.annotations.shapes import write_shapes
from ssldet.data.images import ImageRules, open_images
from ssldet.data.loader import training_batches
from ssldet.data.mixing import MixedSource, Origin
from ssldet.source import Source
from ssldet.testing import check_source
from ssldet.types import Sample


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return open_coco(str(write_shapes(tmp_path_factory.mktemp("few"), images=3, size=24)), ImageRules(min_side=8))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Labelled too, so that it shows whether labels are read."""
    folder = tmp_path_factory.mktemp("many")
    return open_coco(str(write_shapes(folder, images=7, size=20, objects=(1, 2), seed=1)), ImageRules(min_side=8))


def is_labelled(sample: Sample) -> bool:
    assert isinstance(sample.problem, Origin)
    return bool(sample.problem.labelled)


def name(sample: Sample) -> str:
    return sample.key.rsplit(":", 1)[1]


def plain(sample: Sample, generator: torch.Generator) -> Sample:
    return sample


@pytest.mark.parametrize("ratio", [1, 2, 5])
def test_it_keeps_the_laws_of_sources(labelled: Source, others: Source, ratio: int) -> None:
    check_source(MixedSource(labelled, others, ratio))


@pytest.mark.parametrize("ratio", [1, 2, 5])
def test_an_epoch_shows_every_image_in_groups(labelled: Source, others: Source, ratio: int) -> None:
    mixed = MixedSource(labelled, others, ratio)
    shown = [mixed[int(place)] for place in mixed.order(3, 1)]
    kinds = [is_labelled(sample) for sample in shown]
    assert kinds == [True, *[False] * ratio] * (len(shown) // (1 + ratio))
    known = [name(sample) for sample in shown if is_labelled(sample)]
    assert {known.count(key) for key in known} == {len(known) // 3}
    unknown = [name(sample) for sample in shown if not is_labelled(sample)]
    counts = [unknown.count(key) for key in set(unknown)]
    assert len(counts) == 7
    assert max(counts) - min(counts) <= 1


def test_no_label_of_the_second_part_is_passed_on(labelled: Source, others: Source) -> None:
    mixed = MixedSource(labelled, others, 2)
    for place in range(len(mixed)):
        for sample in (mixed[place], mixed.draw(place, torch.Generator())):
            assert bool(len(sample.targets)) == is_labelled(sample)
        assert (mixed.targets_of(place) is None) == (not is_labelled(mixed[place]))
    assert mixed.classes == labelled.classes


def test_a_step_shows_the_same_images_however_the_run_came_to_it(labelled: Source, others: Source) -> None:
    mixed = MixedSource(labelled, others, 2)
    whole, rest = (
        list(training_batches(mixed, plain, seed=0, batch_size=6, total_steps=9, start_step=first)) for first in (0, 4)
    )
    assert [batch.keys for batch in whole[4:]] == [batch.keys for batch in rest]
    parts = training_batches(mixed, plain, seed=0, batch_size=6, total_steps=9, accumulate=2)
    halves = [batch.keys for batch in parts]
    assert [first + second for first, second in zip(halves[::2], halves[1::2], strict=True)] == [
        batch.keys for batch in whole
    ]


def test_the_fingerprint_tells_both_parts_and_their_ratio(labelled: Source, others: Source, tmp_path: Path) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    third = open_images([str(tmp_path)], ImageRules(min_side=8))
    mixed = [
        MixedSource(labelled, others, 1),
        MixedSource(labelled, others, 2),
        MixedSource(labelled, third, 1),
        MixedSource(third, others, 1),
    ]
    assert len({source.fingerprint for source in mixed}) == 4
