"""A run from end to end, in a world of fakes."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

Train = Callable[..., dict[str, Any]]


def test_a_run_leaves_a_complete_folder(tmp_path: Path, fakes: ModuleType, train: Train) -> None:
    run = fakes.a_run(data__val=("fake:7",), evaluate_every=6)
    results = train(tmp_path / "a", run)
    assert results["images"] == 7
    best = json.loads((tmp_path / "a" / "run.json").read_text())["best"]["step"]
    assert best in {6, 12}
    names = {path.relative_to(tmp_path / "a").as_posix() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert names == {
        ".lock",
        "run.toml",
        "run.json",
        "metrics.jsonl",
        "train.log",
        "weights/model.safetensors",
        f"weights/best-{best:06d}.safetensors",
        "checkpoints/step-000010.ckpt",
        "checkpoints/step-000010.ckpt.sha256",
        "checkpoints/step-000012.ckpt",
        "checkpoints/step-000012.ckpt.sha256",
    }
    status = json.loads((tmp_path / "a" / "run.json").read_text())
    assert status["status"] == "finished"
    assert status["steps"] == 12
    assert status["results"] == results
    assert status["resume"].startswith("ssldet pretrain --resume ")
    lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 13))
    assert [line["step"] for line in lines if line["kind"] == "eval"] == [6, 12]
    assert {"loss/box", "loss/class", "metric/spread", "lr", "grad_norm", "data_wait", "epoch"} <= set(lines[0])
    assert lines[-2]["epoch"] == 4.8


def test_sources_that_are_open_are_not_opened_again(
    tmp_path: Path, fakes: ModuleType, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssldet.engine import sources

    run = fakes.a_run(data__val=("fake:7",), budget__steps=2)
    opened = sources.open_sources(run)
    assert (len(opened.train), opened.val is not None and len(opened.val)) == (10, 7)
    expected = train(tmp_path / "a", run)
    monkeypatch.setattr(sources, "open_source", lambda *_, **__: pytest.fail("opened again"))
    assert train(tmp_path / "b", run, sources=opened) == expected
    assert train(tmp_path / "b", run, sources=opened, resume=True) == expected


def test_a_model_is_measured_alike_in_training_and_afterwards(tmp_path: Path, fakes: ModuleType, train: Train) -> None:
    from ssldet.engine.evaluate import answers
    from ssldet.engine.folder import RunFolder
    from ssldet.engine.sources import evaluation_batches_of
    from ssldet.importing.base import Opened
    from ssldet.verbs.opening import open_model

    run = fakes.a_run(precision="bf16", data__val=("fake:7",))
    expected = train(tmp_path / "a", run)["score"]
    opened = open_model(RunFolder(tmp_path / "a").weights)
    assert opened.precision == "bf16"
    assert Opened(objective=opened.objective, task=opened.task).precision == "32"
    scores = {}
    for precision in ("32", opened.precision):
        evaluator = fakes.FakeEvaluator()
        batches = evaluation_batches_of(opened.task, fakes.FakeSource(7), batch_size=4)
        for batch, found in answers(opened.objective, batches, torch.device("cpu"), precision):
            evaluator.update(found, batch)
        scores[precision] = evaluator.results()["score"]
    assert scores["bf16"] == expected
    assert scores["32"] != expected


def test_an_objective_is_told_every_step_once_whatever_its_parts(
    tmp_path: Path, fakes: ModuleType, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(
        fakes.FakeObjective, "begin", lambda _, step, total_steps: told.append((step, total_steps)), raising=False
    )
    train(tmp_path / "a", fakes.a_run(optim__accumulate=2, budget__steps=3))
    assert told == [(0, 3), (1, 3), (2, 3)]


def test_nothing_is_said_but_our_own_lines(
    tmp_path: Path, fakes: ModuleType, train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train(tmp_path / "a", fakes.a_run())
    out, err = capsys.readouterr()
    assert out == ""
    assert all(line.startswith("FakeTask  step ") for line in err.splitlines())
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_only_the_sections_of_the_task_learn(tmp_path: Path, fakes: ModuleType, train: Train) -> None:
    run = fakes.a_run()
    objective = run.task.objective(run.detector.build())
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    train(tmp_path / "a", run, objective=objective)
    moved = {name for name, tensor in objective.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[1] for name in moved if name.startswith("detector.")} == set(run.task.learn)
    assert "scale.weight" in moved


def test_the_same_run_ends_in_the_same_bits_and_another_seed_does_not(
    tmp_path: Path, fakes: ModuleType, train: Train
) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tmp_path / name, fakes.a_run(seed=seed))
    a, b, c = (fakes.weights_of(tmp_path / name) for name in "abc")
    assert a == b
    assert a != c


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(tmp_path: Path, fakes: ModuleType, train: Train) -> None:
    for workers in (0, 2):
        train(tmp_path / str(workers), fakes.a_run(data__workers=workers))
    assert fakes.weights_of(tmp_path / "0") == fakes.weights_of(tmp_path / "2")


def test_a_batch_in_parts_makes_the_same_steps(tmp_path: Path, fakes: ModuleType, train: Train) -> None:
    for parts in (1, 2, 4):
        run = fakes.a_run(optim__accumulate=parts, budget__steps=5)
        objective = run.task.objective(run.detector.build()).eval()
        torch.manual_seed(0)
        for parameter in objective.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        for module in objective.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        train(tmp_path / str(parts), run, objective=objective)
    whole, *others = (
        [json.loads(line)["loss"] for line in (tmp_path / str(parts) / "metrics.jsonl").read_text().splitlines()]
        for parts in (1, 2, 4)
    )
    assert len(whole) == 5
    for other in others:
        assert other == pytest.approx(whole, rel=1e-4)


def test_averaged_weights_are_what_is_evaluated_and_handed_over(
    tmp_path: Path, fakes: ModuleType, train: Train
) -> None:
    run = fakes.a_run(optim__ema=0.5)
    objective = run.task.objective(run.detector.build())
    train(tmp_path / "a", run, objective=objective)
    state = torch.load(tmp_path / "a" / "checkpoints" / "step-000012.ckpt", weights_only=True)
    handed = fakes.weights_of(tmp_path / "a")
    name = "detector.box_head.weight"
    assert handed[name] == state["average"][f"module.{name}"].numpy().tobytes().hex()
    assert handed[name] != state["objective"][name].numpy().tobytes().hex()


def test_bf16_runs_and_keeps_weights_and_losses_in_32_bits(tmp_path: Path, fakes: ModuleType, train: Train) -> None:
    train(tmp_path / "a", fakes.a_run(precision="bf16"))
    state = torch.load(tmp_path / "a" / "checkpoints" / "step-000012.ckpt", weights_only=True)
    assert {tensor.dtype for tensor in state["objective"].values()} == {torch.float32}


def test_previews_are_drawn_at_the_start_the_end_and_on_the_way(
    tmp_path: Path, fakes: ModuleType, train: Train
) -> None:
    seen = []

    def draw(objective: Any, batch: Any) -> Image.Image:
        seen.append((objective.training, batch.keys))
        return Image.new("RGB", (4, 4))

    train(tmp_path / "a", fakes.a_run(preview_every=5), preview=draw)
    train(tmp_path / "b", fakes.a_run())
    names = sorted(path.name for path in (tmp_path / "a" / "previews").iterdir())
    assert names == [f"step-{step:06d}.png" for step in (0, 5, 10, 12)]
    assert seen[0] == (False, [f"image-{n}" for n in range(6)])
    assert fakes.weights_of(tmp_path / "a") == fakes.weights_of(tmp_path / "b")


def test_a_preview_that_fails_is_a_warning(
    tmp_path: Path, fakes: ModuleType, train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    def draw(objective: Any, batch: Any) -> Image.Image:
        raise ZeroDivisionError("no colour")

    train(tmp_path / "a", fakes.a_run(), preview=draw)
    assert "no preview at step 0: ZeroDivisionError: no colour" in caplog.text


def test_a_wrong_configuration_writes_nothing(tmp_path: Path, fakes: ModuleType) -> None:
    from ssldet.engine.fit import fit
    from ssldet.engine.folder import RunFolder
    from ssldet.errors import ConfigError, DataError

    with pytest.raises(ConfigError, match="can't be split into 2 equal parts"):
        fit(fakes.a_run(data__batch_size=5, optim__accumulate=2), RunFolder(tmp_path / "a"))
    with pytest.raises(DataError, match=r"max_bad_fraction=0\.091"):
        fit(fakes.a_run(data__train=("fake:10:skipped:1",)), RunFolder(tmp_path / "a"))
    assert not (tmp_path / "a").exists()


def test_an_evaluation_that_fails_never_costs_the_weights(
    tmp_path: Path, fakes: ModuleType, train: Train, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from ssldet.errors import DataError, DivergedError

    run = fakes.a_run(data__val=("fake:7",), evaluate_every=5)
    expected = train(tmp_path / "quiet", run)
    for name, error, kind in (("a", ValueError("no object"), DataError), ("b", DivergedError("a box"), DivergedError)):

        def fail(_: Any, error: Exception = error) -> Any:
            raise error

        chosen = run if kind is DataError else replace(run, evaluate_every=0)
        with monkeypatch.context() as patch:
            patch.setattr(fakes.FakeEvaluator, "results", fail)
            with pytest.raises(kind, match=rf"model\.safetensors is written, but could not be measured: {error}"):
                train(tmp_path / name, chosen)
        status = json.loads((tmp_path / name / "run.json").read_text())
        assert (status["status"], status["results"]) == ("failed" if kind is DataError else "diverged", {})
        assert "is written, but could not be measured" in status["reason"]
        assert fakes.weights_of(tmp_path / name) == fakes.weights_of(tmp_path / "quiet")
    assert "step 5 could NOT be measured (ValueError: no object); training goes on" in caplog.text
    assert train(tmp_path / "a", run, resume=True) == expected
    assert json.loads((tmp_path / "a" / "run.json").read_text())["status"] == "finished"


def test_bad_files_are_counted_once_and_too_many_stop_the_run(tmp_path: Path, fakes: ModuleType, train: Train) -> None:
    from ssldet.errors import DataError

    bad = fakes.a_run(data__train=("fake:10:bad:3,7",), data__max_bad_fraction=0.2)
    train(tmp_path / "a", bad)
    lines = [json.loads(line) for line in (tmp_path / "a" / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(line["path"] for line in lines) == ["image-3.jpg", "image-7.jpg"]
    assert json.loads((tmp_path / "a" / "run.json").read_text())["bad_files"] == {"truncated": 2}
    strict = replace(bad, data=replace(bad.data, max_bad_fraction=0.1))
    with pytest.raises(DataError, match=r"2 of 10 images.*2 truncated.*image-.*max_bad_fraction=0\.2"):
        train(tmp_path / "b", strict)
    assert json.loads((tmp_path / "b" / "run.json").read_text())["status"] == "failed"
    train(tmp_path / "b", bad, resume=True)
    status = json.loads((tmp_path / "b" / "run.json").read_text())
    assert (status["status"], status["reason"]) == ("finished", None)
    assert fakes.weights_of(tmp_path / "b") == fakes.weights_of(tmp_path / "a")


@pytest.mark.parametrize("how", ["poison", "refuse"])
def test_a_bad_batch_is_left_out_and_named(
    tmp_path: Path, fakes: ModuleType, train: Train, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    run = fakes.a_run(task=fakes.FakeTask(**{how: "image-3"}), data__train=("fake:40",), budget__steps=10)
    with caplog.at_level(logging.WARNING):
        train(tmp_path / "a", run)
    (capture,) = (tmp_path / "a" / "captures").iterdir()
    document = json.loads(capture.read_text())
    assert "image-3" in document["keys"]
    assert ("loss box is not finite" if how == "poison" else "cost of layer 0") in caplog.text
    status = json.loads((tmp_path / "a" / "run.json").read_text())
    assert status["skipped_steps"] == 1
    steps = [json.loads(line)["step"] for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert sorted({*range(1, 11)} - set(steps)) == [document["step"] + 1]


def test_a_run_that_stays_bad_stops_and_saves_nothing_bad(tmp_path: Path, fakes: ModuleType, train: Train) -> None:
    from ssldet.engine.steps import Checkpoints
    from ssldet.errors import DivergedError

    run = fakes.a_run(data__train=("fake:1",), data__batch_size=1, task=fakes.FakeTask(poison="image-0"))
    with pytest.raises(DivergedError, match=r"4 steps in a row.*lower optim\.lr"):
        train(tmp_path / "a", run)
    assert json.loads((tmp_path / "a" / "run.json").read_text())["status"] == "diverged"
    newest = Checkpoints(tmp_path / "a" / "checkpoints").newest()
    assert newest is not None
    assert all(bool(torch.isfinite(tensor).all()) for tensor in newest.state["objective"].values())


def test_weights_that_are_not_finite_are_never_saved(
    tmp_path: Path, fakes: ModuleType, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssldet.engine import progress
    from ssldet.errors import DivergedError

    clip = progress.clip

    def spoil(parameters: Any, norm: Any, limit: float) -> None:
        clip(parameters, norm, limit)
        parameters[0].data[:] = float("inf")

    monkeypatch.setattr(progress, "clip", spoil)
    with pytest.raises(DivergedError, match="is not finite; not saved"):
        train(tmp_path / "a", fakes.a_run())
    assert [path.name for path in sorted((tmp_path / "a" / "checkpoints").glob("*.ckpt"))] == ["step-000000.ckpt"]


def test_a_full_disk_is_survived_twice_and_not_a_third_time(
    tmp_path: Path, fakes: ModuleType, train: Train, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from ssldet.engine import keeper
    from ssldet.engine.steps import Checkpoints
    from ssldet.errors import SetupError

    full: set[int] = {2, 4}
    save = Checkpoints.save

    def sometimes(self: Checkpoints, step: int, state: dict[str, Any]) -> None:
        if step in full:
            raise OSError(28, "No space left on device")
        save(self, step, state)

    monkeypatch.setattr(keeper.Checkpoints, "save", sometimes)
    train(tmp_path / "a", fakes.a_run())
    assert caplog.text.count("could NOT be saved (OSError: [Errno 28] No space left on device)") == 2
    full |= {6, 8}
    with pytest.raises(SetupError, match=r"3 times in a row \(step 6"):
        train(tmp_path / "b", fakes.a_run())
    assert Checkpoints(tmp_path / "b" / "checkpoints").steps() == [0]
