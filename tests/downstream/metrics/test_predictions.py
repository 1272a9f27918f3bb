"""Results files of any program: scored as they should be, or refused with every fault at once."""

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from downstream.annotations.coco import open_coco
from downstream.metrics.average_precision import NAMES
from downstream.metrics.predictions import score_predictions
from ssldet.data.images import ImageRules
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
        ({"image_id": "7"}, "$[1].image_id: '7' (text, where the annotations have the number 7)", "whose first is 7"),
        ({"image_id": None}, "$[1].image_id: None", "no such image"),
        ({"image_id": [7]}, "$[1].image_id: [7]", "no such image"),
        ({"category_id": "cta"}, "$[1].category_id: 'cta' (did you mean 'cat'?)", "no such category"),
        ({"score": float("nan")}, "$[1].score: nan", "not scored"),
        ({"score": None}, "$[1].score: None", "finite"),
        ({"score": True}, "$[1].score: True", "finite"),
        ({"bbox": [1, 2, float("nan"), 4]}, "$[1].bbox: [1, 2, nan, 4]", "not scored"),
        ({"bbox": [1, 2, float("inf"), 4]}, "$[1].bbox: [1, 2, inf, 4]", "finite"),
        ({"bbox": [1, 2, 10**400, 4]}, "$[1].bbox: [1, 2, 1000", "finite"),
        ({"bbox": [1, 2, 1e300, 4]}, "$[1].bbox: [1, 2, 1e+300, 4]", "numbers of pixels"),
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


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ([[0.1, 0.2, 0.3, 0.4], [0, 0, 0.5, 1]], "are they stored as fractions of their image?"),
        ([[20, 12, 50, 35], [30, 20, 60, 40]], "are they stored as x1 y1 x2 y2 instead of xywh?"),
        ([[1, 2, 10, 20], [40, 2, 30, 20]], ""),  # a detector may let a box leave its image
        ([[5, 5, 0, 0]], ""),
        ([], "1 of 1 images have no result, a.png for one; their objects count as not found"),
    ],
)
def test_results_that_look_misread_are_said_in_a_line(
    tmp_path: Path, spec: str, boxes: list[list[float]], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [RIGHT[0] | {"bbox": box} for box in boxes]
    score_predictions(results(tmp_path, rows), spec)
    assert [said in message for message in caplog.messages] == [True] * bool(said)


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
        assert score_predictions(results(tmp_path, rows), f"voc:{tmp_path}:test")["voc_ap"] == pytest.approx(1.0)


def test_what_a_source_writes_can_be_scored(tmp_path: Path, spec: str) -> None:
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    source = open_coco(spec.removeprefix("coco:"), ImageRules(min_side=17, max_pixels=10**6))
    truth = source.ground_truth()["annotations"]
    rows = [{name: row[name] for name in ("image_id", "category_id", "bbox")} | {"score": 1.0} for row in truth]
    assert score_predictions(results(tmp_path, rows), spec)["AP"] == pytest.approx(1.0)


def mask_of(box: list[float], chance: np.random.Generator, size: tuple[int, int]) -> dict[str, Any]:
    """An ellipse in a box, compressed."""
    x, y, width, height = box
    rows, columns = np.ogrid[: size[0], : size[1]]
    across = (columns - x - width / 2) / (width / 2 + 0.1)
    inside = across**2 + ((rows - y - height / 2) / (height / 2 + 0.1)) ** 2 <= chance.uniform(0.5, 2)
    rle: dict[str, Any] = coco_mask.encode(np.asfortranarray(inside.astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def noisy(document: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """Answers good and bad, more than 100 for one image, with many equal scores."""
    chance = np.random.default_rng(seed)
    sizes = {image["id"]: (image["height"], image["width"]) for image in document["images"]}
    keys = [row["id"] for row in document["categories"]]
    rows = []
    crowded = document["annotations"][0]["image_id"]
    for row in document["annotations"]:
        for _ in range(60 if row["image_id"] == crowded else chance.integers(0, 4)):
            box = np.array(row["bbox"]) + chance.normal(0, 0.1, 4) * min(row["bbox"][2:])
            box = [round(float(side), 2) for side in (*box[:2], *np.maximum(box[2:], 0.5))]
            category = row["category_id"] if chance.random() < 0.8 else int(chance.choice(keys))
            mask = mask_of(box, chance, sizes[row["image_id"]])
            score = round(float(chance.random()), 2)
            place = {"image_id": row["image_id"], "category_id": category}
            rows.append(place | {"bbox": box, "segmentation": mask, "score": score})
    return rows


def official(document: dict[str, Any], rows: list[dict[str, Any]], kind: str) -> tuple[list[float], dict[str, float]]:
    """What pycocotools says, used as its own demonstration does."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(document)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(rows)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    names = {row["id"]: row["name"] for row in document["categories"]}
    per_class = {names[key]: float(precision[:, :, n].mean()) for n, key in enumerate(evaluation.params.catIds)}
    return [float(value) for value in evaluation.stats[:9]], per_class


@pytest.mark.parametrize("form", ["both", "masks", "boxes"])
def test_real_annotations_give_the_figures_of_pycocotools(tmp_path: Path, real_data: Path, form: str) -> None:
    path = real_data / "coco_tiny" / "annotations" / "instances_val.json"
    document = json.loads(path.read_bytes())
    rows = noisy(document, 3)
    for row in rows:
        for name in {"both": [], "masks": ["bbox"], "boxes": ["segmentation"]}[form]:
            del row[name]
    found = score_predictions(results(tmp_path, rows), f"coco:{path}")
    assert list(found) == [*NAMES, "per_class", *([] if form == "boxes" else ["segm"])]
    for kind, figures in (("bbox", found), ("segm", found.get("segm"))):
        if figures is None:
            continue
        stats, per_class = official(document, rows, kind)
        assert [figures[name] for name in NAMES] == pytest.approx(stats, abs=1e-9)
        assert figures["per_class"] == pytest.approx(per_class, abs=1e-9)
        assert 0.02 < figures["AP"] < 0.98
        assert -1 in figures["per_class"].values()


def test_boxes_without_area_count_as_they_do_officially(tmp_path: Path, spec: str) -> None:
    document = copy.deepcopy(TRUTH)
    document["annotations"] = [row | {"area": row["bbox"][2] * 20, "iscrowd": 0} for row in document["annotations"]]
    lost = {"id": 9, "image_id": 7, "category_id": 4, "bbox": [5, 2, 7, 0], "area": 0, "iscrowd": 0}
    document["annotations"].append(lost)
    Path(spec.removeprefix("coco:")).write_text(json.dumps(document))
    found = score_predictions(results(tmp_path, RIGHT), spec)
    assert [found[name] for name in NAMES] == pytest.approx(official(document, RIGHT, "bbox")[0], abs=1e-9)
    assert found["AP"] < 1


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"segmentation": [[1, 2, 3]]}, "$[1].segmentation"),
        ({"segmentation": {"size": [40, 60], "counts": [7]}}, "2400 pixels"),
        ({}, "$[1].segmentation: missing"),
    ],
)
def test_a_faulty_mask_is_refused(tmp_path: Path, spec: str, change: dict[str, object], place: str) -> None:
    sound = RIGHT[0] | {"segmentation": [[1, 2, 11, 2, 11, 22, 1, 22]]}
    with pytest.raises(AnnotationError) as caught:
        score_predictions(results(tmp_path, [sound, RIGHT[1] | change]), spec)
    assert place in str(caught.value)


def test_masks_need_true_masks(tmp_path: Path, spec: str) -> None:
    rows = [row | {"segmentation": [[1, 2, 11, 2, 11, 22, 1, 22]]} for row in RIGHT]
    with pytest.raises(AnnotationError, match=r"ann\.json: .*\n  \$\.annotations\[0\]\.segmentation: missing; mend it"):
        score_predictions(results(tmp_path, rows), spec)


def test_images_and_classes_may_be_named(tmp_path: Path, spec: str) -> None:
    rows = [{"image_id": "a.png", "category": "cup", "bbox": RIGHT[0]["bbox"], "score": 1}, RIGHT[1]]
    assert score_predictions(results(tmp_path, rows), spec)["AP"] == pytest.approx(1.0)
    with pytest.raises(AnnotationError, match=r"category_id: 4 is not the class 'cup', whose id is 90"):
        score_predictions(results(tmp_path, [RIGHT[1] | {"category": "cup"}]), spec)
    with pytest.raises(AnnotationError, match=r"category: 'cupp' \(did you mean 'cup'"):
        score_predictions(results(tmp_path, [rows[0] | {"category": "cupp"}]), spec)


def test_the_metric_is_a_choice(tmp_path: Path, spec: str) -> None:
    path = results(tmp_path, RIGHT)
    assert set(score_predictions(path, spec, metric="voc", iou=0.3)) == {"voc07_ap", "voc_ap", "per_class"}
    for options, advice in (
        ({"iou": 0.5}, "ten overlaps"),
        ({"metric": "voc", "max_dets": 50}, "leave it out"),
        ({"metric": "voc", "iou": 1.5}, "above 0"),
        ({"max_dets": 0}, "at least 1"),
    ):
        with pytest.raises(ConfigError, match=advice):
            score_predictions(path, spec, **options)  # type: ignore[arg-type]


def test_an_empty_box_is_no_box(tmp_path: Path, spec: str) -> None:
    square = [[1, 2, 11, 2, 11, 22, 1, 22]]
    truth = copy.deepcopy(TRUTH)
    for row in truth["annotations"]:
        row["segmentation"] = square
    (tmp_path / "ann.json").write_text(json.dumps(truth))
    with_box, without = [
        {**RIGHT[0], "segmentation": square, **change} for change in ({"bbox": [1, 2, 10, 20]}, {"bbox": []})
    ]
    assert score_predictions(results(tmp_path, [without]), spec) == score_predictions(
        results(tmp_path, [with_box]), spec
    )


@pytest.fixture
def yolo(tmp_path: Path) -> str:
    """Two images in folders, with a polygon and without objects."""
    for name in ("images/train/x", "labels/train/x"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("x/007.v1.jpg", "b.jpg"):
        Image.new("RGB", (60, 40)).save(tmp_path / "images/train" / name)
    (tmp_path / "labels/train/x/007.v1.txt").write_text("1 0.1 0.1 0.5 0.1 0.5 0.6 0.1 0.6\n")
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: [cup, cat]\n")
    return f"yolo:{tmp_path}:train"


@pytest.mark.parametrize("image", ["x/007.v1.jpg", "007.v1"])
@pytest.mark.parametrize("category", [{"category_id": 1}, {"category": "cat"}])
def test_yolo_folders_are_scored_too(tmp_path: Path, yolo: str, image: str, category: dict[str, Any]) -> None:
    row = {"image_id": image, "score": 0.5, "bbox": [6, 4, 24, 20], **category}
    found = score_predictions(results(tmp_path, [row]), yolo)
    assert (found["AP"], found["per_class"]) == (pytest.approx(1.0), {"cup": -1.0, "cat": pytest.approx(1.0)})
    mask = {"segmentation": [[6, 4, 30, 4, 30, 24, 6, 24]]}
    assert score_predictions(results(tmp_path, [row | mask]), yolo)["segm"]["AP"] == pytest.approx(1.0)
    assert score_predictions(results(tmp_path, [row]), yolo, metric="voc")["voc_ap"] == pytest.approx(1.0)
    with pytest.raises(AnnotationError, match=r"\$\[0\]\.image_id: 'c\.jpg'"):
        score_predictions(results(tmp_path, [row | {"image_id": "c.jpg"}]), yolo)
