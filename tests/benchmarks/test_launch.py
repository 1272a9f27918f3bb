import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.comparing import FinishedComparison, compare
from benchmarks.launch import Runner, command_of, start_process
from benchmarks.plan import Plan, plan_suite
from benchmarks.results import read_results
from benchmarks.suite import Suite
from benchmarks.work import JobFolder
from pretext.detreg import DETReg
from pretext.proposals import Proposals
from ssldet.engine.folder import RunFolder
from ssldet.engine.progress import Progress
from ssldet.engine.run import Run
from ssldet.errors import ConfigError, StoppedError
from ssldet.recipe import load, override
from tests.benchmarks.conftest import Ended, InProcess


class KilledError(BaseException):
    """Stands for a signal that can't be caught."""


def carry_out(plan: Plan, out: Path, start: Any, **choices: Any) -> None:
    Runner(out=out, start=start, **choices).carry_out(lambda: plan)


def results(plan: Plan, out: Path) -> dict[str, Any]:
    return {address: JobFolder(out, job).record()["results"] for address, job in plan.jobs.items()}


@pytest.mark.slow
def test_a_suite_that_was_cut_off_goes_on_and_ends_in_the_same_numbers(
    suite: Suite,
    carried_out: tuple[Path, FinishedComparison, InProcess],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, _, start = carried_out
    assert len(start.commands) == len(plan_suite(suite).jobs) == 5
    plan = plan_suite(suite).only(lambda name: name.startswith("updetr") and name.endswith("seed-0"))
    steps = 0
    take_step = Progress.take_step

    def dying(progress: Progress, norm: Any) -> None:
        nonlocal steps
        steps += 1
        if steps in {2, 4}:
            raise KilledError
        take_step(progress, norm)

    monkeypatch.setattr(Progress, "take_step", dying)
    cut = InProcess()
    for _ in range(2):
        with pytest.raises(KilledError):
            carry_out(plan, tmp_path, cut)
    carry_out(plan, tmp_path, cut)
    assert ["--resume" in command for command in cut.commands] == [False, True, False, True]
    assert results(plan, tmp_path) == results(plan, whole)
    assert all(results(plan, tmp_path).values())
    again = InProcess()
    carry_out(plan, tmp_path, again)
    assert again.commands == []


@pytest.mark.slow
def test_a_process_killed_for_good_goes_on_from_its_checkpoint(
    suite: Suite, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    longer = tuple(override(stage, {"budget.steps": 8}) for stage in suite.downstreams[0].stages)
    task = replace(suite.downstreams[0], stages=longer)
    plan = plan_suite(replace(suite, downstreams=(task,), seeds=(0,))).only(lambda name: name.startswith("none"))
    (job,) = plan.jobs.values()
    place, began = JobFolder(tmp_path / "cut", job), []

    def start(*words: Any) -> Any:
        began.append(start_process(*words))
        return began[-1]

    runner = Runner(out=tmp_path / "cut", start=start)
    assert runner._launch(plan) is False
    until = time.monotonic() + 120
    while not list(place.run.checkpoints.glob("step-000001.ckpt")) and time.monotonic() < until:
        time.sleep(0.02)
    os.killpg(began[0].pid, signal.SIGKILL)
    began[0].wait()
    assert place.state() == "started"
    # The runner dies as well: what it held is free, and what it wrote down tells who it was.
    runner._active[job.address][0]._lock.file.close()
    with caplog.at_level("INFO"):
        carry_out(plan, tmp_path / "cut", start)
    assert "died here; going on from what it saved" in caplog.text
    assert "--resume" in place.note()["command"]
    carry_out(plan, tmp_path / "whole", InProcess())
    assert results(plan, tmp_path / "cut") == results(plan, tmp_path / "whole")


def fails(code: int, *, words: str = "") -> Any:
    def start(command: Any, environment: Any, log_file: Any, lock: Any) -> Ended:
        log_file.write(words.encode())
        return Ended(code)

    return start


def test_a_run_that_fails_is_told_and_the_rest_goes_on(suite: Suite, tmp_path: Path) -> None:
    found = compare(suite, out=tmp_path, start=fails(6, words="noise\nerror: loss is not finite\n"))
    rows = {(row.arm.method, row.arm.seed): row for row in found.results.rows}
    assert {row.status for (method, _), row in rows.items() if method != "backbone"} == {"failed"}
    assert rows["none", 0].reason.endswith("error: loss is not finite")
    assert rows["updetr", 1].reason.startswith("pretrain updetr")
    assert rows["backbone", 0].reason == "left out of this test"
    text = (found.report / "report.md").read_text()
    assert "loss is not finite" in text
    assert "not measured" in text
    assert (found.report / "report.html").stat().st_size > 1000


def test_rows_of_an_earlier_filter_stay(suite: Suite, tmp_path: Path) -> None:
    class Finishes:
        """Ends each run at once, as if it had been trained."""

        def __init__(self) -> None:
            self.made: list[str] = []

        def __call__(self, command: Any, environment: Any, log_file: Any, lock: Any) -> Ended:
            run = RunFolder(Path(command[command.index("--out") + 1]))
            run.weights.parent.mkdir(parents=True)
            run.weights.touch()
            status = {"status": "finished", "steps": 2, "seconds": 3.0, "results": {"AP": 0.25}}
            (run.path / "run.json").write_text(json.dumps(status))
            self.made.append(run.path.parent.name)
            return Ended(0)

    def states(folder: Path) -> dict[str, set[str]]:
        rows = read_results(folder).rows
        return {method: {row.status for row in rows if row.arm.method == method} for method in ("none", "updetr")}

    start = Finishes()
    first = compare(suite, out=tmp_path, only="none/*", start=start)
    assert isinstance(first, FinishedComparison)
    assert states(first.report) == {"none": {"finished"}, "updetr": {"missing"}}
    assert len(start.made) == len(first.results.runs) == 2
    # Pretraining fails now, so that arms which share it fail too, whether or not they are asked for.
    second = compare(suite, out=tmp_path, only="updetr/*/seed-0", start=fails(6, words="error: loss is not finite\n"))
    assert isinstance(second, FinishedComparison)
    assert states(second.report) == {"none": {"finished"}, "updetr": {"failed"}}
    assert [row.results for row in second.results.measured()] == [{"AP": 0.25}] * 2
    third = compare(suite, out=tmp_path, only="updetr/*/seed-0", start=start)
    assert isinstance(third, FinishedComparison)
    rows = {(row.arm.method, row.arm.seed): (row.status, row.reason) for row in third.results.rows}
    assert rows["none", 0] == rows["none", 1] == rows["updetr", 0] == ("finished", "")
    assert rows["updetr", 1] == ("missing", "left out by --filter")
    assert set(third.results.runs) == set(start.made)
    assert third.results.complete
    text = (third.report / "report.md").read_text(encoding="utf-8")
    assert "| scenes | none | 100% |" in text
    assert "| scenes | updetr | 100% |" in text


def test_a_run_that_somebody_else_makes_is_left_to_them(suite: Suite, tmp_path: Path) -> None:
    plan = plan_suite(suite)
    job = next(iter(plan.jobs.values()))
    other = JobFolder(tmp_path, job)
    assert other.claim() is not None
    other.sign(4711)
    mine = JobFolder(tmp_path, job)
    assert mine.claim() is None
    assert "process 4711" in mine.owner()
    other.release()
    assert mine.claim() is not None
    mine.release()


def test_a_stopped_run_goes_on_at_once_and_a_spent_budget_ends_it(suite: Suite, tmp_path: Path) -> None:
    plan = plan_suite(suite).only(lambda name: name.startswith("none") and name.endswith("seed-0"))
    started = 0

    def start(*_: Any) -> Ended:
        nonlocal started
        started += 1
        return Ended(StoppedError.exit_code if started < 3 else 6)

    carry_out(plan, tmp_path, start)
    assert started == 3
    with pytest.raises(StoppedError, match="budget"):
        carry_out(plan, tmp_path, start, seconds=0.0)


def test_a_launcher_is_a_template() -> None:
    plain = [sys.executable, "-m", "ssldet", "pretrain", "--out", "a b"]
    words = plain[3:]
    assert command_of(words, "", "x") == plain
    assert command_of(words, "srun -J {name}", "x") == ["srun", "-J", "x", *plain]
    assert command_of(words, "torchrun -m ssldet {arguments}", "x") == ["torchrun", "-m", "ssldet", *words]
    with pytest.raises(ConfigError, match="--launcher"):
        command_of(words, "srun 'open", "x")


def test_further_images_are_named_on_the_command_line(suite: Suite, tmp_path: Path) -> None:
    job = next(job for job in plan_suite(suite).jobs.values() if job.start is None and job.purpose.verb == "finetune")
    folders = [
        JobFolder(tmp_path / name, each) for name, each in (("a", job), ("b", replace(job, unlabelled=job.train)))
    ]
    for folder in folders:
        folder.path.mkdir(parents=True)
    without, with_images = (Runner(out=tmp_path)._prepare(folder) for folder in folders)
    assert "--unlabelled" not in without
    place = with_images.index("--unlabelled")
    assert with_images[place + 1 :] == without[without.index("--data") + 1 : without.index("--val")]


def test_a_backbone_is_exchanged_on_the_command_line(suite: Suite, tmp_path: Path) -> None:
    for job in plan_suite(suite).jobs.values():
        folder = JobFolder(tmp_path / job.address, replace(job, start="0123", exchange=True))
        folder.path.mkdir(parents=True)
        words = Runner(out=tmp_path)._prepare(folder)
        place = words.index("--backbone")
        assert words[place : place + 4] == ["--backbone", "tiny", "--set", "detector.backbone.weights=none"]
        start = str(tmp_path / "runs" / "0123" / "run")
        assert (
            words[words.index("--start") + 1] if "--start" in words else words[words.index("finetune") + 1]
        ) == start


def test_found_regions_are_shared_by_the_runs_of_a_comparison(suite: Suite, tmp_path: Path) -> None:
    job = next(iter(plan_suite(suite).jobs.values()))

    def cache_of(proposals: Proposals) -> str | None:
        folder = JobFolder(tmp_path, replace(job, run=replace(job.run, task=DETReg(proposals=proposals))))
        folder.path.mkdir(parents=True, exist_ok=True)
        Runner(out=tmp_path)._prepare(folder)
        task = load(Run, folder.recipe).task
        assert isinstance(task, DETReg)
        return task.proposals.cache

    assert cache_of(Proposals()) == str(tmp_path / "proposals")
    assert cache_of(Proposals(method="random")) is None
