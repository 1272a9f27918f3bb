"""The figures are those of COCO's panoptic metric, for files and for models; the traps around it are closed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hotcoco.panoptic import PanopticEval
from PIL import Image

from downstream.annotations.panoptic import PanopticImages
from downstream.annotations.shapes import write_shapes
from downstream.metrics.panoptic_predictions import score_panoptic
from downstream.metrics.panoptic_quality import PanopticQuality, count
from ssldet import verbs
from ssldet.data.collate import collate
from ssldet.data.images import ImageRules
from ssldet.data.sources import open_source
from ssldet.errors import AnnotationError, ConfigError, DataError
from ssldet.types import Batch, Detections, Segmentation

Document = dict[str, Any]
CATEGORIES = [{"id": key, "name": f"c{key}", "isthing": int(key < 50)} for key in (3, 17, 90, 91, 200)]
FIGURES = ("PQ", "SQ", "RQ")


def write_png(path: Path, ids: np.ndarray) -> None:
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1)
    Image.fromarray(colours.astype(np.uint8)).save(path)


def random_map(chance: np.random.Generator, cells: int, shape: tuple[int, int]) -> np.ndarray:
    """Regions around random points; region 0 is void."""
    points = chance.uniform(0, 1, (cells, 2)) * shape
    rows, columns = np.indices(shape)
    distance = (rows[..., None] - points[:, 0]) ** 2 + (columns[..., None] - points[:, 1]) ** 2
    return distance.argmin(axis=-1)


def random_files(folder: Path, *, images: int, seed: int) -> tuple[Path, Path]:
    """Write truth with void and crowds, and answers that follow it more or less."""
    chance = np.random.default_rng(seed)
    truth: Document = {"images": [], "categories": CATEGORIES[:4], "annotations": []}
    answers: Document = {"annotations": []}
    for name in ("gt", "pred"):
        (folder / name).mkdir()
    for key in chance.permutation(500)[:images].tolist():
        shape = (int(chance.integers(20, 50)), int(chance.integers(20, 70)))
        cells = int(chance.integers(2, 12))
        true = random_map(chance, cells, shape)
        near = np.where(chance.random(shape) < chance.choice([0.02, 0.3]), random_map(chance, cells, shape), true)
        near = np.roll(near, int(chance.integers(0, 4)), axis=1)
        labels = chance.choice([3, 17, 90, 91], cells)
        entries = []
        for part, cells_map in (("gt", true), ("pred", near)):
            ids = np.concatenate([[0], 257 * chance.choice(65000, cells - 1, replace=False) + 1])
            infos = []
            for cell in np.unique(cells_map[cells_map > 0]).tolist():
                right = part == "gt" or chance.random() < 0.8
                category = int(labels[cell] if right else chance.choice([3, 17, 90, 91]))
                infos.append({"id": int(ids[cell]), "category_id": category})
                if part == "gt":
                    infos[-1] |= {"iscrowd": int(chance.random() < 0.2), "area": int((cells_map == cell).sum())}
            write_png(folder / part / f"{key}.png", ids[cells_map])
            entries.append({"image_id": key, "file_name": f"{key}.png", "segments_info": infos})
        truth["annotations"].append(entries[0])
        answers["annotations"].insert(0, entries[1])
        truth["images"].append({"id": key, "file_name": f"{key}.jpg", "height": shape[0], "width": shape[1]})
    (folder / "gt.json").write_text(json.dumps(truth))
    (folder / "pred.json").write_text(json.dumps(answers))
    return folder / "gt.json", folder / "pred.json"


def official(truth: Path, answers: Path) -> dict[str, Any]:
    evaluation = PanopticEval(str(truth), str(answers))
    evaluation.evaluate()
    results: dict[str, Any] = evaluation.results()
    return results


def require_equal(found: Document, expected: Document, categories: list[Document]) -> None:
    for name, group in (("All", found), ("Things", found["things"]), ("Stuff", found["stuff"])):
        assert [group[key] for key in FIGURES] == pytest.approx([expected[name][key.lower()] for key in FIGURES])
    assert list(found["per_class"]) == [row["name"] for row in categories]
    for row in categories:
        theirs = expected["per_class"][row["id"]]
        ours = found["per_class"][row["name"]]
        assert [ours[key] for key in FIGURES] == pytest.approx([theirs[key.lower()] for key in FIGURES], abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_figures_are_the_official_ones(tmp_path: Path, seed: int) -> None:
    truth, answers = random_files(tmp_path, images=20, seed=seed)
    found = score_panoptic(answers, f"panoptic:{truth}")
    require_equal(found, official(truth, answers), CATEGORIES[:4])
    assert 0.1 < found["PQ"] < 0.9
    assert found["PQ"] != pytest.approx(found["SQ"] * found["RQ"])


@pytest.mark.parametrize("area", [3, 10**9])
def test_areas_that_contradict_their_pngs_are_warned_of_and_change_nothing(
    tmp_path: Path, area: int, caplog: pytest.LogCaptureFixture
) -> None:
    truth, answers = random_files(tmp_path, images=5, seed=2)
    expected = score_panoptic(answers, f"panoptic:{truth}")
    assert not caplog.messages
    document = json.loads(truth.read_bytes())
    segments = document["annotations"][1]["segments_info"]
    for segment in segments:
        segment["area"] = area
    truth.write_text(json.dumps(document))
    assert score_panoptic(answers, f"panoptic:{truth}") == expected
    assert f"{len(segments)} segments of another area than stated" in caplog.text


def test_real_annotations_give_the_official_figures(tmp_path: Path, real_data: Path) -> None:
    truth = real_data / "coco_panoptic" / "annotations" / "panoptic_train.json"
    document = json.loads(truth.read_bytes())
    chance = np.random.default_rng(0)
    (tmp_path / "answers").mkdir()
    for entry in document["annotations"]:
        colours = np.asarray(Image.open(truth.with_suffix("") / entry["file_name"])).copy()
        shifted = np.roll(colours, 5, axis=1)
        weights = np.array([1, 256, 65536])
        present = set(np.unique(shifted.astype(int) @ weights).tolist())
        entry["segments_info"] = [row for row in entry["segments_info"] if row["id"] in present]
        for row in entry["segments_info"]:
            if chance.random() < 0.2:
                row["category_id"] = int(chance.choice([row["id"] for row in document["categories"]]))
        Image.fromarray(shifted).save(tmp_path / "answers" / entry["file_name"])
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps({"annotations": document["annotations"]}))
    found = verbs.evaluate(None, f"panoptic:{truth}", predictions=answers)
    require_equal(found, official(truth, answers), document["categories"])
    assert -1 in {figures["PQ"] for figures in found["per_class"].values()}
    json.dumps(found, allow_nan=False)


def segmentation(rows: list[list[int]], labels: list[int], crowd: list[int] | None = None) -> Segmentation:
    flags = None if crowd is None else torch.tensor(crowd).bool()
    return Segmentation(segments=torch.tensor(rows), labels=torch.tensor(labels).long(), crowd=flags)


def test_an_answer_in_void_or_in_a_crowd_of_its_class_is_no_mistake() -> None:
    truth = segmentation([[0, 0, 0, 1, 1, 1, 2, 2]], [0, 1], [1, 0])
    # Void and half a pixel more; in the crowd of its class; in the crowd of another class.
    answer = segmentation([[1, 1, 2, 2, 2, 3, 3, 3]], [1, 0, 1])
    assert count(truth, answer, 2)[:, 1:].tolist() == [[0, 0, 0], [1, 0, 0]]
    answer = segmentation([[0, 0, 0, 1, 1, 2, 0, 0]], [1, 0])
    assert count(truth, answer, 2)[:, 1:].tolist() == [[0, 0, 0], [0, 1, 1]]


def test_half_an_overlap_is_not_enough_and_void_is_left_aside() -> None:
    half = count(segmentation([[1, 1, 2, 2]], [0, 1]), segmentation([[1, 1, 1, 1]], [0]), 2)
    assert half.tolist() == [[0, 0, 1, 1], [0, 0, 0, 1]]
    void = count(segmentation([[1, 1, 0, 0]], [0]), segmentation([[1, 1, 1, 1]], [0]), 1)
    assert void.tolist() == [[1, 1, 0, 0]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> PanopticImages:
    folder = tmp_path_factory.mktemp("panoptic")
    truth, _ = random_files(folder, images=5, seed=11)
    (folder / "images").mkdir()
    for image in json.loads(truth.read_bytes())["images"]:
        Image.new("RGB", (image["width"], image["height"])).save(folder / "images" / image["file_name"])
    opened = open_source([f"panoptic:{truth}"], ImageRules(min_side=17, max_pixels=10**6))
    assert isinstance(opened, PanopticImages)
    return opened


def shown(source: PanopticImages, number: int, answer: Segmentation | None = None) -> tuple[list[Detections], Batch]:
    batch = collate([source[number]])
    truth = source.truth(source.keys[number])
    crowds = torch.tensor([False, *truth.crowd.tolist()])  # type: ignore[union-attr]
    found = answer or replace(truth, segments=torch.where(crowds[truth.segments.long()], 0, truth.segments), crowd=None)
    empty = Detections(boxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0).long(), segmentation=found)
    return [empty], batch


def test_a_model_that_is_right_scores_one_in_any_order(source: PanopticImages) -> None:
    metric = PanopticQuality(source)
    for number in (3, 0, 4, 2, 1, 3):
        metric.update(*shown(source, number))
    found = metric.results()
    assert [found[name] for name in FIGURES] == [1.0, 1.0, 1.0]
    assert set(found) == {*FIGURES, "things", "stuff", "per_class"}


def test_a_model_is_scored_by_pixels_and_a_contradiction_is_said_once(
    source: PanopticImages, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stated = source.stated
    monkeypatch.setattr(source, "stated", lambda key: (*stated(key)[:2], stated(key)[2] / 7))
    metric = PanopticQuality(source)
    for number in range(5):
        metric.update(*shown(source, number))
    assert metric.results()["PQ"] == 1
    assert len(caplog.messages) == 1
    assert "another area than stated" in caplog.text


def test_an_image_never_shown_counts_as_missed(source: PanopticImages) -> None:
    metric = PanopticQuality(source)
    for number in range(4):
        metric.update(*shown(source, number))
    found = metric.results()
    assert 0 < found["PQ"] < 1
    shape = source.truth(source.keys[4]).segments.shape
    metric.update(*shown(source, 4, segmentation(torch.zeros(shape, dtype=torch.int64).tolist(), [])))
    assert metric.results() == found
    assert PanopticQuality(source).results()["PQ"] == 0


def test_answers_that_do_not_fit_are_refused(source: PanopticImages) -> None:
    metric = PanopticQuality(source)
    with pytest.raises(DataError, match="differ in size, 1 x 2 and"):
        metric.update(*shown(source, 0, segmentation([[1, 1]], [0])))
    with pytest.raises(DataError, match="class number 4 was found, but the data has 4 classes"):
        metric.update(*shown(source, 0, segmentation([[1, 1]], [4])))
    (bare,), batch = shown(source, 0)
    with pytest.raises(DataError, match="without a segmentation"):
        metric.update([Detections(boxes=bare.boxes, scores=bare.scores, labels=bare.labels)], batch)


def test_data_without_labelled_pixels_is_refused(tmp_path: Path) -> None:
    path = write_shapes(tmp_path, images=2)
    with pytest.raises(DataError, match="no labelled pixels"):
        PanopticQuality(open_source([f"coco:{path}"], ImageRules(min_side=17, max_pixels=10**6)))


def edit(path: Path, number: int, change: Document) -> None:
    document = json.loads(path.read_bytes())
    document["annotations"][number] |= change
    path.write_text(json.dumps(document))


def test_every_fault_of_a_results_file_has_its_line(tmp_path: Path) -> None:
    truth, answers = random_files(tmp_path, images=5, seed=4)
    entries = json.loads(answers.read_bytes())["annotations"]
    edit(answers, 0, {"segments_info": entries[0]["segments_info"][1:]})
    edit(answers, 1, {"segments_info": [*entries[1]["segments_info"], {"id": 16777215, "category_id": 3}]})
    edit(answers, 2, {"segments_info": [{"id": 0, "category_id": 3}, {"id": 5, "category_id": 4}]})
    edit(answers, 3, {"file_name": "none.png"})
    Image.new("RGB", (7, 9)).save(tmp_path / "pred" / entries[4]["file_name"])
    edit(answers, 4, {"segments_info": []})
    with pytest.raises(AnnotationError) as caught:
        score_panoptic(answers, f"panoptic:{truth}")
    for line in (
        f"$.annotations[0].segments_info: segment {entries[0]['segments_info'][0]['id']} is in the PNG only",
        "$.annotations[1].segments_info: segment 16777215 is not in the PNG",
        "$.annotations[2].segments_info[0].id: 0; expects a whole number from 1",
        "$.annotations[2].segments_info[1].category_id: 4; no category",
        "none.png: missing",
        "has 9 x 7 instead of",
    ):
        assert line in str(caught.value)


def test_an_image_without_prediction_is_named(tmp_path: Path) -> None:
    truth, answers = random_files(tmp_path, images=3, seed=4)
    document = json.loads(answers.read_bytes())
    lost = document["annotations"].pop()
    answers.write_text(json.dumps(document))
    with pytest.raises(AnnotationError, match=f"image {lost['image_id']} has no prediction"):
        score_panoptic(answers, f"panoptic:{truth}")


def test_the_folder_of_pngs_may_be_named(tmp_path: Path) -> None:
    truth, answers = random_files(tmp_path, images=3, seed=4)
    expected = score_panoptic(answers, f"panoptic:{truth}")
    for part in ("gt", "pred"):
        (tmp_path / part).rename(tmp_path / f"{part}-pngs")
    spec = f"panoptic:{truth}:{tmp_path / 'gt-pngs'}"
    assert score_panoptic(Path(f"{answers}:{tmp_path / 'pred-pngs'}"), spec) == expected
    with pytest.raises(AnnotationError, match="no folder"):
        score_panoptic(answers, spec)
    with pytest.raises(ConfigError, match="--iou has no meaning for panoptic"):
        verbs.evaluate(None, spec, predictions=answers, iou=0.5)
