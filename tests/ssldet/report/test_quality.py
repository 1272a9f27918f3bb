import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ssldet.findings import Example, Findings
from ssldet.report.examples import COLOURS, SIDE, draw_example, with_pictures
from ssldet.report.page import write_report
from ssldet.report.record import read_record
from ssldet.report.story import verdict_on

RECIPE = "[task]\nname = 'detection'\n[data]\nval = ['coco:val']\n[optim]\nlr = 0.1\n[budget]\nsteps = 9\n"
CURVE = [1 - place / 100 for place in range(101)]


def _run(folder: Path, ap: float = 0.3, *, transferred: bool = False, **findings: Any) -> Path:
    (folder / "examples").mkdir(parents=True)
    Image.new("RGB", (40, 40), (9, 90, 9)).save(folder / "examples" / "00-found.png")
    told = {
        "objects": 420,
        "baseline": {"AP": 0.1},
        "balance": {"score": 0.4, "recall": 0.8, "precision": 0.9},
        "errors": [{"kind": "class", "meaning": "good box, wrong class", "count": 12, "cost": 0.085}],
        "curves": {"all classes, overlap 0.50": CURVE},
        "classes": {"ace": 300, "king": 120, "joker": 0},
        "sizes": {"small": 0, "medium": 20, "large": 400},
        "examples": [
            {"outcome": "found", "name": "ace", "score": 0.9, "overlap": 0.75, "picture": "00-found.png"},
            {"outcome": "false", "name": "king", "score": 0.7, "error": "is ace", "picture": "../../../secret.png"},
        ],
    }
    (folder / "findings.json").write_text(json.dumps(told | findings))
    per_class = {"king": 0.35, "ace": 0.45, "joker": -1.0}
    results = {"AP": ap, "APs": -1.0, "APm": 0.2, "APl": 0.5, "per_class": per_class}
    status = {"status": "finished", "steps": 9, "results": results, "measured_on": ["coco:val"]}
    (folder / "run.json").write_text(json.dumps(status))
    (folder / "run.toml").write_text(RECIPE)
    if transferred:
        (folder / "transfer.json").write_text(json.dumps({"rows": [{"section": "backbone"}]}))
    return folder


def test_the_page_says_at_a_glance_how_good_it_is_and_compared_with_what(tmp_path: Path) -> None:
    text = write_report(_run(tmp_path / "cards")).read_text()
    head = text[text.index("<header>") : text.index("</header>")]
    assert "It finds most objects, and most detections are right." in head
    assert "finds 80% of the objects, and 90% of its detections are right" in head
    assert "AP is 30.0; boxes that are the same in every image would reach 10.0." in head
    assert '<div class="verdict good">' in head


def test_damaged_findings_read_as_empty(tmp_path: Path) -> None:
    folder = _run(tmp_path / "cards")
    findings = json.loads((folder / "findings.json").read_text())
    findings["examples"] = [{"outcome": ["found"]}, {"outcome": {}}, findings["examples"][0]]
    (folder / "findings.json").write_text(json.dumps(findings))
    assert "ace 0.90" in write_report(folder).read_text()


def test_the_sections_show_what_was_found_and_what_it_costs(tmp_path: Path) -> None:
    text = write_report(_run(tmp_path / "cards")).read_text()
    assert "8.5 points, 12 times" in text
    assert "ace 0.90, IoU\N{NO-BREAK SPACE}0.75" in text
    assert "king 0.70, is ace (the picture can't be read)" in text
    assert "Nothing was missed." in text
    classes = text[text.index("<h2>Classes") : text.index("<h2>Sizes")]
    assert [classes.index(word) for word in (">ace<", ">king<", ">joker<")] == sorted(
        classes.index(word) for word in (">ace<", ">king<", ">joker<")
    )
    assert "300 objects" in classes
    assert "\N{EN DASH} stands for classes without an object" in classes
    assert "-1" not in classes
    assert "Precision and recall" in text
    assert "Results: per class" not in text


@pytest.mark.parametrize(
    ("ap", "findings", "grade", "words"),
    [
        (0.1, {}, "bad", "No better than boxes that are the same in every image"),
        (0.3, {"balance": {"score": 0.4, "recall": 0.5, "precision": 0.5}}, "so", "about half of the objects"),
        (0.3, {"balance": {"score": 0.4, "recall": 0.5, "precision": 0.05}}, "bad", "few detections are right"),
        (0.3, {"balance": {"score": 0.4, "recall": 0.66, "precision": 0.73}}, "so", "about two thirds of the objects"),
        (0.3, {"balance": {"score": 0.4, "recall": 0.66, "precision": 0.73}}, "so", "three quarters of its detections"),
        (0.3, {"balance": {}, "baseline": {}}, "", ""),
        (0.3, {"balance": {}, "baseline": {"AP": "x"}}, "", ""),
    ],
)
def test_a_verdict_follows_from_the_figures(
    tmp_path: Path, ap: float, findings: dict[str, Any], grade: str, words: str
) -> None:
    folder = _run(tmp_path / "cards", ap, **findings)
    verdict = verdict_on(read_record(folder), folder)
    assert verdict.grade == grade
    assert words in verdict.sentence


