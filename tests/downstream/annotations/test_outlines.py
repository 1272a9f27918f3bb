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
from downstream.metrics.predictions import score_predictions
from ssldet.data.images import ImageRules
from ssldet.data.sources import open_source
from ssldet.errors import AnnotationError, DataError
from ssldet.verbs import check_data

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


def _write(folder: Path, segmentation: Any, *, sized: bool = True) -> str:
    Image.new("RGB", (60, 40)).save(folder / "a.png")
    row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0}
    document = {
        "images": [{"id": 1, "file_name": "a.png"} | ({"height": 40, "width": 60} if sized else {})],
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


FAULTY = {
    "two points": [[1, 2, 3, 4]],
    "a flat list": [1, 1, 8, 1, 8, 8],
    "a box": [[1, 1, 8, 8]],
    **{f"a point at {far:g}": [[1, 1, far, 1, far, 8, 1, 8]] for far in (601.0, 1e7, 4e8, 1e10, -3e9, 1e300)},
    "a number of 400 digits": [[1, 1, 10**400, 1, 8, 8]],
    "runs of another size": {"size": [60, 40], "counts": [2400]},
    "text": "polygon",
}


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("name", FAULTY)
def test_one_rule_holds_in_training_checking_and_scoring(tmp_path: Path, name: str, sized: bool) -> None:
    spec = _write(tmp_path, FAULTY[name], sized=sized)
    assert len(open_source([spec], RULES)[0].targets) == 1
    with pytest.raises(AnnotationError, match=r"\$\.(annotations|images)\[0\]") as caught:
        open_source([spec], RULES, masks=True)
    (problem,) = check_data(spec).problems
    assert problem["where"] in str(caught.value)
    whole = [{"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": [[0, 0, 9, 0, 9, 9]]}]
    (tmp_path / "results.json").write_text(json.dumps(whole))
    with pytest.raises(AnnotationError, match=r"\$\.annotations\[0\]\.segmentation|needs height and width"):
        score_predictions(tmp_path / "results.json", spec)


@pytest.mark.parametrize("name", FAULTY)
def test_predictions_keep_the_same_rule(tmp_path: Path, name: str) -> None:
    spec = _write(tmp_path, [[0, 0, 9, 0, 9, 9]])
    row = {"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": FAULTY[name]}
    (tmp_path / "results.json").write_text(json.dumps([row]))
    with pytest.raises(AnnotationError, match=r"results\.json: 1 problem\n  \$\[0\]\.segmentation: "):
        score_predictions(tmp_path / "results.json", spec)


def test_short_parts_are_left_out_everywhere(tmp_path: Path) -> None:
    polygons = [[0, 0, 9, 0, 9, 9, 0, 9], [1, 1, 2, 2]]
    spec = _write(tmp_path, polygons)
    assert check_data(spec).sound
    masks = open_source([spec], RULES, masks=True)[0].targets.masks
    assert masks is not None
    assert int(masks.sum()) == 81
    row = {"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": polygons[:1]}
    (tmp_path / "results.json").write_text(json.dumps([row]))
    assert score_predictions(tmp_path / "results.json", spec)["segm"]["AP"] == pytest.approx(1.0)


def test_rows_without_a_mask_are_counted_by_a_check(tmp_path: Path) -> None:
    inspection = check_data(_write(tmp_path, None))
    assert inspection.sound
    assert "1 boxes without segmentation; tasks with masks refuse them" in inspection.warnings


ASIDE = {
    "fractions": [[0.02, 0.05, 0.2, 0.05, 0.2, 0.3]],
    "beside": [[30, 2, 40, 2, 40, 9]],
    "runs beside": {"size": [40, 60], "counts": [2000, 200, 200]},
    "empty runs": {"size": [40, 60], "counts": [2400]},
    "within": [[2, 2, 9, 2, 9, 9]],
}


@pytest.mark.parametrize("name", ASIDE)
def test_masks_that_can_not_be_those_of_their_boxes_are_told(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    spec = _write(tmp_path, ASIDE[name])
    said = [line for line in check_data(spec).warnings if "do not overlap their box" in line]
    assert len(said) == (name != "within")
    assert all(line.startswith("1 masks") and line.endswith("the first is $.annotations[0]") for line in said)
    open_source([spec], RULES, masks=True)
    assert ("do not overlap their box" in caplog.text) == (name != "within")


def test_the_hash_of_a_set_knows_its_masks_where_they_are_read(tmp_path: Path) -> None:
    plain, masked = [], []
    for segmentation in ([[1, 1, 9, 1, 9, 8]], [[1, 1, 9, 1, 9, 9]], [[1, 1, 9, 1, 9, 8]]):
        spec = _write(tmp_path, segmentation)
        plain.append(open_source([spec], RULES).fingerprint)
        masked.append(open_source([spec], RULES, masks=True).fingerprint)
    assert len(set(plain)) == 1
    assert masked[0] == masked[2] != masked[1]


def test_a_format_without_masks_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="voc carries no masks"):
        open_source([f"voc:{tmp_path / 'x'}"], RULES, masks=True)
