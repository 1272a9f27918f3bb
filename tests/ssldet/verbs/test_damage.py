"""Damaged images of an evaluated set: named, counted, and their objects missed, whatever is wrong with the file."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import ssldet
from downstream.annotations.shapes import write_shapes
from ssldet.boxes import to_absolute
from ssldet.data.collate import collate
from ssldet.data.images import ImageRules
from ssldet.data.sources import open_source
from ssldet.errors import DataError
from ssldet.task import Evaluator
from ssldet.types import Detections

SMALL = {"data.batch_size": 2, "data.workers": 0}
DAMAGE = {
    "cut body": lambda content: content[: len(content) // 2],
    "no header": lambda content: b"<html>" + content[100:],
    "empty": lambda _: b"",
    "cut header": lambda content: content[:12],
}


def made(place: Path, form: str) -> str:
    """Six images as a labelled set of some form."""
    write_shapes(place, images=6, seed=3)
    coco = f"coco:{place}/instances.json:{place}/images"
    if form == "coco":
        return coco
    document = json.loads((place / "instances.json").read_text())
    names = {row["id"]: row["file_name"] for row in document["images"]}
    sizes = {row["id"]: (row["width"], row["height"]) for row in document["images"]}
    classes = {row["id"]: number for number, row in enumerate(document["categories"])}
    (place / "labels").mkdir()
    rows: dict[str, list[str]] = {name: [] for name in names.values()}
    for row in document["annotations"]:
        (x, y, w, h), (width, height) = row["bbox"], sizes[row["image_id"]]
        numbers = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
        rows[names[row["image_id"]]].append(" ".join(map(str, (classes[row["category_id"]], *numbers))))
    for name, lines in rows.items():
        (place / "labels" / f"{Path(name).stem}.txt").write_text("\n".join(dict.fromkeys(lines)))
    listed = json.dumps([row["name"] for row in document["categories"]])
    (place / "data.yaml").write_text(f"names: {listed}\ntrain: images\n")
    return f"yolo:{place}"


def perfect(spec: str, **choices: Any) -> dict[str, Any]:
    """The figures of a model that finds every object of every image that can be read."""
    from downstream.detection import Detection

    source = open_source([spec], ImageRules())
    evaluator: Evaluator = Detection(**choices).evaluator(source)
    for index in range(len(source)):
        try:
            sample = source[index]
        except DataError:
            continue
        boxes, labels = to_absolute(sample.targets.boxes, sample.original_size), sample.targets.labels
        evaluator.update([Detections(boxes=boxes, scores=torch.ones(len(boxes)), labels=labels)], collate([sample]))
    return evaluator.results()


BY_SIZE = {"APs", "APm", "APl", "ARs", "ARm", "ARl"}
"""Figures by size of the object, which YOLO states as shares: of an image without a header it is not known."""


@pytest.mark.parametrize("form", ["coco", "yolo"])
@pytest.mark.parametrize("metric", ["coco", "voc"])
def test_every_kind_of_damage_costs_the_same_objects(form: str, metric: Any, tmp_path: Path) -> None:
    spec = made(tmp_path, form)
    image = sorted((tmp_path / "images").iterdir())[1]
    whole, content = perfect(spec, metric=metric), image.read_bytes()
    figures = []
    for damage in DAMAGE.values():
        image.write_bytes(damage(content))
        figures.append(perfect(spec, metric=metric))
    assert figures[0] != whole
    unknown = BY_SIZE if form == "yolo" else set()
    compared = [{name: value for name, value in each.items() if name not in unknown} for each in figures]
    assert compared == [compared[0]] * len(DAMAGE)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damage")


@pytest.fixture(scope="module")
def run(place: Path) -> ssldet.Trained:
    """A run whose evaluated set has an image without a header and one without an end."""
    spec = made(place / "set", "coco")
    train = made(place / "whole", "coco")
    first, second, *_ = sorted((place / "set" / "images").iterdir())
    first.write_bytes(b"<html>")
    second.write_bytes(second.read_bytes()[:-200])
    return ssldet.finetune(
        "scratch", train, val=spec, recipe="detection/tiny", steps=1, out=place / "run", overrides=SMALL
    )


def test_the_run_names_and_counts_them_and_writes_them_down(run: ssldet.Trained, place: Path) -> None:
    lost = run.results["unreadable"]
    assert sorted(lost.values()) == ["not-an-image", "truncated"]
    lines = [json.loads(line) for line in (run.path / "quarantine.jsonl").read_text().splitlines()]
    assert {line["path"]: line["reason"] for line in lines if line["set"] == "evaluated"} == lost
    assert "2 images can't be read" in (run.path / "train.log").read_text()
    ssldet.finetune(resume=run.path, steps=2)
    assert len((run.path / "quarantine.jsonl").read_text().splitlines()) == 2, "each once, towards no limit"


def test_a_later_evaluation_says_the_same(run: ssldet.Trained, place: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = f"coco:{place}/set/instances.json:{place}/set/images"
    with caplog.at_level(logging.WARNING):
        answer = ssldet.evaluate(run.path, spec, workers=0)
    assert answer["unreadable"] == run.results["unreadable"]
    assert "2 images can't be read: " in caplog.text


def cut(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-200])


def test_nothing_that_can_be_read_is_an_error_everywhere(run: ssldet.Trained, place: Path) -> None:
    train, spec = made(place / "fine", "coco"), made(place / "cut", "coco")
    images = place / "cut" / "images"
    cut(images)
    with pytest.raises(DataError, match=r"none of the 6 images can be read: .*\(truncated\); .*; …; copy"):
        ssldet.evaluate(run.path, spec, workers=0)
    with pytest.raises(DataError, match="none of the 6 images can be read: "):
        ssldet.predict(run.path, str(images), out=place / "found")
    for learn in (
        lambda: ssldet.finetune("scratch", spec, recipe="detection/tiny", steps=1, out=place / "a", overrides=SMALL),
        lambda: ssldet.pretrain(images, recipe="random_query_patch/tiny", steps=1, out=place / "b", overrides=SMALL),
        lambda: ssldet.preview(images, task="random_query_patch", overrides=SMALL, out=place / "p.png"),
    ):
        with pytest.raises(DataError, match=r"none of 50 images tried in a row can be read \(truncated 50\)"):
            learn()
    with pytest.raises(DataError, match=r"could not be measured: .*none of the 6 images") as caught:
        ssldet.finetune("scratch", train, val=spec, recipe="detection/tiny", steps=1, out=place / "c", overrides=SMALL)
    assert caught.value.exit_code == 3
    assert (place / "c" / "weights" / "model.safetensors").is_file()


def test_two_sets_with_the_same_ids_are_measured_together(tmp_path: Path) -> None:
    specs = [made(tmp_path / name, "coco") for name in ("a", "b")]
    _measured_together(specs)


def test_two_sets_with_the_same_ids_of_the_cases(cases: Path) -> None:
    folder = cases / "82_two_sets_same_ids"
    _measured_together([f"coco:{folder}/{name}/ann.json:{folder}/{name}/images" for name in ("a", "b")])


def _measured_together(specs: list[str]) -> None:
    from downstream.metrics.average_precision import BoxAP

    source: Any = open_source(specs, ImageRules())
    assert len(set(source.image_ids)) == len(source) == len(source.ground_truth()["images"])
    assert all(str(key)[:2] in {"0:", "1:"} for key in source.image_ids)
    evaluator, rows = BoxAP(source), []
    for index in range(len(source)):
        sample = source[index]
        boxes, labels = to_absolute(sample.targets.boxes, sample.original_size), sample.targets.labels
        found, batch = Detections(boxes=boxes, scores=torch.ones(len(boxes)), labels=labels), collate([sample])
        evaluator.update([found], batch)
        rows += source.to_results([found], batch)
    assert evaluator.results()["AP"] == pytest.approx(1.0)
    assert {row["image_id"] for row in rows} <= set(source.image_ids)
    assert len(rows) == len(source.ground_truth()["annotations"])


def test_ids_stay_as_they_are_where_no_two_images_share_one(tmp_path: Path) -> None:
    specs = [made(tmp_path / name, "coco") for name in ("a", "b")]
    document = json.loads((tmp_path / "b" / "instances.json").read_text())
    for row in document["images"]:
        row["id"] += 1000
    for row in document["annotations"]:
        row["image_id"] += 1000
    for row in document["categories"]:
        row["id"] += 50
    for row in document["annotations"]:
        row["category_id"] += 50
    (tmp_path / "b" / "instances.json").write_text(json.dumps(document))
    source: Any = open_source(specs, ImageRules())
    assert all(isinstance(key, int) for key in source.image_ids)
    truth = source.ground_truth()
    assert {row["category_id"] for row in truth["annotations"]} <= set(source.category_ids)
    assert [row["id"] for row in truth["annotations"]] == list(range(1, len(truth["annotations"]) + 1))
