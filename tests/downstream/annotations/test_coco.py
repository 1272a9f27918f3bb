"""Every known way in which a COCO file goes wrong: refused with its place and advice, or put right and counted."""

import copy
import gzip
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from downstream.annotations.coco import open_coco, read_coco
from downstream.annotations.labelled import LabelledImages
from downstream.annotations.labels import ground_truth
from ssldet.data.images import ImageRules
from ssldet.data.sources import open_source
from ssldet.engine.description import describe, stated
from ssldet.errors import AnnotationError
from ssldet.registry import find

Document = dict[str, Any]

CLEAN: Document = {
    "images": [
        {"id": 7, "file_name": "a.png", "height": 40, "width": 60},
        {"id": 3, "file_name": "b.png", "height": 50, "width": 30},
    ],
    "annotations": [
        {"id": 11, "image_id": 3, "category_id": 90, "bbox": [1, 2, 10, 20], "area": 200, "iscrowd": 0},
        {"id": 12, "image_id": 7, "category_id": 1, "bbox": [5.5, 0, 4, 30], "area": 60.5, "iscrowd": 0},
        {"id": 15, "image_id": 7, "category_id": 90, "bbox": [20, 10, 40, 30], "area": 700, "iscrowd": 1},
    ],
    "categories": [{"id": 90, "name": "cup"}, {"id": 1, "name": "cat"}],
}


def write(folder: Path, document: object) -> str:
    (folder / "images").mkdir(exist_ok=True)
    for name, size in (("a.png", (60, 40)), ("b.png", (30, 50))):
        Image.new("RGB", size, (90, 120, 30)).save(folder / "images" / name)
    path = folder / "ann.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return str(path)


def opened(folder: Path, document: object) -> LabelledImages:
    return open_coco(write(folder, document), ImageRules(min_side=17, max_pixels=10**6))


def mutated(change: Callable[[Document], object]) -> Document:
    document = copy.deepcopy(CLEAN)
    change(document)
    return document


def test_a_clean_file_opens(tmp_path: Path) -> None:
    source = opened(tmp_path, CLEAN)
    assert source.classes == ("cup", "cat")
    assert source.category_ids == (90, 1)
    assert source.image_ids == (7, 3)
    assert source.keys == ("7", "3")
    assert source.labels.notes == {"crowd regions, not trained on": 1}
    first, second = source[0], source[1]
    assert first.original_size == (40, 60)
    assert first.targets.labels.tolist() == [1], "the crowd is no target"
    assert first.targets.boxes.tolist()[0] == pytest.approx([7.5 / 60, 15 / 40, 4 / 60, 30 / 40])
    assert second.targets.labels.tolist() == [0]
    assert second.key == "3"


def nan_box(d: Document) -> None:
    d["annotations"][0]["bbox"][2] = float("nan")


def infinite_box(d: Document) -> None:
    d["annotations"][0]["bbox"][0] = float("inf")


def huge_whole_number(d: Document) -> None:
    d["annotations"][0]["bbox"][0] = 10**400


def negative_width(d: Document) -> None:
    d["annotations"][1]["bbox"][2] = -4


def three_numbers(d: Document) -> None:
    d["annotations"][1]["bbox"] = [1, 2, 3]


def text_in_box(d: Document) -> None:
    d["annotations"][1]["bbox"][1] = "2"


def no_box(d: Document) -> None:
    del d["annotations"][2]["bbox"]


def no_annotation_id(d: Document) -> None:
    del d["annotations"][2]["id"]


def annotation_is_a_list(d: Document) -> None:
    d["annotations"][2] = [1, 2]


def duplicate_annotation_id(d: Document) -> None:
    d["annotations"][2]["id"] = 11


def all_ids_zero(d: Document) -> None:
    for row in d["annotations"]:
        row["id"] = 0


def unknown_category(d: Document) -> None:
    d["annotations"][0]["category_id"] = 2


def unknown_image(d: Document) -> None:
    d["annotations"][0]["image_id"] = 4


def image_id_as_text(d: Document) -> None:
    d["annotations"][0]["image_id"] = "3"


def duplicate_image_id(d: Document) -> None:
    d["images"][1]["id"] = 7


