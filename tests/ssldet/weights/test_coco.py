"""How published detectors number COCO's classes."""

import json
from pathlib import Path

import pytest

from ssldet.weights.coco import coco_numbering, coco_things


@pytest.mark.parametrize(("num_classes", "named"), [(91, 80), (80, 80), (250, 133), (133, 133)])
def test_each_published_head_has_the_names_of_its_ids(num_classes: int, named: int) -> None:
    names, ids = coco_numbering(num_classes)
    assert len(names) == len(ids) == num_classes
    told = {number: name for number, name in zip(ids, names, strict=True) if name}
    assert len(told) == named
    assert (told[1], told[90]) == ("person", "toothbrush")
    assert list(ids) == sorted(ids)


def test_the_holes_are_those_of_the_released_models() -> None:
    names, _ = coco_numbering(91)
    assert [number for number, name in enumerate(names) if not name] == [0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83]


@pytest.mark.parametrize("num_classes", [2, 3, 20, 79, 92])
def test_other_heads_have_no_known_names(num_classes: int) -> None:
    assert coco_numbering(num_classes) == ((), ())


def test_the_names_are_those_of_the_annotation_files(real_data: Path) -> None:
    document = json.loads((real_data / "coco_panoptic" / "annotations" / "panoptic_val.json").read_text())
    names, ids = coco_numbering(133)
    assert dict(zip(ids, names, strict=True)) == {entry["id"]: entry["name"] for entry in document["categories"]}
    things = {entry["id"] for entry in document["categories"] if entry["isthing"]}
    assert set(coco_things()) == things
