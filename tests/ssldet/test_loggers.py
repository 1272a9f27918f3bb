"""Loggers get every number, and whatever they do, the run goes on with all of it in metrics.jsonl."""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import ssldet
from downstream.annotations.shapes import write_shapes
from ssldet import registry
from ssldet.errors import ConfigError, SetupError
from ssldet.loggers.base import LoggedRun, Loggers, require_loggers

SMALL = {"data.batch_size": 4, "data.workers": 0, "device": "cpu", "log_every": 1, "checkpoint.every_steps": 1}
RECIPE = "random_query_patch/tiny"


class Recorder:
    """Records what it gets, and fails where it is told to."""

    made: list["Recorder"]
    fails_at: str

    def __init__(self, run: LoggedRun) -> None:
        self.run, self.points, self.closed = run, list[tuple[int, dict[str, float]]](), 0
        type(self).made.append(self)
        self._act("open")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._act("log")
        self.points.append((step, dict(values)))

    def close(self) -> None:
        self.closed += 1
        self._act("close")

    def _act(self, name: str) -> None:
        if self.fails_at == name:
            raise RuntimeError(f"no {name}")


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> dict[str, type[Recorder]]:
    known = {
        name: type(name, (Recorder,), {"made": [], "fails_at": name.partition("-")[2]})
        for name in ("sound", "bad-open", "bad-log", "bad-close")
    }
    find = registry.find
    monkeypatch.setattr(
        registry, "find", lambda group, name: known[name] if group == "ssldet.loggers" else find(group, name)
    )
    return known


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logged")
    write_shapes(folder / "made", images=20, seed=3)
    return folder / "made" / "images"


def _told(folder: Path, step: int = 0, run_id: str = "abc") -> LoggedRun:
    settings = {"seed": 0, "data.train": ["photos"], "task.name": "x" * 900}
    return LoggedRun(folder=folder, id=run_id, step=step, settings=settings)


def test_numbers_arrive_by_path_and_what_is_no_number_does_not(kinds: Any, tmp_path: Path) -> None:
    loggers = Loggers(["sound", "sound"], _told(tmp_path))
    loggers.log({"kind": "train", "step": 3, "loss": 1.5, "loss/box": 2, "epoch": float("nan")})
    loggers.log({"kind": "eval", "step": 4, "AP": 0.5, "per_class": {"cat": 0.25, "dog": None}, "fine": True, "a": "b"})
    loggers.close()
    (made,) = kinds["sound"].made
    assert made.points == [
        (3, {"train/loss": 1.5, "train/loss/box": 2.0}),
        (4, {"eval/AP": 0.5, "eval/per_class/cat": 0.25}),
    ]
    assert made.closed == 1