def duplicate_file_name(d: Document) -> None:
    d["images"][1]["file_name"] = "./a.png"


def duplicate_category_id(d: Document) -> None:
    d["categories"][1]["id"] = 90


def duplicate_category_name(d: Document) -> None:
    d["categories"][1]["name"] = "cup"


def no_annotations(d: Document) -> None:
    del d["annotations"]


def null_annotations(d: Document) -> None:
    d["annotations"] = None


def no_images(d: Document) -> None:
    d["images"] = []


def no_categories(d: Document) -> None:
    del d["categories"]


def wrong_crowd(d: Document) -> None:
    d["annotations"][0]["iscrowd"] = "yes"


def odd_difficult_flag(d: Document) -> None:
    d["annotations"][0]["difficult"] = 2


def crowd_is_a_list(d: Document) -> None:
    d["annotations"][0]["iscrowd"] = [1]


def text_area(d: Document) -> None:
    d["annotations"][0]["area"] = "200"


def upward_file_name(d: Document) -> None:
    d["images"][0]["file_name"] = "../outside.png"


def absolute_file_name(d: Document) -> None:
    d["images"][0]["file_name"] = "/etc/passwd"


def zero_byte_in_file_name(d: Document) -> None:
    d["images"][0]["file_name"] = "a\0.png"


def no_file_name(d: Document) -> None:
    del d["images"][0]["file_name"]


def missing_image(d: Document) -> None:
    d["images"][0]["file_name"] = "c.png"


def wrong_size(d: Document) -> None:
    d["images"][0]["height"] = 41


def size_before_rotation(d: Document) -> None:
    d["images"][0] |= {"height": 60, "width": 40}


def size_is_text(d: Document) -> None:
    d["images"][0]["width"] = "60"


REFUSED = [
    (nan_box, "$.annotations[0].bbox[2]", "finite"),
    (infinite_box, "$.annotations[0].bbox[0]", "finite"),
    (huge_whole_number, "$.annotations[0].bbox[0]", "finite"),
    (negative_width, "$.annotations[1].bbox[2]: -4", "xywh"),
    (three_numbers, "$.annotations[1].bbox: [1, 2, 3]", "four numbers"),
    (text_in_box, "$.annotations[1].bbox[1]: '2'", "number of pixels"),
    (no_box, "$.annotations[2].bbox: missing", "four numbers"),
    (no_annotation_id, "$.annotations[2].id: missing", "whole number"),
    (annotation_is_a_list, "$.annotations[2]: [1, 2]", "object"),
    (duplicate_annotation_id, "$.annotations[2].id: 11 is also the id of $.annotations[0]", "own id"),
    (all_ids_zero, "$.annotations[1].id: 0", "own id"),
    (unknown_category, "$.annotations[0].category_id: 2", "$.categories"),
    (unknown_image, "$.annotations[0].image_id: 4", "$.images"),
    (image_id_as_text, "image_id: '3' (text, where the annotations have the number 3); no image has this id", "add it"),
    (duplicate_image_id, "$.images[1].id: 7 of b.png is also the id of a.png", "own id"),
    (duplicate_file_name, "$.images[1].file_name: ./a.png is also the file of $.images[0]", "once"),
    (odd_difficult_flag, "$.annotations[0].difficult: 2", "0 or 1"),
    (duplicate_category_id, "$.categories[1].id", "own id"),
    (duplicate_category_name, "$.categories[1].name: 'cup'", "rename"),
    (no_annotations, "$.annotations: missing", "list"),
    (null_annotations, "$.annotations: None", "list"),
    (no_images, "$.images: empty", "at least one"),
    (no_categories, "$.categories: missing", "list"),
    (wrong_crowd, "$.annotations[0].iscrowd: 'yes'", "0 or 1"),
    (crowd_is_a_list, "$.annotations[0].iscrowd: [1]", "0 or 1"),
    (text_area, "$.annotations[0].area: '200'", "leave it out"),
    (upward_file_name, "$.images[0].file_name", "under the image folder"),
    (absolute_file_name, "$.images[0].file_name", "under the image folder"),
    (zero_byte_in_file_name, "$.images[0].file_name", "under the image folder"),
    (no_file_name, "$.images[0].file_name: missing", "file name"),
    (missing_image, "$.images[0]: ", "restore"),
    (wrong_size, "$.images[0]: states 41 x 60", "original files"),
    (size_before_rotation, "$.images[0]: states 60 x 40", "EXIF"),
    (size_is_text, "$.images[0].width: '60'", "number of pixels"),
]


