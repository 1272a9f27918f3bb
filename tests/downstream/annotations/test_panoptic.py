"""Panoptic annotations: targets with masks, the truth of every pixel, every fault at once."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from downstream.annotations.panoptic import PanopticImages, open_panoptic
from ssldet.boxes import to_absolute
from ssldet.data.images import ImageRules
from ssldet.errors import AnnotationError, UnreadableError
from ssldet.verbs import check_data

Document = dict[str, Any]


def write_png(path: Path, ids: np.ndarray) -> None:
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1)
    Image.fromarray(colours.astype(np.uint8)).save(path)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Two images: one with two things, a crowd and stuff beside void, one empty."""
    ids = np.zeros((30, 40), dtype=np.int64)
    ids[20:] = 70000
    ids[2:9, 3:11] = 300
    ids[2:9, 12] = 301
    ids[10:14, 20:30] = 16777215
    (tmp_path / "ann").mkdir()
    (tmp_path / "images").mkdir()
    write_png(tmp_path / "ann/a.png", ids)
    write_png(tmp_path / "ann/b.png", np.zeros((20, 25), dtype=np.int64))
    for name, size in (("a.jpg", (40, 30)), ("b.jpg", (25, 20))):
        Image.new("RGB", size).save(tmp_path / "images" / name)
    segments = [
        {"id": 70000, "category_id": 200, "area": 400, "bbox": [0, 20, 40, 10], "iscrowd": 0},
        {"id": 300, "category_id": 7, "area": 56, "bbox": [3, 2, 8, 7], "iscrowd": 0},
        {"id": 16777215, "category_id": 7, "area": 40, "bbox": [20, 10, 10, 4], "iscrowd": 1},
        {"id": 301, "category_id": 7},
    ]
    document = {
        "images": [
            {"id": 5, "file_name": "a.jpg", "height": 30, "width": 40},
            {"id": 2, "file_name": "b.jpg", "height": 20, "width": 25},
        ],
        "categories": [{"id": 7, "name": "cup", "isthing": 1}, {"id": 200, "name": "wall", "isthing": 0}],
        "annotations": [
            {"image_id": 5, "file_name": "a.png", "segments_info": segments},
            {"image_id": 2, "file_name": "b.png", "segments_info": []},
        ],
    }
    (tmp_path / "ann.json").write_text(json.dumps(document))
    return tmp_path / "ann.json"


def opened(path: Path, *, masks: bool = True) -> PanopticImages:
    return open_panoptic(str(path), ImageRules(min_side=17, max_pixels=10**7), masks=masks)


def test_segments_are_targets_with_tight_boxes_and_masks(made: Path) -> None:
    source = opened(made)
    assert (source.classes, source.is_thing, source.category_ids) == (("cup", "wall"), (True, False), (7, 200))
    sample = source[0]
    assert sample.key == "5"
    assert sample.targets.labels.tolist() == [1, 0, 0]
    boxes = to_absolute(sample.targets.boxes, sample.original_size)
    torch.testing.assert_close(boxes, torch.tensor([[0, 20, 40, 30], [3, 2, 11, 9], [12, 2, 13, 9]]).float())
    masks = sample.targets.masks
    assert masks is not None
    assert masks.sum(dim=(1, 2)).tolist() == [400, 56, 7]
    assert masks[1, 2:9, 3:11].all()
    assert len(source[1].targets) == 0


def test_without_masks_the_boxes_are_the_same(made: Path) -> None:
    plain, drawn = (opened(made, masks=masks)[0].targets for masks in (False, True))
    assert plain.masks is None
    assert plain.labels.tolist() == drawn.labels.tolist()
    torch.testing.assert_close(plain.boxes, drawn.boxes)


def test_the_truth_tells_every_pixel(made: Path) -> None:
    truth = opened(made).truth("5")
    assert truth.labels.tolist() == [1, 0, 0, 0]
    assert truth.crowd is not None
    assert truth.crowd.tolist() == [False, False, True, False]
    assert [truth.segments[place].item() for place in ((25, 0), (2, 3), (10, 20), (2, 12), (0, 0))] == [1, 2, 3, 4, 0]


def test_areas_and_boxes_come_from_the_png_where_they_are_not_stated(made: Path) -> None:
    rows = opened(made).ground_truth()["annotations"]
    assert [row["area"] for row in rows] == [400, 56, 40, 7]
    assert rows[3]["bbox"] == [12, 2, 1, 7]
    assert [row["iscrowd"] for row in rows] == [0, 0, 1, 0]


