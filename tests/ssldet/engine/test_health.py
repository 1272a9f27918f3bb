"""Health of a pretext run: what is measured of images, when it is written, and which figures are an alarm."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ssldet.collapse import effective_rank
from ssldet.engine.assemble import assemble
from ssldet.engine.health import Health, unreached
from ssldet.engine.symptoms import collapse
from ssldet.recipe import override
from ssldet.source import WrappedSource
from ssldet.verbs.choosing import resolve


class InFolders(WrappedSource):
    """Fake images that lie in folders by turns."""

    def path_of(self, index: int) -> Path:
        return Path("cats" if self.inner(index) % 3 else "dogs") / f"{index}.jpg"


def lines_of(path: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def test_the_vectors_are_those_of_backbone_and_decoder(fakes: ModuleType) -> None:
    source = InFolders(fakes.FakeSource(20, bad=(3,)))
    torch.manual_seed(0)
    objective = fakes.FakeTask().objective(fakes.FakeDetectorConfig().build())
    figures = Health(fakes.a_run(health=10), source).measure(objective, torch.device("cpu"))
    seen = [source[number].image for number in range(0, 20, 2)]
    with torch.no_grad():
        objective.eval()
        images = objective.detector.normalise(torch.stack(seen))
        features = objective.detector.features(images).mean((2, 3))
        states = objective.detector(images).states[-1].mean(1)
    assert figures["rank_backbone"] == pytest.approx(float(effective_rank(features)), rel=1e-4)
    assert figures["rank_decoder"] == pytest.approx(float(effective_rank(states)), rel=1e-4)
    assert figures["images"] == 10
    assert figures["knn_chance"] == pytest.approx(0.6)
    assert 0 <= figures["knn_decoder"] <= 1
    # An image that can't be read is left out, and the others keep their folders.
    rest = Health(fakes.a_run(health=20), source).measure(objective, torch.device("cpu"))
    assert rest["images"] == 19
    assert rest["knn_chance"] == pytest.approx(13 / 19)


def test_images_that_are_no_files_have_no_neighbours(fakes: ModuleType) -> None:
    objective = fakes.FakeTask().objective(fakes.FakeDetectorConfig().build())
    health = Health(fakes.a_run(health=9), fakes.FakeSource(30))
    assert not any(name.startswith("knn") for name in health.measure(objective, torch.device("cpu")))
    assert not Health(fakes.a_run(health=0), fakes.FakeSource(30)).on
    assert not Health(fakes.a_run(health=200), fakes.FakeSource(5)).on


def test_a_run_is_checked_beside_its_evaluations(
    fakes: ModuleType, train: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    run = override(fakes.a_run(), {"budget.steps": 6, "evaluate_every": 3, "health": 9})
    train(tmp_path / "on", run)
    assert [line["step"] for line in lines_of(tmp_path / "on", "health")] == [0, 3, 6]
    train(tmp_path / "off", override(run, {"health": 0}))
    assert lines_of(tmp_path / "off", "health") == []
    on, off = ([line["loss"] for line in lines_of(tmp_path / name, "train")] for name in ("on", "off"))
    assert on == off


def test_parameters_that_no_loss_reaches_are_named_once(
    fakes: ModuleType,
    train: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    objective = fakes.FakeTask().objective(fakes.FakeDetectorConfig().build())
    objective.detector.spare = torch.nn.Linear(2, 3)
    run = override(fakes.a_run(), {"budget.steps": 3, "log_every": 1, "health": 0})
    with caplog.at_level(logging.WARNING, logger="ssldet"):
        train(tmp_path / "run", run, objective=objective)
    (said,) = [record.getMessage() for record in caplog.records if "no loss reaches" in record.getMessage()]
    assert "detector.spare.weight; detector.spare.bias" in said
    assert "scale.bias" in said
    assert {"detector.spare.weight", "scale.bias"} <= set(unreached(objective))


def check(step: int, **figures: float) -> dict[str, Any]:
    return {"kind": "health", "step": step, "images": 100, **figures}


START = check(0, rank_backbone=12.0, rank_decoder=2.0, knn_backbone=0.5, knn_chance=0.4)


@pytest.mark.parametrize(
    ("last", "done", "words"),
    [
        ({"rank_backbone": 11.0, "rank_decoder": 1.02}, 0.1, "to the decoder all images look the same"),
        ({"rank_backbone": 2.9, "rank_decoder": 2.0}, 0.1, "fell from 12.0 to 2.9, to less than a quarter"),
        ({"rank_backbone": 9.0, "knn_backbone": 0.48, "knn_chance": 0.4}, 0.5, "0.48 of the images, where"),
    ],
)
def test_figures_of_a_collapse_are_said_with_the_reason(last: dict[str, float], done: float, words: str) -> None:
    (clause,) = collapse([START, check(9, **last)], done)
    assert words in clause


def test_a_healthy_run_hears_nothing() -> None:
    assert collapse([], 1.0) == []
    assert collapse([START], 0.0) == []
    assert (
        collapse([START, check(9, rank_backbone=3.1, rank_decoder=1.2, knn_backbone=0.51, knn_chance=0.4)], 1.0) == []
    )
    assert collapse([START, check(9, rank_backbone=9.0, knn_backbone=0.4, knn_chance=0.4)], 0.4) == []
    # Asked without its patches a decoder may answer alike; if it finds them when asked, it sees.
    assert collapse([START, check(9, rank_backbone=12.0, rank_decoder=1.0)], 0.5, finds=True) == []


def test_one_direction_holds_all_but_two_hundredths_at_the_threshold() -> None:
    rows = torch.zeros(100, 5)
    rows[:50, 0], rows[50:, 1] = 0.98, 0.02
    assert float(effective_rank(rows)) == pytest.approx(1.1, abs=0.01)


def test_a_decoder_that_rests_is_not_judged(fakes: ModuleType) -> None:
    run = resolve("distillation/tiny")
    objective = assemble(run, fakes.FakeSource(8))
    figures = Health(override(run, {"health": 8}), fakes.FakeSource(8)).measure(objective, torch.device("cpu"))
    assert "rank_backbone" in figures
    assert "rank_decoder" not in figures