def test_a_pretext_task_is_compared_with_what_needs_no_learning(tmp_path: Path) -> None:
    for value, words in ((0.2, "No better"), (0.27, "Hardly"), (0.4, "far from perfect"), (0.8, "Much better")):
        results = {"patch_iou": value, "patch_iou_constant": 0.25}
        (tmp_path / "run.json").write_text(json.dumps({"results": results}))
        verdict = verdict_on(read_record(tmp_path), tmp_path)
        assert words in verdict.sentence
        assert verdict.comparisons[0][1] == "0.2500"


def test_few_objects_are_said(tmp_path: Path) -> None:
    folder = _run(tmp_path / "cards", objects=57)
    assert "57 objects only" in " ".join(verdict_on(read_record(folder), folder).reasons)


def test_the_same_training_from_another_start_is_found_beside_the_run(tmp_path: Path) -> None:
    folder = _run(tmp_path / "pretrained", 0.3, transferred=True)
    scratch = _run(tmp_path / "scratch", 0.2)
    shutil.copytree(scratch, tmp_path / "longer")
    (tmp_path / "longer" / "run.toml").write_text(RECIPE.replace("steps = 9", "steps = 99"))
    _run(tmp_path / "pretrained-too", 0.9, transferred=True)
    (reason,) = [line for line in verdict_on(read_record(folder), folder).reasons if "scratch" in line]
    assert reason == "The same from fresh weights (scratch): AP 20.0, 10.0 less than this run."
    (reason,) = [line for line in verdict_on(read_record(scratch), scratch).reasons if "pretrained" in line]
    assert reason.startswith("The same from pretrained weights (pretrained, pretrained-too): AP 60.0, 40.0 more")


HOSTILE: list[Any] = [None, 3, "x", [], {}, [None], {"a": None}, {"AP": []}, [{"outcome": "found"}], float("inf")]


@pytest.mark.parametrize("value", HOSTILE)
def test_findings_of_any_form_still_give_a_page(tmp_path: Path, value: Any) -> None:
    names = ("objects", "baseline", "balance", "errors", "curves", "classes", "sizes", "examples")
    text = write_report(_run(tmp_path / "cards", **dict.fromkeys(names, value))).read_text()
    assert "Training" in text or "Results" in text


def test_an_example_is_cut_out_with_its_surroundings_and_framed() -> None:
    image = torch.full((3, 60, 90), 128, dtype=torch.uint8)
    detected, true = (40.0, 20.0, 60.0, 40.0), (42.0, 21.0, 62.0, 41.0)
    example = Example(outcome="found", key="a", name="ace", detected=detected, object=true, score=0.9, overlap=0.7)
    picture = draw_example(image, example)
    assert picture.size == (SIDE, SIDE)
    colours = {colour for _, colour in picture.getcolors(10**6)}
    assert {COLOURS["found"], (255, 255, 255), (128, 128, 128)} <= colours


@pytest.mark.parametrize("box", [(-50.0, -50.0, -20.0, -20.0), (5.0, 5.0, 5.0, 5.0), (-9.0, 0.0, 900.0, 60.0)])
def test_boxes_beside_the_image_can_be_drawn(box: tuple[float, float, float, float]) -> None:
    image = torch.zeros((3, 60, 90), dtype=torch.uint8)
    assert draw_example(image, Example(outcome="false", key="a", name="ace", detected=box)).size == (SIDE, SIDE)


def test_pictures_of_an_earlier_evaluation_are_replaced(tmp_path: Path) -> None:
    example = Example(outcome="missed", key="a", name="ace", object=(1.0, 1.0, 9.0, 9.0))
    image = torch.zeros((3, 60, 90), dtype=torch.uint8)
    with_pictures(Findings(figures={}, examples=[example] * 3), lambda key: image, tmp_path)
    told = with_pictures(Findings(figures={"objects": 3}, examples=[example]), lambda key: image, tmp_path)
    assert [path.name for path in (tmp_path / "examples").iterdir()] == ["00-missed.png"]
    assert told["objects"] == 3
    assert told["examples"][0]["picture"] == "00-missed.png"
    told = with_pictures(Findings(figures={}, examples=[example]), lambda key: None, tmp_path)
    assert "picture" not in told["examples"][0]
