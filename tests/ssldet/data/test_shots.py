"""Few-shot training sets: few images, with so many objects of each class."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from downstream.annotations.shapes import write_shapes
from ssldet.data.images import ImageRules
from ssldet.data.shots import take_shots
from ssldet.data.sources import PartSource, open_source
from ssldet.errors import DataError
from ssldet.source import Source


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Source:
    place = tmp_path_factory.mktemp("shots")
    write_shapes(place, images=40, seed=1)
    return open_source((f"coco:{place}/instances.json:{place}/images",), ImageRules())


def counts(source: Source) -> Counter[int]:
    labels = [source.targets_of(index) for index in range(len(source))]
    return Counter(torch.cat([one.labels for one in labels if one is not None]).tolist())


def keys(source: PartSource) -> set[str]:
    return {source[index].key for index in range(len(source))}


def test_each_class_has_as_many_objects_and_few_images_are_taken(whole: Source) -> None:
    few = take_shots(whole, 3, 0)
    assert min(counts(few).values()) >= 3
    assert counts(few).keys() == counts(whole).keys()
    assert len(few) <= 3 * len(whole.classes)


def test_fewer_shots_are_among_more_and_other_seeds_take_others(whole: Source) -> None:
    assert keys(take_shots(whole, 1, 5)) < keys(take_shots(whole, 2, 5)) < keys(take_shots(whole, 4, 5))
    assert keys(take_shots(whole, 2, 5)) == keys(take_shots(whole, 2, 5)) != keys(take_shots(whole, 2, 6))


def test_a_scarce_class_is_named(whole: Source, caplog: pytest.LogCaptureFixture) -> None:
    assert counts(take_shots(whole, 1000, 0)) == counts(whole)
    assert f"fewer than 1000 objects in the whole set: {', '.join(whole.classes)}" in caplog.text


def test_images_without_labels_can_not_be_chosen_by_them(whole: Source, tmp_path: Path) -> None:
    folder = whole.path_of(0)
    assert folder is not None
    plain = open_source((str(folder.parent),), ImageRules())
    with pytest.raises(DataError, match=r"^data\.shots: .* set it to 0"):
        take_shots(plain, 1, 0)