@pytest.mark.parametrize(("change", "place", "advice"), REFUSED, ids=lambda value: getattr(value, "__name__", ""))
def test_a_fault_is_refused(tmp_path: Path, change: Callable[[Document], object], place: str, advice: str) -> None:
    path = write(tmp_path, mutated(change))
    with pytest.raises(AnnotationError) as caught:
        open_coco(f"{path}:{tmp_path / 'images'}", ImageRules(min_side=17, max_pixels=10**6))
    message = str(caught.value)
    assert place in message
    assert advice in message
    assert caught.value.exit_code == 3


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    def spoil(d: Document) -> None:
        for change in (nan_box, negative_width, no_annotation_id, duplicate_image_id, duplicate_category_name):
            change(d)

    with pytest.raises(AnnotationError) as caught:
        opened(tmp_path, mutated(spoil))
    lines = str(caught.value).splitlines()
    assert "problems" in lines[0]
    for place in (
        "annotations[0].bbox[2]",
        "annotations[1].bbox[2]",
        "annotations[2].id",
        "images[1]",
        "categories[1]",
    ):
        assert any(place in line for line in lines), place


def test_many_missing_images_are_counted(tmp_path: Path) -> None:
    def lose(d: Document) -> None:
        d["images"] += [{"id": 100 + n, "file_name": f"{n}.png"} for n in range(25)]

    with pytest.raises(AnnotationError, match="and 15 more of this kind") as caught:
        opened(tmp_path, mutated(lose))
    assert "25 problems" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 12


def zero_area(d: Document) -> None:
    d["annotations"][0]["bbox"][2] = 0


def wholly_outside(d: Document) -> None:
    d["annotations"][0]["bbox"][0] = 30


def cut(d: Document) -> None:
    d["annotations"][0]["bbox"][2] = 99


def without_area(d: Document) -> None:
    del d["annotations"][0]["area"]


def area_not_a_number(d: Document) -> None:
    d["annotations"][0]["area"] = float("nan")


def area_of_zero(d: Document) -> None:
    d["annotations"][0]["area"] = 0


def without_crowd_flag(d: Document) -> None:
    del d["annotations"][0]["iscrowd"]


MENDED = [
    (zero_area, "boxes without area dropped", 1),
    (wholly_outside, "boxes wholly outside their image dropped", 1),
    (cut, "boxes cut at the border", 2),
    (without_area, "areas taken from the box", 2),
    (area_not_a_number, "areas taken from the box", 2),
    (area_of_zero, "areas taken from the box", 2),
    (without_crowd_flag, "iscrowd taken as 0", 2),
]


