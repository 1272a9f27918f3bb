"""Results files of any program: scored as they should be, or refused with every fault at once."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from downstream.annotations.coco import open_coco
from downstream.metrics.predictions import score_predictions
from ssldet.errors import AnnotationError, ConfigError

TRUTH: dict[str, Any] = {
    "images": [{"id": 7, "file_name": "a.png", "height": 40, "width": 60}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 90, "bbox": [1, 2, 10, 20]},
        {"id": 2, "image_id": 7, "category_id": 4, "bbox": [5, 2, 30, 20]},
    ],
    "categories": [{"id": 90, "name": "cup"}, {"id": 4, "name": "cat"}],
}
RIGHT = [
    {"image_id": 7, "category_id": 90, "bbox": [1, 2, 10, 20], "score": 0.9},
    {"image_id": 7, "category_id": 4, "bbox": [5, 2, 30, 20], "score": 1},
]


@pytest.fixture
def spec(tmp_path: Path) -> str:
    """Annotations without any image."""
    (tmp_path / "ann.json").write_text(json.dumps(TRUTH))
    return f"coco:{tmp_path / 'ann.json'}"


def results(folder: Path, rows: object) -> Path:
    path = folder / "results.json"
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return path


def test_right_answers_score_one_without_any_image(tmp_path: Path, spec: str) -> None:
    found = score_predictions(results(tmp_path, RIGHT), spec)
    assert found["AP"] == pytest.approx(1.0)
    assert found["per_class"] == {"cup": pytest.approx(1.0), "cat": pytest.approx(1.0)}
    assert score_predictions(results(tmp_path, RIGHT[:1]), spec)["AP"] == pytest.approx(0.5)
    assert score_predictions(results(tmp_path, []), spec)["AP"] == 0


def test_contiguous_class_numbers_are_not_taken_for_ids(tmp_path: Path, spec: str) -> None:
    rows = [row | {"category_id": number} for number, row in enumerate(RIGHT)]
    with pytest.raises(AnnotationError, match=r"\$\[0\]\.category_id: 0; no such category .* 90"):
        score_predictions(results(tmp_path, rows), spec)


@pytest.mark.parametrize(
    ("change", "place", "advice"),
    [
        ({"image_id": 8}, "$[1].image_id: 8", "no such image"),
        ({"image_id": "7"}, "$[1].image_id: '7' (did you mean '7'?)", "whose first is 7"),
        ({"image_id": None}, "$[1].image_id: None", "no such image"),
        ({"image_id": [7]}, "$[1].image_id: [7]", "no such image"),
        ({"category_id": "cta"}, "$[1].category_id: 'cta' (did you mean 'cat'?)", "no such category"),
        ({"score": float("nan")}, "$[1].score: nan", "not scored"),
        ({"score": None}, "$[1].score: None", "finite"),
        ({"score": True}, "$[1].score: True", "finite"),
        ({"bbox": [1, 2, float("nan"), 4]}, "$[1].bbox: [1, 2, nan, 4]", "not scored"),
        ({"bbox": [1, 2, float("inf"), 4]}, "$[1].bbox: [1, 2, inf, 4]", "finite"),
        ({"bbox": [1, 2, 10**400, 4]}, "$[1].bbox: [1, 2, 1000", "finite"),
        ({"bbox": [1, 2, "3", 4]}, "$[1].bbox: [1, 2, '3', 4]", "finite"),
        ({"bbox": [1, 2, 3]}, "$[1].bbox: [1, 2, 3]", "four numbers"),
        ({"bbox": [9, 9, -3, -4]}, "$[1].bbox: [9, 9, -3, -4]", "not xyxy"),
    ],
)
def test_a_fault_is_refused(tmp_path: Path, spec: str, change: dict[str, object], place: str, advice: str) -> None:
    with pytest.raises(AnnotationError) as caught:
        score_predictions(results(tmp_path, [RIGHT[0], RIGHT[1] | change]), spec)
    assert place in str(caught.value)
    assert advice in str(caught.value)


def test_missing_fields_are_told_at_once(tmp_path: Path, spec: str) -> None:
    with pytest.raises(AnnotationError, match="5 problems") as caught:
        score_predictions(results(tmp_path, [{}, 4]), spec)
    for place in ("$[0].image_id: missing", "$[0].category_id: missing", "$[0].bbox: missing", "$[0].score: missing"):
        assert place in str(caught.value)
    assert "$[1]: 4; expects an object" in str(caught.value)


@pytest.mark.parametrize("text", ["", "{}", "[" * 100_000, "\ufeff["])
def test_a_file_that_is_no_list_is_refused(tmp_path: Path, spec: str, text: str) -> None:
    with pytest.raises(AnnotationError, match="expects a list"):
        score_predictions(results(tmp_path, text), spec)


def test_an_absent_file_is_named(tmp_path: Path, spec: str) -> None:
    with pytest.raises(AnnotationError, match=r"no\.json: can't be read"):
        score_predictions(tmp_path / "no.json", spec)


@pytest.mark.parametrize("text", ["photos/", "coco:", "tiff:x"])
def test_unlabelled_data_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="labels are needed"):
        score_predictions(results(tmp_path, RIGHT), text)


def test_voc_takes_names_and_numbers_from_one(tmp_path: Path) -> None:
    for name in ("Annotations", "ImageSets/Main"):
        (tmp_path / name).mkdir(parents=True)
    box = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>11</xmax><ymax>22</ymax></bndbox>"
    text = f"<annotation><object><name>bird</name>{box}</object></annotation>"
    (tmp_path / "Annotations/000012.xml").write_text(text)
    (tmp_path / "ImageSets/Main/test.txt").write_text("000012\n")
    for category in ("bird", 3):
        rows = [{"image_id": "000012", "category_id": category, "bbox": [1, 2, 10, 20], "score": 0.4}]
        assert score_predictions(results(tmp_path, rows), f"voc:{tmp_path}:test")["AP"] == pytest.approx(1.0)


def test_what_a_source_writes_can_be_scored(tmp_path: Path, spec: str) -> None:
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    source = open_coco(spec.removeprefix("coco:"), min_side=17, max_pixels=10**6)
    truth = source.ground_truth()["annotations"]
    rows = [{name: row[name] for name in ("image_id", "category_id", "bbox")} | {"score": 1.0} for row in truth]
    assert score_predictions(results(tmp_path, rows), spec)["AP"] == pytest.approx(1.0)
