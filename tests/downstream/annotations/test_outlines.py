"""Masks: drawn as pycocotools draws them, and only from segmentations that were checked."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from downstream.annotations.coco import open_coco
from downstream.annotations.outlines import MISSING, Outline, mask_of, outline_of
from ssldet.data.images import ImageRules
from ssldet.data.sources import open_source
from ssldet.errors import AnnotationError, DataError

RULES = ImageRules(min_side=17, max_pixels=10**6)


def drawn(segmentation: object, size: tuple[int, int]) -> np.ndarray:
    outline = outline_of(segmentation)
    assert isinstance(outline, Outline), outline
    return mask_of(json.loads(outline.text), size, "here")


@settings(max_examples=40, deadline=None)
@given(pixels=st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=5, max_size=5))
def test_run_lengths_come_back_as_the_pixels_they_were_made_of(pixels: list[list[bool]]) -> None:
    mask = np.asfortranarray(np.array(pixels, dtype=np.uint8))
    flat = mask.ravel(order="F").tolist()
    counts, current = [0], 0
    for pixel in flat:
        if pixel != current:
            counts.append(0)
            current = pixel
        counts[-1] += 1
    text = coco_mask.encode(mask)["counts"].decode()
    for form in (counts, text):
        assert np.array_equal(drawn({"size": [5, 7], "counts": form}, (5, 7)), mask.astype(bool))


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12))
def test_damaged_compressed_runs_are_refused_before_they_are_drawn(text: str) -> None:
    outline = outline_of({"size": [5, 7], "counts": text})
    if isinstance(outline, Outline):
        assert mask_of(json.loads(outline.text), (5, 7), "here").shape == (5, 7)
    else:
        assert outline.startswith("counts")


@pytest.mark.parametrize(
    "segmentation",
    [
        "polygon",
        [1, 2, 3, 4, 5, 6],
        [[1, 2, 3, 4, 5]],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5, float("nan")]],
        [[1, 2, 3, 4, 5, "6"]],
        {"size": [5, 7]},
        {"size": [5, 7], "counts": [34]},
        {"size": [5, 7], "counts": [-1, 36]},
        {"size": [5, 7], "counts": [35, 10**9]},
        {"size": [5], "counts": [35]},
        {"size": [0, 7], "counts": []},
        {"size": "5x7", "counts": [35]},
    ],
)
def test_a_faulty_segmentation_is_told(segmentation: object) -> None:
    assert isinstance(outline_of(segmentation), str)


def test_absent_and_partly_empty_segmentations() -> None:
    assert outline_of(None) == outline_of([]) == MISSING
    outline = outline_of([[1, 1, 2, 2], [0, 0, 4, 0, 4, 3]])
    assert isinstance(outline, Outline)
    assert len(json.loads(outline.text)) == 1


def test_masks_are_had_only_when_asked_for_and_lie_within_their_boxes(real_data: Path) -> None:
    spec = str(real_data / "coco_tiny" / "annotations" / "instances_val.json")
    plain, source = open_coco(spec, RULES), open_coco(spec, RULES, masks=True)
    assert plain.fingerprint == source.fingerprint
    assert plain[0].targets.masks is None
    document = json.loads(Path(spec).read_text())
    for index in range(0, 50, 7):
        sample = source[index]
        masks = sample.targets.masks
        assert masks is not None
        assert masks.shape == (len(sample.targets), *sample.original_size)
        rows = [
            row for row in document["annotations"] if row["image_id"] == source.image_ids[index] and not row["iscrowd"]
        ]
        for mask, row in zip(masks.numpy(), rows, strict=True):
            expected = coco_mask.merge(coco_mask.frPyObjects(row["segmentation"], *sample.original_size))
            assert int(mask.sum()) == int(coco_mask.area(expected))
            ys, xs = np.nonzero(mask)
            x, y, width, height = row["bbox"]
            if len(ys):
                assert xs.min() >= x - 2
                assert xs.max() <= x + width + 2
                assert ys.min() >= y - 2
                assert ys.max() <= y + height + 2


def _write(folder: Path, segmentation: Any) -> str:
    Image.new("RGB", (60, 40)).save(folder / "a.png")
    row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0}
    document = {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 60}],
        "annotations": [row | ({} if segmentation is None else {"segmentation": segmentation})],
        "categories": [{"id": 1, "name": "cup"}],
    }
    (folder / "ann.json").write_text(json.dumps(document))
    return f"coco:{folder / 'ann.json'}:{folder}"


@pytest.mark.parametrize(
    ("segmentation", "place"),
    [
        (None, "$.annotations[0].segmentation: missing"),
        ([[1, 2]], "$.annotations[0].segmentation: [[1, 2]]"),
        ({"size": [60, 40], "counts": [2400]}, "$.annotations[0].segmentation.size: [60, 40]; must have the size"),
    ],
)
def test_a_row_without_a_sound_mask_stops_only_who_asks_for_masks(
    tmp_path: Path, segmentation: Any, place: str
) -> None:
    spec = _write(tmp_path, segmentation)
    assert len(open_source([spec], RULES)[0].targets) == 1
    with pytest.raises(AnnotationError) as caught:
        open_source([spec], RULES, masks=True)
    assert place in str(caught.value)


def test_a_format_without_masks_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="voc carries no masks"):
        open_source([f"voc:{tmp_path / 'x'}"], RULES, masks=True)