def test_one_that_fails_is_said_once_and_costs_nothing(
    kinds: Any, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["bad-open", "bad-log", "sound", "bad-close"]
    run = ssldet.pretrain(images, recipe=RECIPE, steps=2, out=tmp_path / "run", overrides={**SMALL, "loggers": names})
    assert run.to_json()["status"] == "finished"
    lines = [(line["kind"], line["step"]) for line in run.metrics]
    for name in ("sound", "bad-close"):
        (made,) = kinds[name].made
        assert [step for step, _ in made.points] == [step for _, step in lines]
        assert made.run.settings["loggers"] == names
    for name, reason in (("bad-open", "no open"), ("bad-log", "no log"), ("bad-close", "no close")):
        assert caplog.text.count(f"logger {name} failed and is left out (RuntimeError: {reason})") == 1


def test_what_is_unknown_or_missing_is_said_before_anything_is_written(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices: dict[str, Any] = {"recipe": RECIPE, "steps": 1, "out": tmp_path / "run"}
    with pytest.raises(ConfigError, match="did you mean 'tensorboard'"):
        ssldet.pretrain(images, **choices, overrides={**SMALL, "loggers": "tensorbord"})
    monkeypatch.setattr("ssldet.loggers.base.find_spec", lambda _: None)
    with pytest.raises(SetupError, match=r"logger wandb needs wandb; pip install 'ssldet\[wandb\]'"):
        ssldet.pretrain(images, **choices, overrides={**SMALL, "loggers": "wandb"})
    assert not (tmp_path / "run").exists()
    require_loggers([])


@pytest.mark.filterwarnings("ignore")  # of TensorBoard's own libraries
def test_tensorboard_shows_what_the_file_says_also_after_resuming(images: Path, tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    choices = {**SMALL, "loggers": "tensorboard", "optim.schedule": "constant"}
    ssldet.pretrain(images, recipe=RECIPE, steps=1, out=tmp_path / "run", overrides=choices)
    run = ssldet.pretrain(resume=tmp_path / "run", steps=2)
    shown = events.EventAccumulator(str(run.path / "tensorboard"))
    shown.Reload()
    for tag, kind, name in (("train/loss", "train", "loss"), ("eval/patch_iou", "eval", "patch_iou")):
        written = [(line["step"], line[name]) for line in run.metrics if line["kind"] == kind]
        assert [(point.step, pytest.approx(point.value)) for point in shown.Scalars(tag)] == written


def test_wandb_is_offline_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    asked: dict[str, Any] = {}
    points: list[Any] = []
    run = SimpleNamespace(log=lambda values, step: points.append((step, values)), finish=lambda: points.append("end"))
    stub = ModuleType("wandb")
    stub.init = lambda **choices: asked.update(choices) or run  # type: ignore[attr-defined]
    stub.Settings = lambda **choices: choices  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", stub)
    from ssldet.loggers.wandb import WeightsAndBiases

    logger = WeightsAndBiases(_told(tmp_path, step=5))
    logger.log(6, {"train/loss": 1.0})
    logger.close()
    assert (asked["mode"], asked["id"], asked["resume"], asked["dir"]) == ("offline", "abc", "allow", str(tmp_path))
    assert points == [(6, {"train/loss": 1.0}), "end"]
    monkeypatch.setenv("WANDB_MODE", "online")
    WeightsAndBiases(_told(tmp_path))
    assert asked["mode"] == "online"


class Client:
    """What `ssldet.loggers.mlflow` calls of a client."""

    runs: list[Any]
    points: list[Any]

    def __init__(self, tracking_uri: str) -> None:
        self.place = tracking_uri

    def get_experiment_by_name(self, _: str) -> None:
        return None

    def create_experiment(self, name: str) -> str:
        return name

    def search_runs(self, _: list[str], wanted: str) -> list[Any]:
        return [run for run in type(self).runs if f"'{run.tag}'" in wanted]

    def create_run(self, _: str, *, run_name: str, tags: Mapping[str, str]) -> Any:
        made = SimpleNamespace(tag=tags["ssldet.id"], info=SimpleNamespace(run_id=f"r{len(type(self).runs)}"))
        type(self).runs.append(made)
        return made

    def update_run(self, *_: Any, **__: Any) -> None:
        type(self).points.append("goes on")

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        type(self).points += [(run_id, *metric[:2], metric[3]) for metric in metrics]
        assert all(len(value) <= 500 for _, value in params)

    def set_terminated(self, run_id: str) -> None:
        type(self).points.append(f"{run_id} ends")


def test_mlflow_goes_on_with_the_entry_of_a_resumed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Client.runs, Client.points = [], []
    for name, parts in {
        "mlflow": {},
        "mlflow.entities": {"Metric": lambda *parts: parts, "Param": lambda *parts: parts},
        "mlflow.tracking": {"MlflowClient": Client},
    }.items():
        stub = ModuleType(name)
        vars(stub).update(parts)
        monkeypatch.setitem(sys.modules, name, stub)
    from ssldet.loggers.mlflow import MLflow

    for step in (0, 1):
        logger = MLflow(_told(tmp_path, step=step))
        logger.log(step + 1, {"eval/per_class/a:b": 0.5})
        logger.close()
    MLflow(_told(tmp_path, run_id="other"))
    name = "eval/per_class/a_b"
    assert Client.points == [("r0", name, 0.5, 1), "r0 ends", "goes on", ("r0", name, 0.5, 2), "r0 ends"]
    assert len(Client.runs) == 2
