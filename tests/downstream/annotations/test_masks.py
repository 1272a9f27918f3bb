"""Masks in all of COCO's forms: the same run lengths, or refused before C code reads them."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from downstream.annotations.masks import encode, read_mask


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 700), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.02, 0.5, 1.0]))
def test_every_form_of_a_mask_is_the_same_mask(height: int, width: int, seed: int, filled: float) -> None:
    mask = torch.from_numpy(np.random.default_rng(seed).random((height, width)) < filled)
    (rle,) = encode(mask[None])
    flat = np.concatenate([[0], mask.numpy().T.ravel(), [2]])
    counts = np.diff(np.flatnonzero(np.diff(flat, prepend=-1))).tolist()
    counts = counts if flat[1] == 0 else [0, *counts[1:]]
    counts[0] -= int(flat[1] == 0)
    for stated in (rle["counts"], rle["counts"].decode(), counts):
        assert read_mask({"size": [height, width], "counts": stated}, (height, width)) == rle


def test_polygons_are_those_of_pycocotools() -> None:
    rings = [[1.5, 2, 20, 2.25, 12, 17.5], [30, 5, 44, 5, 44, 11, 30, 11]]
    expected = coco_mask.merge(coco_mask.frPyObjects(rings, 20, 50))
    assert read_mask(rings, (20, 50)) == expected


def test_no_mask_at_all() -> None:
    assert encode(torch.zeros(0, 4, 5, dtype=torch.bool)) == []


@pytest.mark.parametrize(
    ("stated", "advice"),
    [
        (None, "polygons or run lengths"),
        ([], "at least one polygon"),
        ([[1, 2, 3, 4]], "three points"),
        ([[1, 2, 3, 4, 5, 6, 7]], "three points"),
        ([[1, 2, 3, 4, 5, "6"]], "finite"),
        ([[1, 2, 3, 4, 5, float("nan")]], "finite"),
        ([[1, 2, 3, 4, 5, 1e12]], "finite"),
        ({"counts": [20]}, "size is None"),
        ({"size": [5, 4], "counts": [20]}, "size is"),
        ({"size": [4, 5], "counts": [21]}, "20 pixels"),
        ({"size": [4, 5], "counts": [5, -5, 20]}, "20 pixels"),
        ({"size": [4, 5], "counts": [2.5, 17.5]}, "20 pixels"),
        ({"size": [4, 5], "counts": 20}, "20 pixels"),
        ({"size": [4, 5], "counts": ""}, "20 pixels"),
        ({"size": [4, 5], "counts": "d0d0"}, "20 pixels"),
        ({"size": [4, 5], "counts": "T"}, "20 pixels"),
        ({"size": [4, 5], "counts": "ä0"}, "20 pixels"),
        ({"size": [4, 5], "counts": "ooooooooo0"}, "20 pixels"),
    ],
)
def test_what_is_no_mask_is_refused(stated: object, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        read_mask(stated, (4, 5))


def test_an_image_of_unknown_size_has_no_masks() -> None:
    with pytest.raises(ValueError, match="height and width"):
        read_mask([[1, 1, 3, 1, 3, 3]], (0, 0))


def test_the_masks_of_real_annotations_can_be_read(real_data: Path) -> None:
    path = real_data / "coco_tiny" / "annotations" / "instances_val.json"
    document: dict[str, Any] = json.loads(path.read_bytes())
    sizes = {image["id"]: (image["height"], image["width"]) for image in document["images"]}
    for row in document["annotations"]:
        size = sizes[row["image_id"]]
        stated = copy.deepcopy(row["segmentation"])
        if isinstance(stated, list):
            expected = coco_mask.merge(coco_mask.frPyObjects(stated, *size))
        else:
            expected = coco_mask.frPyObjects(stated, *size)
        assert read_mask(row["segmentation"], size) == expected
