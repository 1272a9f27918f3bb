"""Inspection: every problem with place and remedy, counts of what is sound, and one exit code."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from downstream.annotations.labelled import LabelledImages
from downstream.metrics.predictions import score_predictions
from ssldet import cli
from ssldet.data.images import ImageRules
from ssldet.data.inspection import Inspection
from ssldet.data.sources import open_source
from ssldet.verbs import check_data

BOX = {"image_id": 1, "category_id": 3, "bbox": [1, 2, 10, 12], "area": 120, "iscrowd": 0}


def write(
    folder: Path, *rows: dict[str, Any], names: tuple[str, ...] = ("a.png", "b.png", "c.png"), sized: bool = True
) -> str:
    for name in names:
        Image.new("RGB", (60, 40)).save(folder / name)
    size = {"height": 40, "width": 60} if sized else {}
    images = [{"id": n, "file_name": name, **size} for n, name in enumerate(names, start=1)]
    annotations = [{"id": n, **BOX, **row} for n, row in enumerate(rows, start=1)]
    categories = [{"id": 3, "name": "cup"}, {"id": 9, "name": "cat"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "ann.json").write_text(json.dumps(document))
    return f"coco:{folder / 'ann.json'}:{folder}"


def test_a_sound_set_is_counted(tmp_path: Path) -> None:
    inspection = check_data(write(tmp_path, {}, {"iscrowd": 1}, {"image_id": 2, "difficult": 1}))
    assert inspection.sound
    assert inspection.counts == {
        "images": 3,
        "images without objects": 1,
        "boxes": 3,
        "crowd regions": 1,
        "difficult objects": 1,
        "classes": 2,
    }
    assert inspection.boxes_per_class == {"cup": 2, "cat": 0}
    assert inspection.object_sizes is not None
    assert inspection.object_sizes.images.tolist() == [[40, 60]] * 2, "a crowd region is no object"
    assert inspection.small_objects.keys() == {"detection/small"}
    large = check_data(inspection.spec, recipe="detection/r50")
    assert large.small_objects.keys() == {"detection/r50"}
    assert "1 of 2 classes have no box: cat" in inspection.warnings
    assert "no problems" in str(inspection)


def test_every_problem_of_labels_and_images_is_listed_and_the_rest_counted(tmp_path: Path) -> None:
    rows = [{"bbox": [1, 2, -3, 4]}] * 14 + [{"category_id": 4}, {}]
    spec = write(tmp_path, *rows)
    (tmp_path / "b.png").unlink()
    (tmp_path / "c.png").write_text("no image")
    inspection = check_data(spec)
    assert (inspection.problem_count, len(inspection.problems)) == (16, 16)
    places = [problem["where"] for problem in inspection.problems]
    assert places == [f"$.annotations[{n}].bbox[2]" for n in range(14)] + [
        "$.annotations[14].category_id",
        "$.images[1]",
    ]
    assert all(problem["remedy"] for problem in inspection.problems)
    assert [Path(entry.path).name for entry in inspection.skipped] == ["c.png"]
    assert inspection.counts["boxes"] == 1
    assert str(inspection).count("  error  ") == 16


def test_the_command_ends_with_the_code_of_data_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["data", "check", write(tmp_path, {"category_id": 4}), "--json"])
    assert caught.value.code == 3
    document = json.loads(capsys.readouterr().out)
    assert not document["sound"]
    assert document["problems"][0]["where"] == "$.annotations[0].category_id"
    cli.main(["data", "check", write(tmp_path, {"bbox": [0, 0, 0, 5]})])
    assert "1 boxes without area dropped" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["coco", "voc", "yolo"])
def test_what_is_not_there_at_all_is_a_problem_too(tmp_path: Path, form: str) -> None:
    inspection = check_data(f"{form}:{tmp_path / 'nowhere'}")
    assert not inspection.sound
    assert "nowhere" in str(inspection)


def test_a_set_of_unusable_images_is_not_sound(tmp_path: Path) -> None:
    spec = write(tmp_path, {}, names=("a.png",))
    (tmp_path / "a.png").write_bytes(b"")
    assert "none of 1 images can be used (empty 1)" in str(check_data(spec))


def test_images_without_labels_are_inspected_too(tmp_path: Path) -> None:
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    inspection = check_data(str(tmp_path))
    assert isinstance(inspection, Inspection)
    assert inspection.counts == {"images": 1}
    assert len(inspection.skipped) == 1
    assert not check_data(str(tmp_path / "nowhere")).sound


def test_boxes_that_stand_twice_and_names_taken_for_one_are_warned_of(tmp_path: Path) -> None:
    spec = write(tmp_path, {}, {}, {"category_id": 9}, {"image_id": 2}, {"bbox": [1, 2, 10, 11]}, {"iscrowd": 1})
    document = json.loads((tmp_path / "ann.json").read_text())
    document["categories"] = [{"id": 3, "name": "Cup "}, {"id": 9, "name": "cup"}]
    (tmp_path / "ann.json").write_text(json.dumps(document))
    inspection = check_data(spec)
    assert inspection.sound
    said = "\n".join(inspection.warnings)
    assert "1 box repeats another one of the same image and class exactly" in said
    assert "'Cup ' and 'cup' are different classes" in said


@pytest.mark.parametrize("form", ["coco", "yolo"])
def test_what_names_no_class_is_told_once_and_not_by_every_box(tmp_path: Path, form: str) -> None:
    spec = write(tmp_path, {}, {})
    document = json.loads((tmp_path / "ann.json").read_text())
    (tmp_path / "ann.json").write_text(json.dumps(document | {"categories": {"3": "cup"}}))
    if form == "yolo":
        (tmp_path / "data.yaml").write_text("train: .\nnames: cup, cat\n")
        (tmp_path / "a.txt").write_text("0 .5 .5 .1 .1\n1 .5 .5 .2 .2\n")
        spec = f"yolo:{tmp_path}"
    assert check_data(spec).problem_count == 1


def test_a_path_that_is_not_there_is_told_with_the_one_that_is_meant(tmp_path: Path) -> None:
    write(tmp_path, {})
    (tmp_path / "pictures").mkdir()
    for spec, meant in {
        f"coco:{tmp_path}/anm.json:{tmp_path}": "ann.json",
        f"coco:{tmp_path}/ann.json:{tmp_path}/picture": "pictures",
        f"voc:{tmp_path}/pictres": "pictures",
        f"yolo:{tmp_path}/pictres": "pictures",
    }.items():
        assert f"(did you mean '{meant}'?)" in str(check_data(spec))


@pytest.mark.parametrize("sized", [True, False])
def test_boxes_beyond_the_border_are_told_whether_sizes_are_stated_or_not(tmp_path: Path, sized: bool) -> None:
    spec = write(tmp_path, {"bbox": [70, 5, 9, 9]}, {"bbox": [30, 20, 50, 36]}, {}, sized=sized)
    warnings = check_data(spec).warnings
    assert "1 boxes wholly outside their image dropped; the first is [70.0, 5.0, 9.0, 9.0] of a.png" in warnings
    assert "1 boxes cut at the border; the first is [30.0, 20.0, 50.0, 36.0] of a.png" in warnings
    assert any("stored as x1 y1 x2 y2" in warning for warning in warnings)
    source = open_source([spec], ImageRules())
    assert isinstance(source, LabelledImages)
    assert len(source.ground_truth()["annotations"]) == 2, "what is outside is no object that could be missed"


@pytest.mark.parametrize(("area", "said"), [(1e6, "larger than their box"), (-1, "not above 0"), (0, "not above 0")])
def test_areas_that_can_not_be_are_told_with_the_first_place(
    tmp_path: Path, area: float, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    spec = write(tmp_path, {}, {"area": 12 * 14, "image_id": 2}, {"area": area, "bbox": [3, 4, 12, 10]})
    (warning,) = [line for line in check_data(spec).warnings if "stated areas" in line]
    assert warning.startswith("1 stated areas are ")
    assert said in warning
    assert warning.endswith("; the first is $.annotations[2]")
    open_source([spec], ImageRules())
    assert warning in caplog.text
    caplog.clear()
    (tmp_path / "results.json").write_text("[]")
    score_predictions(tmp_path / "results.json", spec)
    assert warning in caplog.text