@pytest.mark.parametrize(("change", "note", "left"), MENDED, ids=lambda value: getattr(value, "__name__", ""))
def test_a_small_fault_is_mended_and_counted(
    tmp_path: Path, change: Callable[[Document], object], note: str, left: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    source = opened(tmp_path, mutated(change))
    assert source.labels.notes[note] == 1
    assert f"1 {note}" in caplog.text
    truth = [row for row in source.ground_truth()["annotations"] if not row["iscrowd"]]
    assert len(truth) == left
    assert all(row["area"] > 0 for row in truth)
    targets = [source[number].targets for number in range(2)]
    assert sum(map(len, targets)) == left
    for entry in targets:
        corners = entry.boxes[:, :2] - entry.boxes[:, 2:] / 2, entry.boxes[:, :2] + entry.boxes[:, 2:] / 2
        assert bool((corners[0] >= -1e-6).all())
        assert bool((corners[1] <= 1 + 1e-6).all())


def test_ids_from_zero_are_renumbered(tmp_path: Path) -> None:
    def count_from_zero(d: Document) -> None:
        for number, row in enumerate(d["annotations"]):
            row["id"] = number

    truth = opened(tmp_path, mutated(count_from_zero)).ground_truth()["annotations"]
    assert [row["id"] for row in truth] == [1, 2, 3]


def test_an_image_with_only_a_crowd_stays_without_targets(tmp_path: Path) -> None:
    def only_crowd(d: Document) -> None:
        d["annotations"][0]["iscrowd"] = 1

    source = opened(tmp_path, mutated(only_crowd))
    assert len(source) == 2
    assert len(source[1].targets) == 0
    assert tuple(source[1].targets.boxes.shape) == (0, 4)


def test_corners_in_the_place_of_sizes_are_suspected(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def corners(d: Document) -> None:
        for row in d["annotations"]:
            x, y, width, height = row["bbox"]
            row["bbox"] = [x, y, x + width + 20, y + height + 20]

    opened(tmp_path, mutated(corners))
    assert "instead of xywh" in caplog.text


def test_sizes_may_be_left_out(tmp_path: Path) -> None:
    def forget(d: Document) -> None:
        for image in d["images"]:
            del image["height"], image["width"]

    source = opened(tmp_path, mutated(forget))
    assert source.labels.sizes.tolist() == [[40, 60], [50, 30]]


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_sizes_are_those_of_the_upright_image(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path, mutated(lambda d: d["images"][0].update(file_name=f"turned.{ending}")))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 60)).save(tmp_path / "images" / f"turned.{ending}", exif=exif)
    source = open_coco(f"{path}:{tmp_path / 'images'}", ImageRules(min_side=17, max_pixels=10**6))
    assert source[0].original_size == (40, 60)
    Image.new("RGB", (60, 40)).save(tmp_path / "images" / f"turned.{ending}", exif=exif)
    with pytest.raises(AnnotationError, match="EXIF"):
        open_coco(f"{path}:{tmp_path / 'images'}", ImageRules(min_side=17, max_pixels=10**6))


def test_a_damaged_image_is_skipped_with_its_labels(tmp_path: Path) -> None:
    path = write(tmp_path, CLEAN)
    (tmp_path / "images" / "a.png").write_text("<html>not found</html>")
    source = open_coco(path, ImageRules(min_side=17, max_pixels=10**6))
    assert source.image_ids == (3,)
    assert [Path(entry.path).name for entry in source.skipped] == ["a.png"]
    assert [row["image_id"] for row in source.ground_truth()["annotations"]] == [7, 7, 3], "they count as missed"
    assert source[0].targets.labels.tolist() == [0]


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("", "is empty"),
        ("{", "line 1 column 2"),
        ('{"images": [],}', "offset"),
        ("[" * 200_000, "nested too deeply"),
        ('{"images": ' + "9" * 5000 + "}", "number"),
        ("[1, 2]", "expects an object"),
    ],
    ids=["empty", "cut", "trailing comma", "deep", "long number", "list"],
)
def test_a_file_that_is_not_json_names_the_place(tmp_path: Path, text: str, advice: str) -> None:
    with pytest.raises(AnnotationError, match=advice):
        read_coco(Path(write(tmp_path, text)))


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = Path(write(tmp_path, CLEAN))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_coco(path)) == 2


def test_a_number_beyond_doubles_is_refused(tmp_path: Path) -> None:
    text = json.dumps(CLEAN).replace("[1, 2, 10, 20]", "[1, 2, 1e999, 20]")
    with pytest.raises(AnnotationError, match=r"annotations\[0\].bbox\[2\]: inf"):
        read_coco(Path(write(tmp_path, text)))


def test_text_of_another_encoding_is_refused(tmp_path: Path) -> None:
    path = Path(write(tmp_path, CLEAN))
    path.write_bytes(path.read_bytes().replace(b"cat", b"c\xe4t"))
    with pytest.raises(AnnotationError, match="UTF-8"):
        read_coco(path)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="No such file"):
        open_coco(str(tmp_path / "no.json"), ImageRules(min_side=17, max_pixels=10**6))


def test_an_absent_folder_lists_what_was_tried(tmp_path: Path) -> None:
    path = tmp_path / "elsewhere" / "ann.json"
    path.parent.mkdir()
    path.write_text(json.dumps(CLEAN))
    with pytest.raises(AnnotationError, match=r"tried .*; add :IMAGES"):
        open_coco(str(path), ImageRules(min_side=17, max_pixels=10**6))


