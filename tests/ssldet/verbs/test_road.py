"""The whole road in miniature: what one verb leaves behind is what the next one takes."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import ssldet
from downstream.annotations.shapes import write_shapes
from pretext.random_query_patch import RandomQueryPatch
from ssldet import cli
from ssldet.checkup import doctor
from ssldet.data.images import ImageSource
from ssldet.engine.run import OptimConfig
from ssldet.errors import CheckpointError, ConfigError, DataError
from ssldet.recipe import override
from ssldet.report.pictures import colour_of
from ssldet.types import Detections, Segmentation
from ssldet.verbs.choosing import resolve
from ssldet.verbs.preparing import prepare_finetuning
from ssldet.verbs.translating import translation
from tests.models import SMALL_DETR

SMALL = {"data.batch_size": 4, "data.workers": 0}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("road")
    write_shapes(folder / "made", images=12, seed=3)
    return folder


@pytest.fixture(scope="module")
def labelled(place: Path) -> str:
    return f"coco:{place}/made/instances.json:{place}/made/images"


@pytest.fixture(scope="module")
def pretrained(place: Path) -> ssldet.Trained:
    images = place / "made" / "images"
    recipe = "random_query_patch/tiny"
    return ssldet.pretrain(images, recipe=recipe, val=images, steps=3, out=place / "pre", overrides=SMALL)


@pytest.fixture(scope="module")
def finetuned(pretrained: ssldet.Trained, labelled: str, place: Path) -> ssldet.Trained:
    return pretrained.finetune(
        labelled, val=labelled, recipe="detection/tiny", steps=3, out=place / "fine", overrides=SMALL
    )


def test_pretraining_leaves_everything_that_the_page_promises(pretrained: ssldet.Trained) -> None:
    for name in ("run.toml", "run.json", "metrics.jsonl", "train.log", "weights/model.safetensors", "report.html"):
        assert (pretrained.path / name).is_file(), name
    assert list((pretrained.path / "previews").glob("*.png"))
    assert {"patch_iou", "patch_iou_constant"} <= pretrained.results.keys()
    assert pretrained.to_json()["status"] == "finished"
    assert [line["step"] for line in pretrained.metrics if line["kind"] == "train"][-1] == 3


def test_the_best_weights_are_taken_where_they_are_asked_for(
    pretrained: ssldet.Trained, labelled: str, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    choices = {**SMALL, "evaluate_every": 1, "checkpoint.best_of": "AR100", "optim.warmup_steps": 0}
    out = place / "best"
    run = pretrained.finetune(labelled, val=labelled, recipe="detection/tiny", steps=4, out=out, overrides=choices)
    assert run.best is not None
    step, value = run.best["step"], run.best["value"]
    assert value == max(line["AR100"] for line in run.metrics if line["kind"] == "eval")
    caplog.set_level("INFO")
    assert run.evaluate(labelled, weights="best", workers=0)["AR100"] == pytest.approx(value, abs=1e-9)
    assert f"the weights are those of step {step}, with the best AR100" in caplog.text
    assert ssldet.load(out / run.best["file"]).state_dict().keys() == run.detector("best").state_dict().keys()
    assert f"was that of step {step}; --weights best takes its weights" in (out / "report.html").read_text()
    assert f"at step {step} of 4" in str(run)
    with pytest.raises(ConfigError, match=r"nothing measures 'AP500' \(did you mean 'AP50'\?\)"):
        ssldet.finetune(
            "scratch", labelled, val=labelled, recipe="detection/tiny", steps=4, out=place / "no-best",
            overrides=SMALL | {"checkpoint.best_of": "AP500"},
        )  # fmt: skip
    assert not (place / "no-best").exists()
    with pytest.raises(CheckpointError, match="keeps no best weights; train with --val"):
        ssldet.evaluate(
            ssldet.finetune(
                "scratch", labelled, recipe="detection/tiny", steps=1, out=place / "no-val", overrides=SMALL
            ).path,
            labelled,
            weights="best",
        )
    with pytest.raises(ConfigError, match="this is no run folder"):
        ssldet.load(out / "weights" / "model.safetensors", "best")


def test_each_data_set_is_opened_once(labelled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ssldet.engine import sources

    opened, open_source = [], sources.open_source

    def counted(specs: tuple[str, ...], *choices: Any, **more: Any) -> Any:
        opened.append(specs)
        return open_source(specs, *choices, **more)

    monkeypatch.setattr(sources, "open_source", counted)
    images, recipe = labelled.rsplit(":", 1)[1], "detection/tiny"
    ssldet.finetune("scratch", labelled, val=labelled, recipe=recipe, steps=1, out=tmp_path / "a", overrides=SMALL)
    assert opened == [(labelled,), (labelled,)]
    ssldet.finetune(resume=tmp_path / "a", steps=2)
    assert opened == [(labelled,)] * 4
    ssldet.pretrain(images, recipe="random_query_patch/tiny", steps=1, out=tmp_path / "b", overrides=SMALL)
    assert opened == [(labelled,)] * 4 + [(images,)]


def test_the_record_runs_again_to_the_same_weights(pretrained: ssldet.Trained, place: Path) -> None:
    again = ssldet.pretrain(recipe=pretrained.path / "run.toml", out=place / "again")
    ours, theirs = pretrained.detector().state_dict(), again.detector().state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_finetuning_takes_the_architecture_and_announces_the_fresh_head(finetuned: ssldet.Trained) -> None:
    rows = json.loads((finetuned.path / "transfer.json").read_text())["rows"]
    fresh = {row["section"] for row in rows if row["outcome"] in {"fresh", "reshaped"}}
    assert fresh == {"class_head"}
    detector = finetuned.detector()
    assert detector.num_classes == 3
    assert 0 <= finetuned.results["AP"] <= 1


def test_finetuning_takes_another_number_of_queries(pretrained: ssldet.Trained, labelled: str, place: Path) -> None:
    choices = {**SMALL, "detector.num_queries": 13}
    run = pretrained.finetune(labelled, recipe="detection/tiny", steps=1, out=place / "more", overrides=choices)
    before = pretrained.detector().num_queries
    assert json.loads((run.path / "transfer.json").read_text())["queries"] == {"theirs": before, "ours": 13}
    assert run.detector().num_queries == 13 != before


@pytest.mark.parametrize(("found", "said"), [(0.2788, True), (0.25, True), (0.6, False)])
def test_a_start_that_has_learned_little_is_said(
    pretrained: ssldet.Trained, labelled: str, tmp_path: Path, caplog, found: float, said: bool
) -> None:
    start = tmp_path / "pre"
    shutil.copytree(pretrained.path, start)
    document = json.loads((start / "run.json").read_text())
    document["results"] = {"patch_iou": found, "patch_iou_constant": 0.2635}
    (start / "run.json").write_text(json.dumps(document))
    prepared = prepare_finetuning(
        start, labelled, "last", "detection/tiny", None, {"data.train": [labelled], **SMALL}, tmp_path / "fine"
    )
    caplog.clear()
    prepared.handed_over()
    assert ("Fine-tuning may find more from fresh weights" in caplog.text) == said
    assert (f"patch_iou is {found}" in caplog.text) == said


def test_the_page_of_a_run_says_what_to_cite_for_all_of_its_stages(finetuned: ssldet.Trained) -> None:
    text = (finetuned.path / "report.html").read_text()
    assert "@inproceedings{carion2020detr" in text
    assert "@inproceedings{dai2021updetr" in text


def test_finetuning_what_was_finetuned_keeps_its_class_head(
    finetuned: ssldet.Trained, labelled: str, place: Path
) -> None:
    again = finetuned.finetune(labelled, recipe="detection/tiny", steps=1, out=place / "fine2", overrides=SMALL)
    rows = json.loads((again.path / "transfer.json").read_text())["rows"]
    assert {row["outcome"] for row in rows} == {"loaded"}


def test_evaluation_is_that_of_the_run_and_of_its_results_file(
    finetuned: ssldet.Trained, labelled: str, place: Path
) -> None:
    results = place / "results.json"
    measured = finetuned.evaluate(labelled, save_predictions=results, batch_size=4, workers=0)
    assert measured["AP"] == pytest.approx(finetuned.results["AP"], abs=1e-9)
    scored = ssldet.evaluate(None, labelled, predictions=results)
    assert scored.pop("per_class") == pytest.approx(measured.pop("per_class"), abs=1e-12)
    assert scored == pytest.approx(measured, abs=1e-12)


def test_what_is_no_results_file_is_never_replaced(finetuned: ssldet.Trained, labelled: str, place: Path) -> None:
    mine = {place / "made" / "instances.json", finetuned.path / "run.json"}
    before = {path: path.read_bytes() for path in mine}
    for path in mine:
        with pytest.raises(ConfigError, match="exists, and holds no results"):
            finetuned.evaluate(labelled, save_predictions=path, workers=0)
    with pytest.raises(ConfigError, match="is a folder; call the file"):
        finetuned.evaluate(labelled, save_predictions=place, workers=0)
    image = next((place / "made" / "images").iterdir())
    before[image] = image.read_bytes()
    with pytest.raises(ConfigError, match="is one of the images"):
        ssldet.preview(place / "made" / "images", out=image, overrides=SMALL)
    assert {path: path.read_bytes() for path in before} == before
    (place / "rows.json").write_text(
        json.dumps(json.loads((place / "made" / "instances.json").read_text())["annotations"])
    )
    with pytest.raises(ConfigError, match="exists, and holds no results"):
        finetuned.evaluate(labelled, save_predictions=place / "rows.json", workers=0)
    twice = place / "twice.json"
    for _ in range(2):
        finetuned.evaluate(labelled, save_predictions=twice, workers=0)


def test_what_a_run_would_do_in_silence_is_said_or_refused(
    labelled: str, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def prepare(data: str, **changes: object) -> None:
        named = SMALL | {"data.train": (data,)} | {name.replace("__", "."): value for name, value in changes.items()}
        prepare_finetuning(None, data, "last", "detection/tiny", None, named, place / "never")

    prepare(labelled, data__val=(labelled,))
    assert "12 of 12 images of data.val are among those that are trained on" in caplog.text
    with pytest.raises(ConfigError, match=r"num_classes=7: fine-tuning takes the classes of the data, which are 3"):
        prepare(labelled, detector__num_classes=7)
    prepare(labelled, detector__num_classes=3)
    empty = json.loads((place / "made" / "instances.json").read_text()) | {"annotations": []}
    (place / "empty.json").write_text(json.dumps(empty))
    with pytest.raises(ConfigError, match="has classes and not one object to learn from"):
        prepare(f"coco:{place}/empty.json:{place}/made/images")
    assert not (place / "never").exists()


def test_every_patch_that_is_looked_for_can_be_read(pretrained: ssldet.Trained, place: Path) -> None:
    bad = [place / "zero.jpg", place / "cut.png"]
    bad[0].write_bytes(b"")
    image = next((place / "made" / "images").iterdir())
    bad[1].write_bytes(image.read_bytes()[:300])
    with pytest.raises(DataError) as raised:
        pretrained.predict(image, query=[str(image), *map(str, bad)], out=place / "no-answers")
    lines = [line.partition(": can't be used")[0] for line in str(raised.value).splitlines()]
    assert sorted(lines) == sorted(f"--query {path}" for path in bad)
    assert not (place / "no-answers").exists()


def test_the_metric_is_a_choice(finetuned: ssldet.Trained, labelled: str, place: Path) -> None:
    results = place / "results-voc.json"
    measured = finetuned.evaluate(labelled, save_predictions=results, workers=0, metric="voc")
    scored = ssldet.evaluate(None, labelled, predictions=results, metric="voc", iou=0.5)
    assert scored == measured
    assert set(scored) == {"voc07_ap", "voc_ap", "per_class"}
    fewer = finetuned.evaluate(labelled, workers=0, max_dets=2)
    assert fewer["AR2"] <= finetuned.results["AR10"]
    assert "AR10" not in fewer
    with pytest.raises(ConfigError, match="--iou goes with --predictions"):
        finetuned.evaluate(labelled, iou=0.6)


def test_labels_follow_class_names_not_numbers(finetuned: ssldet.Trained, labelled: str, place: Path) -> None:
    truth = json.loads((place / "made" / "instances.json").read_text())
    names = [category["name"] for category in truth["categories"]]
    for category, name in zip(truth["categories"], reversed(names), strict=True):
        category["name"] = name
    turned = {category["name"]: category["id"] for category in truth["categories"]}
    old = {name: number for number, name in enumerate(names, start=1)}
    back = {number: turned[name] for name, number in old.items()}
    for annotation in truth["annotations"]:
        annotation["category_id"] = back[annotation["category_id"]]
    (place / "turned.json").write_text(json.dumps(truth))
    again = finetuned.evaluate(f"coco:{place}/turned.json:{place}/made/images", workers=0)
    here = finetuned.evaluate(labelled, workers=0)
    assert again["per_class"] == pytest.approx(here["per_class"], abs=1e-9)
    for category in truth["categories"]:
        category["name"] += "-unknown"
    (place / "strange.json").write_text(json.dumps(truth))
    with pytest.raises(DataError, match="no class in common"):
        finetuned.evaluate(f"coco:{place}/strange.json:{place}/made/images", workers=0)


def test_validation_may_count_the_classes_otherwise_but_must_name_the_same(
    pretrained: ssldet.Trained, labelled: str, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    truth = json.loads((place / "made" / "instances.json").read_text())
    truth["categories"].reverse()
    (place / "reversed.json").write_text(json.dumps(truth))
    val = f"coco:{place}/reversed.json:{place}/made/images"
    chosen = {**SMALL, "data.fraction": 0.5, "data.fraction_seed": 1}
    results = []
    for number, spec in enumerate((labelled, val)):
        out = place / f"half{number}"
        run = pretrained.finetune(labelled, val=spec, recipe="detection/tiny", steps=2, out=out, overrides=chosen)
        results.append(run.results["per_class"])
    assert results[0] == pytest.approx(results[1], abs=1e-9)
    assert "6 images" in (out / "train.log").read_text()
    assert run.run.data.fraction == 0.5
    assert "12 of 12 images of data.val lie where" in caplog.text
    assert "although no label was read" in caplog.text
    truth["categories"][0]["name"] = "comet"
    (place / "comet.json").write_text(json.dumps(truth))
    val = f"coco:{place}/comet.json:{place}/made/images"
    with pytest.raises(DataError, match=r"data.val lacks .* and has in addition comet"):
        pretrained.finetune(labelled, val=val, recipe="detection/tiny", steps=1, out=place / "no", overrides=SMALL)
    assert not (place / "no").exists()
    before = (out / "run.json").read_bytes()
    with pytest.raises(DataError, match=r"data.val lacks .* and has in addition comet"):
        ssldet.finetune(resume=out, val=val, steps=3)
    assert (out / "run.json").read_bytes() == before
    caplog.clear()
    ssldet.finetune(resume=out, val=labelled, steps=3)
    assert "6 of 12 images of data.val are among those that are trained on" in caplog.text


@pytest.mark.parametrize("best", ["x", [1], {"measure": None, "value": "a", "step": None}, {"step": 1}, {"value": 0.5}])
def test_a_damaged_record_of_the_best_weights_counts_as_none(
    best: object, finetuned: ssldet.Trained, tmp_path: Path
) -> None:
    shutil.copytree(finetuned.path, tmp_path / "run")
    document = json.loads((finetuned.path / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(document | {"best": best, "results": [1]}))
    damaged = ssldet.Trained(tmp_path / "run")
    assert (damaged.best, damaged.results) == (None, {})
    assert damaged.detector().num_classes == damaged.detector("best").num_classes == 3
    assert str(damaged).startswith(str(damaged.path))


def test_classes_without_names_are_taken_by_number_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    labels = torch.tensor([0, 1, 2])
    found = Detections(boxes=torch.zeros(3, 4), scores=torch.ones(3), labels=labels)
    assert translation([], ["cat", "dog"], 3)(found).labels.tolist() == [0, 1]
    assert len(caplog.messages) == 1
    assert "0 is cat, 1 is dog; it has 3 classes and the data 2; if that is wrong" in caplog.text
    caplog.clear()
    assert translation([], ["cat", "dog"])(found).labels.tolist() == [0, 1, 2]
    assert translation(["dog", "cat"], ["cat", "dog"], 2)(found.only(labels < 2)).labels.tolist() == [1, 0]
    assert not caplog.messages


def test_segmentations_follow_class_names_too() -> None:
    answer = Segmentation(segments=torch.tensor([[1, 2, 3, 0]]), labels=torch.tensor([1, 2, 0]))
    nothing = Detections(boxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0).long())
    translate = translation(["cup", "wall", "sky"], ["sky", "floor", "cup"])
    found = translate(replace(nothing, segmentation=answer)).segmentation
    assert found is not None
    assert found.labels.tolist() == [0, 2]
    assert found.segments.tolist() == [[0, 1, 2, 0]]


def test_predictions_are_pictures_and_coco_results(
    finetuned: ssldet.Trained, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read: list[int] = []
    original = ImageSource.__getitem__
    monkeypatch.setattr(ImageSource, "__getitem__", lambda source, index: read.append(index) or original(source, index))
    answer = finetuned.predict(place / "made" / "images", out=place / "seen")
    assert answer["images"] == 12
    assert read == list(range(12)), "every image is decoded once"
    assert len(list((place / "seen").glob("*.png"))) == 12
    rows = json.loads((place / "seen" / "predictions.json").read_text())
    assert {"image_id", "category_id", "category", "bbox", "score"} == rows[0].keys()
    assert not caplog.messages
    one = sorted((place / "made" / "images").iterdir())[0]
    assert finetuned.predict(one, out=place / "seen")["images"] == 1
    assert caplog.messages == [
        f"{place / 'seen' / 'predictions.json'}: is that of an earlier prediction and will be replaced, while pictures "
        "of other images stay; choose another --out"
    ]
    assert len(list((place / "seen").glob("*.png"))) == 12


def test_a_prediction_is_never_drawn_over_an_image_of_the_user(finetuned: ssldet.Trained, tmp_path: Path) -> None:
    write_shapes(tmp_path, images=3, seed=5)
    document, own = json.loads((tmp_path / "instances.json").read_text()), tmp_path / "own"
    own.mkdir()
    for row in document["images"]:
        with Image.open(tmp_path / "images" / row["file_name"]) as image:
            image.save(own / f"{row['id']}.png")
        row["file_name"] = f"{row['id']}.png"
    (tmp_path / "own.json").write_text(json.dumps(document))
    spec, first = f"coco:{tmp_path}/own.json:{own}", own / f"{document['images'][0]['id']}.png"
    before = {path: path.read_bytes() for path in own.iterdir()}
    with pytest.raises(ConfigError, match=r"is one of the images, and so are 2 more; choose another --out"):
        finetuned.predict(spec, out=own)
    # Also where the picture has the name of another one, or of a link to an image.
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / first.name).symlink_to(first)
    with pytest.raises(ConfigError, match=r"mixed/.*: is one of the images; choose"):
        finetuned.predict(spec, out=tmp_path / "mixed")
    (tmp_path / "mixed" / first.name).unlink()
    Image.new("RGB", (9, 7)).save(tmp_path / "mixed" / f"{first.name}.png")
    with pytest.raises(ConfigError, match=r"ssldet did not draw it; choose another --out"):
        finetuned.predict(own, out=tmp_path / "mixed")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "predictions.json").write_text('{"mine": 1}')
    with pytest.raises(ConfigError, match=r"predictions.json: exists, and holds no results"):
        finetuned.predict(own, out=tmp_path / "other")
    assert {path: path.read_bytes() for path in own.iterdir()} == before
    assert finetuned.predict(own, out=own, draw=False)["images"] == 3


def test_a_patch_is_looked_for_by_whom_was_taught_to(
    pretrained: ssldet.Trained, finetuned: ssldet.Trained, place: Path
) -> None:
    patch = place / "patch.png"
    Image.effect_noise((15, 9), 80).convert("RGB").save(patch)
    answer = pretrained.predict(place / "made" / "images", query=str(patch), out=place / "found")
    assert {row["category"] for row in answer["predictions"]} == {"patch.png"}
    with pytest.raises(ConfigError, match="this one was taught by detection"):
        finetuned.predict(place / "made" / "images", query=str(patch))
    with pytest.raises(ConfigError, match="add --query"):
        pretrained.predict(place / "made" / "images")


def test_a_damaged_image_is_gone_round_on_the_whole_road(pretrained: ssldet.Trained, place: Path) -> None:
    folder = place / "damaged"
    folder.mkdir()
    whole = sorted((place / "made" / "images").glob("*.jpg"))[:5]
    for number, path in enumerate(whole):
        content = path.read_bytes()
        (folder / path.name).write_bytes(content[: len(content) // 2] if number == 0 else content)
    mild = {**SMALL, "data.max_bad_fraction": 0.5}
    recipe = "random_query_patch/tiny"
    run = ssldet.pretrain(folder, recipe=recipe, val=folder, steps=2, out=place / "around", overrides=mild)
    assert whole[0].name in (run.path / "quarantine.jsonl").read_text()
    answer = pretrained.predict(folder, query=str(whole[1]), out=place / "around-found")
    assert answer["images"] == 4
    assert list(answer["unreadable"].values()) == ["truncated"]
    assert whole[0].name in next(iter(answer["unreadable"]))
    assert run.results["unreadable"] == answer["unreadable"]
    assert ssldet.evaluate(run.path, str(folder), workers=0)["unreadable"] == answer["unreadable"]
    assert not (place / "around-found" / f"{whole[0].name}.png").exists()
    (run.path / "run.toml").write_text("seed = [", encoding="utf-8")
    again = ssldet.pretrain(resume=run.path)
    assert again.run.seed == 0, "the record is written anew from the checkpoint"


def test_export_comes_back_as_a_start(finetuned: ssldet.Trained, labelled: str, place: Path) -> None:
    proof = finetuned.export("safetensors", place / "out.safetensors")
    assert "max |Δ|" in str(proof)
    again = ssldet.evaluate(place / "out.safetensors", labelled, workers=0)
    assert again["AP"] == finetuned.evaluate(labelled, workers=0)["AP"]


def test_preview_draws_and_measures(place: Path) -> None:
    seen = ssldet.preview(place / "made" / "images", out=place / "preview.png", count=3, overrides=SMALL)
    with Image.open(place / "preview.png") as picture:
        assert picture.width > 300
    assert {"template_iou", "constant_iou"} == seen.probe.keys() == seen.meanings.keys()
    assert seen.to_json()["meanings"] == seen.meanings
    _, first, second, last = str(seen).splitlines()
    assert first == f"template_iou  {seen.probe['template_iou']:.3f}  {seen.meanings['template_iou']}"
    assert "one box for all of them" in second
    told = "these numbers are measured before any training, and do not tell whether training will succeed"
    assert last == f"{told}; {seen.advice}"
    command = f"ssldet pretrain {place / 'made' / 'images'} --recipe random_query_patch/small --steps 300"
    assert command in seen.advice
    assert "patch_iou on held-out images" in seen.advice
    findings = {one.subject: one for one in doctor([str(place / "made" / "images")]).findings}
    for name, meaning in seen.meanings.items():
        assert (findings[name].ok, findings[name].remedy) == (None, "")
        assert findings[name].detail.endswith(f"{meaning}; no forecast")
    assert (findings["forecast"].detail, findings["forecast"].ok) == (told, None)
    assert command in findings["forecast"].remedy


def test_a_preview_of_a_task_with_boxes_alone_draws_and_names_them(labelled: str, place: Path) -> None:
    shown = ssldet.preview(labelled, task="detection", out=place / "boxes.png", overrides=SMALL, count=2)
    assert (shown.out, shown.probe) == (place / "boxes.png", {})
    with Image.open(place / "boxes.png") as picture:
        assert {colour_of(0), colour_of(1)} & {colour for _, colour in picture.getcolors(1 << 24)}
    with pytest.raises(ConfigError, match="carries no labels, which the task learns from"):
        ssldet.preview(place / "made" / "images", task="detection", out=place / "none.png")


def test_prediction_is_a_table_and_as_many_files_as_were_asked_for(
    finetuned: ssldet.Trained, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = place / "made" / "images", place / "crops"
    words = ["predict", str(finetuned.path), str(images), "--threshold", "0", "--out", str(out), "--device", "cpu"]
    cli.main([*words, "--no-draw", "--save-crops", "--set", "task.eval_scale=32"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["image", "class", "confidence", "left", "top", "width", "height"]
    assert lines[-2] == "… and 80 more"
    assert (
        lines[-1]
        == f"120 detections of confidence 0 or more in 12 images; {out} holds all 120 detections in predictions.json"
    )
    assert not list(out.glob("*.png"))
    assert 0 < len(list((out / "crops").rglob("*.png"))) <= 120
    assert {path.name for path in (out / "crops").iterdir()} <= {"circle", "square", "triangle"}


def test_compose_joins_by_name() -> None:
    run = ssldet.compose(pretext="random_query_patch/tiny", backbone="resnet18")
    assert run.detector.backbone.name == "resnet18"
    assert ssldet.compose(pretext="random_query_patch").detector.num_queries == 100
    task = override(resolve("random_query_patch/tiny"), {"task.num_patches": 5}).task
    assert ssldet.compose(pretext=task) == replace(resolve("random_query_patch/r50"), task=task)


def test_a_task_gets_the_run_of_its_own_recipes() -> None:
    task = override(resolve("moco_v2/tiny"), {"task.temperature": 0.3}).task
    assert ssldet.compose(pretext=task) == replace(resolve("moco_v2/r50"), task=task)


@dataclass(frozen=True, kw_only=True)
class Unrecorded(RandomQueryPatch):
    """A task that no package registers."""


def test_a_task_without_recipes_gets_defaults_and_says_what_is_missing(place: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"Unrecorded' has no recipe to take a detector from; give compose a detector"
    ):
        ssldet.compose(pretext=Unrecorded())
    run = ssldet.compose(pretext=Unrecorded(), detector=SMALL_DETR, backbone="tiny")
    assert run.optim == OptimConfig()
    assert (run.detector.width, run.detector.backbone.name) == (24, "tiny")
    with pytest.raises(ConfigError, match=r"set budget\.epochs or budget\.steps"):
        ssldet.pretrain(place / "made" / "images", recipe=run, out=place / "unrecorded")


def test_an_occupied_folder_and_an_unfinished_run_are_told_apart(pretrained: ssldet.Trained, place: Path) -> None:
    images = place / "made" / "images"
    with pytest.raises(ConfigError, match="holds a run already"):
        ssldet.pretrain(images, recipe="random_query_patch/tiny", steps=3, out=pretrained.path, overrides=SMALL)
    with pytest.raises(CheckpointError, match="neither a run folder"):
        ssldet.load(place / "made")