def change(path: Path, pointer: tuple[Any, ...], value: object) -> None:
    document = json.loads(path.read_bytes())
    place: Any = document
    for step in pointer[:-1]:
        place = place[step]
    place[pointer[-1]] = value
    path.write_text(json.dumps(document))


SEGMENT = ("annotations", 0, "segments_info", 0)


@pytest.mark.parametrize(
    ("pointer", "value", "line"),
    [
        (("categories", 0, "isthing"), None, "$.categories[0].isthing: None; expects 1 for things"),
        (("categories", 0, "name"), "wall", "$.categories[1].name: 'wall'"),
        (("categories", 0, "id"), 200, "$.categories[1].id: 200"),
        (("images", 0, "id"), 2, "$.images[1].id: 2"),
        (("images", 0, "file_name"), "../a.jpg", "$.images[0].file_name"),
        (("images", 0, "height"), -3, "$.images[0]: height and width (-3, 40)"),
        (("images", 0, "height"), 31, "$.annotations[0].file_name: a.png has 30 x 40 pixels, its image 31 x 40"),
        (("annotations", 0, "image_id"), 6, "$.annotations[0].image_id: 6; no image"),
        (("annotations", 0, "image_id"), 2, "$.annotations[1].image_id: 2 has two entries"),
        (("annotations", 0, "file_name"), "c.png", "c.png: missing"),
        (("annotations", 0, "file_name"), 4, "$.annotations[0].file_name: 4"),
        (("annotations", 0, "segments_info"), None, "$.annotations[0].segments_info: None"),
        ((*SEGMENT, "id"), 0, ".segments_info[0].id: 0"),
        ((*SEGMENT, "id"), 300, ".segments_info[1].id: 300 is listed twice"),
        ((*SEGMENT, "category_id"), 8, ".segments_info[0].category_id: 8; no category"),
        ((*SEGMENT, "iscrowd"), 2, ".segments_info[0].iscrowd: 2"),
        ((*SEGMENT, "area"), "4", ".segments_info[0].area: '4'"),
        ((*SEGMENT, "bbox"), [1, 2, 3], ".segments_info[0].bbox: [1, 2, 3]"),
        (("annotations",), [], "$.annotations: empty"),
        (("annotations", 1), 4, "$.annotations[1]: 4; expects an object"),
    ],
)
def test_a_fault_has_its_line(made: Path, pointer: tuple[Any, ...], value: object, line: str) -> None:
    change(made, pointer, value)
    with pytest.raises(AnnotationError) as caught:
        opened(made)
    assert line in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff", "[" * 100_000])
def test_a_file_that_is_no_object_is_refused(made: Path, text: str) -> None:
    made.write_bytes(text.encode("latin-1"))
    with pytest.raises(AnnotationError, match=r"not JSON|not UTF-8|nested too deeply|expects an object"):
        opened(made)


def test_a_segment_that_only_the_png_knows_stops_the_reading(made: Path) -> None:
    document = json.loads(made.read_bytes())
    document["annotations"][0]["segments_info"].pop(1)
    document["annotations"][0]["segments_info"].pop()
    made.write_text(json.dumps(document))
    with pytest.raises(AnnotationError, match=r"a\.png: has pixels of segment 300"):
        opened(made)[0]


def test_a_png_that_is_cut_off_is_replaced_like_an_image(made: Path) -> None:
    source = opened(made)
    png = made.parent / "ann" / "a.png"
    png.write_bytes(png.read_bytes()[:-60])
    with pytest.raises(UnreadableError, match=r"a\.png"):
        source[0]


def test_folders_may_be_named(made: Path) -> None:
    for old, new in (("ann", "pngs"), ("images", "photos")):
        (made.parent / old).rename(made.parent / new)
    with pytest.raises(AnnotationError, match="no folder"):
        opened(made)
    source = open_panoptic(
        f"{made}:{made.parent / 'pngs'}:{made.parent / 'photos'}", ImageRules(min_side=17, max_pixels=10**7)
    )
    assert len(source[0].targets) == 3
    with pytest.raises(AnnotationError, match=r"holds a\.jpg; tried"):
        open_panoptic(f"{made}:{made.parent / 'pngs'}", ImageRules(min_side=17, max_pixels=10**7))


def test_real_annotations(real_data: Path) -> None:
    source = opened(real_data / "coco_panoptic" / "annotations" / "panoptic_val.json")
    assert (len(source), len(source.classes), sum(source.is_thing)) == (13, 133, 80)
    rows = source.ground_truth()["annotations"]
    for number, key in enumerate(source.keys):
        mine = [row for row in rows if str(row["image_id"]) == key]
        truth = source.truth(key)
        assert [row["area"] for row in mine] == truth.segments.flatten().bincount()[1:].tolist()
        targets = source[number].targets
        assert targets.masks is not None
        assert len(targets) == sum(not row["iscrowd"] for row in mine)
        boxes = to_absolute(targets.boxes, source[number].original_size)
        boxes[:, 2:] -= boxes[:, :2]
        stated = torch.tensor([row["bbox"] for row in mine if not row["iscrowd"]])
        torch.testing.assert_close(boxes, stated.float(), atol=1e-3, rtol=0)


def test_classes_can_be_counted_in_another_order(real_data: Path) -> None:
    spec = str(real_data / "coco_panoptic" / "annotations" / "panoptic_val.json")
    source = open_panoptic(spec, ImageRules(min_side=17, max_pixels=10**8))
    turned = source.with_classes(source.classes[::-1])
    last = len(source.classes) - 1
    assert turned.is_thing == source.is_thing[::-1]
    ours, theirs = source[0].targets, turned[0].targets
    assert (last - ours.labels).equal(theirs.labels)
    assert (last - source.truth(source.keys[0]).labels).equal(turned.truth(turned.keys[0]).labels)


def test_a_sound_set_is_inspected_to_the_last_pixel(made: Path) -> None:
    inspection = check_data(f"panoptic:{made}")
    assert inspection.sound
    assert (inspection.counts["images"], inspection.counts["boxes"], inspection.counts["crowd regions"]) == (2, 4, 1)
    assert inspection.boxes_per_class == {"cup": 2, "wall": 1}
    change(made, ("annotations", 0, "segments_info", 0, "area"), 399)
    change(made, ("annotations", 1, "segments_info"), [{"id": 9, "category_id": 7}])
    warnings = check_data(f"panoptic:{made}").warnings
    assert "1 segments of another area than stated" in warnings
    assert "1 segments without a pixel in their PNG" in warnings


@pytest.mark.parametrize(
    ("kind", "ids"),
    [(np.uint8, (7, 5, 99, 255)), (np.uint16, (7, 300, 128, 60_000)), (np.uint8, (65_793, 2 * 65_793, 99 * 65_793, 5))],
    ids=["8 bits", "16 bits", "colours saved as grey"],
)
def test_values_of_grey_pngs_are_ids(made: Path, kind: type, ids: tuple[int, ...]) -> None:
    document = json.loads(made.read_text())
    segments = document["annotations"][0]["segments_info"]
    old = np.zeros((30, 40), dtype=np.int64)
    for place, value in (
        ((slice(20, 30), slice(None)), 0),
        ((slice(2, 9), slice(3, 11)), 1),
        ((slice(10, 14), slice(20, 30)), 2),
    ):
        old[place] = ids[value] if ids[value] % 65_793 else ids[value] // 65_793
    for segment, number in zip(segments[:3], ids, strict=False):
        segment["id"] = number
    del segments[3]
    made.write_text(json.dumps(document))
    Image.fromarray(old.astype(kind)).save(made.parent / "ann/a.png")
    inspection = check_data(f"panoptic:{made}")
    assert inspection.sound
    assert not any("segments" in warning for warning in inspection.warnings)
    masks = opened(made)[0].targets.masks
    assert masks is not None
    assert masks.sum(dim=(1, 2)).tolist() == [400, 56]


def test_an_image_with_two_entries_is_one_image(made: Path) -> None:
    document = json.loads(made.read_text())
    document["annotations"].append(document["annotations"][0])
    made.write_text(json.dumps(document))
    inspection = check_data(f"panoptic:{made}")
    assert inspection.problem_count
    assert not any("without annotations" in warning for warning in inspection.warnings)


def test_everything_that_does_not_fit_is_listed_at_once(made: Path) -> None:
    change(made, ("annotations", 0, "segments_info", 3, "category_id"), 8)
    change(made, ("images", 0, "height"), 31)
    (made.parent / "ann/b.png").unlink()
    where = [problem["where"] for problem in check_data(f"panoptic:{made}").problems]
    assert where == [
        "$.annotations[0].segments_info[3].category_id",
        "$.annotations[0].file_name",
        "$.annotations[1].file_name",
        "$.annotations[0]",
    ]


def test_segments_that_only_the_png_has_are_a_problem(made: Path) -> None:
    change(made, ("annotations", 0, "segments_info"), [{"id": 300, "category_id": 7}])
    (problem,) = check_data(f"panoptic:{made}").problems
    assert problem["where"] == "$.annotations[0].segments_info"
    assert problem["what"] == "a.png has segment 301 and 2 more"