def test_no_file_outside_the_folder_is_opened(tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    Image.new("RGB", (60, 40)).save(outside)
    touched: list[str] = []
    watching = [True]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open":
            touched.append(str(arguments[0]))

    path = write(tmp_path, mutated(upward_file_name))
    sys.addaudithook(watch)  # stays for the life of the process, so it is emptied below
    try:
        with pytest.raises(AnnotationError):
            open_coco(f"{path}:{tmp_path / 'images'}", ImageRules(min_side=17, max_pixels=10**6))
    finally:
        watching.clear()
    assert path in touched
    assert not any(os.path.realpath(name) == str(outside) for name in touched)


def test_the_fingerprint_follows_the_boxes(tmp_path: Path) -> None:
    clean = opened(tmp_path, CLEAN).fingerprint
    assert opened(tmp_path, CLEAN).fingerprint == clean
    assert opened(tmp_path, mutated(cut)).fingerprint != clean


def test_classes_can_be_counted_in_another_order(tmp_path: Path) -> None:
    spec = f"coco:{write(tmp_path, CLEAN)}"
    source = open_source([spec], ImageRules(min_side=17, max_pixels=10**6))
    turned = open_source([spec], ImageRules(min_side=17, max_pixels=10**6), classes=("cat", "cup"))
    assert isinstance(source, LabelledImages)
    assert isinstance(turned, LabelledImages)
    assert (turned.classes, turned.category_ids) == (("cat", "cup"), (1, 90))
    assert turned.ground_truth()["annotations"] == source.ground_truth()["annotations"]
    assert [1 - source[number].targets.labels for number in (0, 1)] == [turned[n].targets.labels for n in (0, 1)]
    assert turned.fingerprint != source.fingerprint
    other = open_source([spec], ImageRules(min_side=17, max_pixels=10**6), classes=("cat", "dog"))
    assert other.classes == source.classes, "other names are not translated"


def test_sets_that_name_their_classes_in_another_order_are_joined(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, change in ((first, lambda d: None), (second, lambda d: d["categories"].reverse())):
        folder.mkdir()
        write(folder, mutated(change))
    specs = [f"coco:{folder / 'ann.json'}:{folder / 'images'}" for folder in (first, second)]
    both = open_source(specs, ImageRules(min_side=17, max_pixels=10**6))
    assert both.classes == ("cup", "cat")
    assert both[2].targets.labels.tolist() == both[0].targets.labels.tolist() == [1]
    run = find("ssldet.recipes", "detection/tiny")()
    assert describe(run, stated(both), 1)["category_ids"] == [90, 1], "what predictions are written with"


def test_the_folder_is_found_although_its_first_image_is_missing(tmp_path: Path) -> None:
    path = write(tmp_path, CLEAN)
    (tmp_path / "images" / "a.png").unlink()
    with pytest.raises(AnnotationError, match=r"\$\.images\[0\]: .*a\.png is missing"):
        open_coco(path, ImageRules(min_side=17, max_pixels=10**6))
    with pytest.raises(AnnotationError, match="no such folder of images"):
        open_coco(f"{path}:{tmp_path / 'imgs'}", ImageRules(min_side=17, max_pixels=10**6))


def test_the_official_layout_is_found(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    Image.new("RGB", (60, 40)).save(tmp_path / "val2017" / "a.png")
    document = CLEAN | {"images": CLEAN["images"][:1], "annotations": CLEAN["annotations"][1:]}
    path = tmp_path / "annotations" / "instances_val2017.json"
    path.write_text(json.dumps(document))
    assert len(open_coco(str(path), ImageRules(min_side=17, max_pixels=10**6))) == 1


boxes = st.tuples(*[st.floats(0, 29, width=32)] * 2, *[st.floats(0.5, 30, width=32)] * 2)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(st.sampled_from([7, 3]), st.sampled_from([90, 1]), boxes, st.booleans()), max_size=12))
def test_what_is_read_is_what_was_written(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    annotations = [
        {"id": n, "image_id": image, "category_id": category, "bbox": list(box), "area": 3.5, "iscrowd": int(crowd)}
        for n, (image, category, box, crowd) in enumerate(rows)
    ]
    path = tmp_path_factory.mktemp("round") / "ann.json"
    path.write_text(json.dumps(CLEAN | {"annotations": annotations}))
    truth = ground_truth(read_coco(path))
    path.write_text(json.dumps(truth))
    assert ground_truth(read_coco(path)) == truth
    expected = sorted(annotations, key=lambda row: [7, 3].index(row["image_id"]))
    names = ("image_id", "category_id", "bbox", "area", "iscrowd")
    assert [[row[name] for name in names] for row in truth["annotations"]] == [
        [row[name] for name in names] for row in expected
    ]


def test_a_real_set_opens_with_the_counts_of_its_readme(real_data: Path) -> None:
    for split, images, boxes_, used in (("train", 53, 519, 71), ("val", 50, 539, 66)):
        path = real_data / "coco_tiny" / "annotations" / f"instances_{split}.json"
        source = open_coco(str(path), ImageRules(min_side=17, max_pixels=10**8))
        assert (len(source), len(source.labels.boxes), int(source.labels.crowd.sum())) == (images, boxes_, 6)
        assert len(source.classes) == 80
        assert max(source.category_ids) == 90
        assert len(np.unique(source.labels.labels)) == used
        assert source.skipped == ()
        targets = [source[number].targets for number in range(len(source))]
        assert sum(map(len, targets)) == boxes_ - 6


@pytest.mark.slow
def test_a_large_file_is_read_in_little_more_than_the_time_of_parsing_it(tmp_path: Path) -> None:
    count = 100_000
    annotations = [
        {"id": n, "image_id": n // 7, "category_id": 1, "bbox": [1.5, 2.5, 3.25, 4.75], "area": 9.5, "iscrowd": 0}
        for n in range(count)
    ]
    images = [{"id": n, "file_name": f"{n}.jpg", "height": 9, "width": 9} for n in range(count // 7 + 1)]
    path = tmp_path / "ann.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": CLEAN["categories"]}))
    # In a process of its own, because the shape checks of the tests cost more than the reading.
    code = (
        "import json, resource, sys, time; from pathlib import Path\n"
        "from downstream.annotations.coco import read_coco\n"
        "path, peak = Path(sys.argv[1]), lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "start, low = time.process_time(), peak(); document = json.loads(path.read_bytes())\n"
        "parsed, middle = time.process_time(), peak(); del document; labels = read_coco(path)\n"
        "arrays = (labels.boxes, labels.labels, labels.areas, labels.crowd, labels.difficult, labels.first)\n"
        "print(json.dumps([len(labels.boxes), sum(a.nbytes for a in arrays), parsed - start,"
        " time.process_time() - parsed, peak() - low, middle - low]))"
    )
    command = [sys.executable, "-c", code, str(path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=250, cwd=Path.cwd())
    rows, stored, parse_seconds, read_seconds, peak, parse_peak = json.loads(answer.stdout)
    assert rows == count
    assert stored < 60 * count
    assert read_seconds < 20 * parse_seconds + 1
    assert peak < 2 * parse_peak + 50_000


def test_ids_of_annotations_may_be_text_and_must_differ(tmp_path: Path) -> None:
    document = mutated(lambda d: [row.update(id=f"u-{n}") for n, row in enumerate(d["annotations"])])
    assert len(opened(tmp_path, document).labels.boxes) == 3
    document["annotations"][2]["id"] = "u-0"
    with pytest.raises(AnnotationError, match=r"annotations\[2\]\.id: 'u-0' is also the id of \$\.annotations\[0\]"):
        opened(tmp_path, document)


def test_backslashes_in_file_names_are_folders(tmp_path: Path) -> None:
    document = mutated(lambda d: [row.update(file_name=f"images\\{row['file_name']}") for row in d["images"]])
    source = opened(tmp_path, document)
    assert source.path_of(0) == tmp_path / "images/a.png"
    assert source.labels.notes["file names with backslashes, read as folders"] == 2


@pytest.mark.parametrize("owner", ["categories", "images"])
def test_a_refused_record_is_told_once(tmp_path: Path, owner: str) -> None:
    for broken in ({"id": "90" if owner == "categories" else "7"}, {"name": None, "file_name": None}):
        document = mutated(lambda d, broken=broken: d[owner][0].update(broken))
        for row in document["annotations"]:
            row["category_id" if owner == "categories" else "image_id"] = document[owner][0]["id"]
        with pytest.raises(AnnotationError, match=r"1 problem\n.*\$\.(categories|images)\[0\]"):
            opened(tmp_path, document)


def test_boxes_stored_as_fractions_are_suspected(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    document = mutated(lambda d: [row.update(bbox=[0.25, 0.5, 0.5, 0.25]) for row in d["annotations"]])
    with caplog.at_level(logging.WARNING):
        opened(tmp_path, document)
        assert "fractions of their image" in caplog.text
        caplog.clear()
        opened(tmp_path, CLEAN)
        assert "fractions" not in caplog.text


def test_exchanged_sides_are_told_with_the_cause_that_fits_the_file(tmp_path: Path) -> None:
    document = mutated(lambda d: [row.update(height=row["width"], width=row["height"]) for row in d["images"]])
    with pytest.raises(AnnotationError) as caught:
        opened(tmp_path, document)
    assert "exchange them in the annotations" in str(caught.value)
    assert "label it again" not in str(caught.value)


def with_text_ids(document: Document) -> None:
    for record in document["images"]:
        record["id"] = f"scan-{record['id']}"
    for record in document["annotations"]:
        record["image_id"] = f"scan-{record['image_id']}"


def test_ids_of_images_may_be_text(tmp_path: Path) -> None:
    source = opened(tmp_path, mutated(with_text_ids))
    assert source.image_ids == ("scan-7", "scan-3")
    assert len(source[0].targets) == 1
    assert {row["image_id"] for row in source.ground_truth()["annotations"]} == {"scan-7", "scan-3"}


def test_ids_of_images_that_differ_by_quotes_are_refused(tmp_path: Path) -> None:
    def quote(document: Document) -> None:
        document["images"][1]["id"] = "3"

    with pytest.raises(AnnotationError) as caught:
        opened(tmp_path, mutated(quote))
    said = str(caught.value)
    assert "$.images[1].id: '3', where those of other images are whole numbers; write" in said
    assert (
        "$.annotations[0].image_id: 3 (a number, where the annotations have the text '3'); no image has this id" in said
    )


def test_one_id_with_decimals_is_told_once(tmp_path: Path) -> None:
    def decimal(document: Document) -> None:
        document["images"][1]["id"] = 3.0

    with pytest.raises(AnnotationError, match=r"1 problem\n  \$\.images\[1\]\.id: 3\.0; expects a whole number"):
        opened(tmp_path, mutated(decimal))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "ann.json: is empty; expects an object"),
        (json.dumps(CLEAN)[:90], "is it cut off?"),
        (json.dumps(CLEAN) + "\n{}", "are these several files joined into one?"),
        (json.dumps(CLEAN).replace('"images"', "images"), "enclosed in double quotes; expects an object"),
    ],
)
def test_what_is_no_json_says_what_may_have_happened(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(AnnotationError) as caught:
        opened(tmp_path, text)
    assert said in str(caught.value)


def test_a_name_of_spaces_is_no_name_of_a_class(tmp_path: Path) -> None:
    def blank(document: Document) -> None:
        document["categories"][0]["name"] = "  "
        del document["categories"][1]["name"]

    with pytest.raises(AnnotationError) as caught:
        opened(tmp_path, mutated(blank))
    assert "$.categories[0].name: '  '; expects the name" in str(caught.value)
    assert "$.categories[1].name: missing; expects the name" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(b"{}", mtime=0), r"is gzip-compressed; gunzip it"),
        (b"\x89PNG\r\n\x1a\n", r"is a PNG picture; expects an object with images"),
        (b"PK\3\4", r"is a zip archive; unzip it"),
    ],
)
def test_what_is_no_text_is_called_what_it_is(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "ann.json").write_bytes(content)
    with pytest.raises(AnnotationError, match=said):
        open_coco(f"{tmp_path / 'ann.json'}:{tmp_path}", ImageRules())
