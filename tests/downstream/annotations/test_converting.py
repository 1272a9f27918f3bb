"""Conversion: what is read back is what was there, and nothing is ever overwritten."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from downstream.annotations.labelled import LabelledImages
from downstream.annotations.shapes import write_shapes
from downstream.annotations.voc import open_voc
from downstream.annotations.yolo import open_yolo
from downstream.metrics.average_precision import box_ap
from ssldet.data.images import ImageRules
from ssldet.data.sources import open_source
from ssldet.errors import AnnotationError, ConfigError, DataError
from ssldet.verbs import convert_data

RULES = ImageRules(min_side=17, max_pixels=10**6)
OBJECT = (
    "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>5</ymin><xmax>30</xmax>"
    "<ymax>34</ymax></bndbox></object>"
)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (tmp_path / "voc" / name).mkdir(parents=True)
    objects = {"a": [("dog", 0, 11), ("cat", 1, 2)], "b": [], "c": [("cat", 0, 7)]}
    for stem, rows in objects.items():
        Image.new("RGB", (60, 40)).save(tmp_path / "voc" / "JPEGImages" / f"{stem}.png")
        text = "".join(OBJECT.format(*row) for row in rows)
        (tmp_path / "voc" / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{text}</annotation>")
    (tmp_path / "voc" / "ImageSets/Main/trainval.txt").write_text("a\nb\nc\n")
    return tmp_path / "voc"


def same(first: LabelledImages, second: LabelledImages) -> None:
    assert (first.classes, first.category_ids, len(first)) == (second.classes, second.category_ids, len(second))
    assert np.array_equal(first.labels.difficult, second.labels.difficult)
    assert np.array_equal(first.labels.crowd, second.labels.crowd)
    for number in range(len(first)):
        ours, theirs = first[number], second[number]
        assert ours.targets.boxes.equal(theirs.targets.boxes)
        assert ours.targets.labels.equal(theirs.targets.labels)
        assert ours.image.equal(theirs.image)


def test_voc_becomes_coco_with_equal_targets_and_equal_scores(voc: Path, tmp_path: Path) -> None:
    source = open_voc(str(voc), RULES)
    written = convert_data(f"voc:{voc}", to="coco", out=tmp_path / "new" / "ann.json")
    again = open_source([written.to_json()["spec"]], RULES)
    assert isinstance(again, LabelledImages)
    same(source, again)
    scores = []
    for one in (source, again):
        truth = one.ground_truth()
        # The difficult cat is found twice and the other one missed: whoever forgets the flag scores otherwise.
        found = [row | {"score": 0.9} for row in truth["annotations"] if row["image_id"] == one.image_ids[0]]
        found += [row | {"score": 0.95} for row in found]
        keys = ("image_id", "category_id", "bbox", "score")
        scores.append(box_ap(truth, [{key: row[key] for key in keys} for row in found]))
    assert scores[0] == scores[1]
    plain = again.ground_truth()
    for row in plain["annotations"]:
        row["difficult"] = 0
    rows = [{key: row[key] for key in keys} for row in found]
    assert box_ap(plain, rows) != scores[1]


def test_yolo_becomes_coco_with_its_masks(tmp_path: Path) -> None:
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("1 0.1 0.1 0.4 0.1 0.4 0.5\n")
    (tmp_path / "data.yaml").write_text("train: a.png\nnames: [cup, cat]")
    source = open_yolo(str(tmp_path), RULES, masks=True)
    written = convert_data(f"yolo:{tmp_path}", to="coco", out=tmp_path / "ann.json")
    again = open_source([written.to_json()["spec"]], RULES, masks=True)
    assert isinstance(again, LabelledImages)
    same(source, again)
    masks = (source[0].targets.masks, again[0].targets.masks)
    assert masks[0] is not None
    assert masks[1] is not None
    assert masks[0].any()
    assert masks[0].equal(masks[1])


def test_masks_are_converted_where_every_object_has_one(tmp_path: Path) -> None:
    labels = write_shapes(tmp_path / "scenes", images=3, seed=1)
    spec = f"coco:{labels}:{tmp_path / 'scenes' / 'images'}"
    convert_data(spec, to="coco", out=tmp_path / "again.json")
    again = open_source([f"coco:{tmp_path / 'again.json'}:{tmp_path / 'scenes' / 'images'}"], RULES, masks=True)
    for number, sample in enumerate(again[place] for place in range(3)):
        masks = open_source([spec], RULES, masks=True)[number].targets.masks
        assert masks is not None
        assert sample.targets.masks is not None
        assert sample.targets.masks.equal(masks)


def converted(spec: str, out: Path) -> tuple[dict[str, int], list[dict[str, Any]]]:
    report = convert_data(spec, to="coco", out=out)
    return report.to_json()["counts"], json.loads(out.read_text())["annotations"]


@pytest.mark.parametrize("faulty", [[[1, 1, 5, 5]], None, "polygon", {"size": [3, 3], "counts": [9]}])
def test_one_faulty_mask_costs_no_other(tmp_path: Path, faulty: object, caplog: pytest.LogCaptureFixture) -> None:
    path = write_shapes(tmp_path / "scenes", images=3, objects=(1, 3), seed=1)
    document = json.loads(path.read_text())
    document["annotations"][1]["segmentation"] = faulty
    path.write_text(json.dumps(document))
    counts, rows = converted(f"coco:{path}:{path.parent / 'images'}", tmp_path / "again.json")
    whole = len(document["annotations"])
    assert (counts["masks"], counts["masks left out"]) == (whole - 1, 1)
    assert [row.get("segmentation") for row in rows] == [
        None if row is document["annotations"][1] else row["segmentation"] for row in document["annotations"]
    ]
    assert f"masks left out: 1 of {whole}; for one, $.annotations[1].segmentation" in caplog.text


def test_a_set_without_masks_is_converted_without_a_word_of_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_shapes(tmp_path / "scenes", images=2, objects=(1, 3), seed=1)
    document = json.loads(path.read_text())
    for row in document["annotations"]:
        row["segmentation"] = []
    path.write_text(json.dumps(document))
    counts, rows = converted(f"coco:{path}:{path.parent / 'images'}", tmp_path / "again.json")
    assert not any("mask" in what for what in counts)
    assert not any("segmentation" in row for row in rows)
    assert "mask" not in caplog.text


def test_a_box_among_polygons_costs_no_mask(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("1 0.1 0.1 0.4 0.1 0.4 0.5\n0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "data.yaml").write_text("train: a.png\nnames: [cup, cat]")
    counts, rows = converted(f"yolo:{tmp_path}", tmp_path / "ann.json")
    assert (counts["masks"], counts["masks left out"]) == (1, 1)
    assert ["segmentation" in row for row in rows] == [True, False]
    assert "masks left out: 1 of 2; for one, a.txt:2: a box" in caplog.text


def test_segments_are_written_as_masks_and_stuff_is_said(tmp_path: Path) -> None:
    path = write_shapes(tmp_path / "scenes", images=2, objects=(1, 3), stuff=True, seed=1).with_name("panoptic.json")
    for sized in (True, False):
        document = json.loads(path.read_text())
        for image in document["images"] if not sized else ():
            del image["height"], image["width"]
        path.write_text(json.dumps(document))
        out = tmp_path / f"{sized}.json"
        counts, rows = converted(f"panoptic:{path}", out)
        is_thing = {row["id"]: row["isthing"] for row in document["categories"]}
        segments = [segment for entry in document["annotations"] for segment in entry["segments_info"]]
        stuff = sum(not is_thing[segment["category_id"]] for segment in segments)
        assert counts["pieces of stuff written as objects"] == stuff > 0
        assert counts["masks"] == len(rows) == len(segments)
        source = open_source([f"panoptic:{path}"], RULES, masks=True)
        again = open_source([f"coco:{out}:{path.parent / 'images'}"], RULES, masks=True)
        for number in range(2):
            ours, theirs = source[number].targets.masks, again[number].targets.masks
            assert ours is not None
            assert theirs is not None
            assert sorted(ours.flatten(1).tolist()) == sorted(theirs.flatten(1).tolist())


def test_a_box_outside_its_image_is_named_and_left_out(voc: Path, tmp_path: Path) -> None:
    file = voc / "Annotations" / "c.xml"
    file.write_text(file.read_text().replace("<xmin>7<", "<xmin>101<").replace("<xmax>30<", "<xmax>120<"))
    report = convert_data(f"voc:{voc}", to="coco", out=tmp_path / "ann.json")
    assert report.to_json()["counts"]["boxes wholly outside their image dropped"] == 1


def test_what_is_left_out_is_said(voc: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (voc / "JPEGImages" / "a.png").write_bytes(b"")
    written = convert_data(f"voc:{voc}", to="coco", out=tmp_path / "ann.json")
    assert "2 images, 1 boxes, 20 classes, 1 images left out, 2 boxes left out" in str(written)
    assert "1 image can't be read" in caplog.text


def test_nothing_is_overwritten_and_nothing_half_written_stays(voc: Path, tmp_path: Path) -> None:
    out = tmp_path / "ann.json"
    out.write_text("mine")
    with pytest.raises(ConfigError, match="exists and is not overwritten"):
        convert_data(f"voc:{voc}", to="coco", out=out)
    assert out.read_text() == "mine"
    before = sorted(tmp_path.iterdir())
    (voc / "Annotations/a.xml").write_text("<annotation>")
    with pytest.raises(AnnotationError):
        convert_data(f"voc:{voc}", to="coco", out=tmp_path / "other.json")
    with pytest.raises(ConfigError, match="did you mean 'coco'"):
        convert_data(f"voc:{voc}", to="cocoo", out=tmp_path / "other.json")
    with pytest.raises(DataError, match="labelled set"):
        convert_data(str(voc / "JPEGImages"), to="coco", out=tmp_path / "other.json")
    assert sorted(tmp_path.iterdir()) == before


def test_a_real_set_is_converted(real_data: Path, tmp_path: Path) -> None:
    spec = f"voc:{real_data / 'cards_voc'}:val"
    written = convert_data(spec, to="coco", out=tmp_path / "ann.json")
    again = open_source([written.to_json()["spec"]], RULES)
    source = open_source([spec], RULES)
    assert isinstance(again, LabelledImages)
    assert isinstance(source, LabelledImages)
    same(source, again)
