"""Measurements: taken in turns, written after each, and a part that fails does not end the others."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.timing import gpu
from benchmarks.timing.bench import Bench
from benchmarks.timing.clock import fastest, ratio
from ssldet.errors import ConfigError, SetupError, StoppedError


@pytest.mark.timing
def test_functions_are_called_in_turns_and_the_fastest_counts() -> None:
    calls: list[str] = []
    pauses = iter([0.0, 0.05, 0.01])

    def slow() -> None:
        calls.append("slow")
        time.sleep(next(pauses))

    best = fastest({"slow": slow, "fast": lambda: calls.append("fast")}, 2)
    assert calls == ["slow", "fast"] * 3
    assert 0.01 <= best["slow"] < 0.05
    assert best["fast"] < 0.01


@pytest.mark.timing
def test_a_ratio_above_one_means_faster() -> None:
    row = ratio(("quick", lambda: None), ("slow", lambda: sum(range(10**5))), 3, "a note")
    assert row.ratio > 2
    document = row.to_json()
    assert list(document) == ["work", "against", "ratio", "low", "high", "seconds", "repeats", "note", "bytes"]


def bench_of(folder: Path, seconds: float, device: str = "cpu") -> Bench:
    return Bench(device=torch.device(device), until=time.monotonic() + seconds, tiny=True, folder=folder)


def test_no_part_begins_after_the_time(tmp_path: Path) -> None:
    assert list(gpu.measure(tmp_path / "gpu.json", bench_of(tmp_path, 0))) == []


def test_a_part_that_does_not_exist_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no part 'step'.*steps"):
        list(gpu.measure(tmp_path / "gpu.json", bench_of(tmp_path, 60), only=["step"]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an accelerator")
def test_a_missing_accelerator_is_said(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="--device cpu --tiny"):
        list(gpu.measure(tmp_path / "gpu.json", bench_of(tmp_path, 60, "cuda")))


def test_a_suite_stops_early_enough_to_save_and_tell_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def stopped(suite: str, **choices: Any) -> None:
        asked.update(choices, suite=suite)
        raise StoppedError("the time is spent")

    monkeypatch.setattr(gpu, "compare", stopped)
    monkeypatch.setattr(Bench, "images", lambda *_: "coco:scenes.json")
    bench = replace(
        bench_of(tmp_path, 200), places={"images": "photos", "train": "t", "val": "v"}, out=tmp_path / "runs"
    )
    rows = list(gpu.transfer(bench))
    assert rows == [{"stopped": "the time is spent"}, {"finished": False, "report": str(tmp_path / "runs")}]
    assert 100 < asked["budget"] <= 200 - gpu.CLOSING
    assert asked["data"] == {"images": "photos,coco:scenes.json", "train": "t", "val": "v"}
    assert list(gpu.transfer(bench_of(tmp_path, 200))) == [{"left_out": "needs --data images=… train=… val=…"}]


def test_measurements_of_another_machine_are_never_replaced(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    before = {"machine": {"device": "H200", "torch": "2", "tiny": False}, "results": [{"part": "steps"}]}
    out.write_text(json.dumps(before))
    with pytest.raises(ConfigError, match=r"holds measurements of another machine \(device H200"):
        list(gpu.measure(out, bench_of(tmp_path, 60), only=["memory"]))
    assert json.loads(out.read_text()) == before
    same = {"machine": {"device": "cpu", "torch": torch.__version__, "tiny": True}, "results": [{"part": "steps"}]}
    out.write_text(json.dumps(same))
    rows = list(gpu.measure(out, bench_of(tmp_path, 60), only=["memory"]))
    assert [row["part"] for row in rows] == ["memory"]
    assert [row["part"] for row in json.loads(out.read_text())["results"]] == ["steps", "memory"]
