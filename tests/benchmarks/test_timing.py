"""Measurements: taken in turns, written after each, and a part that fails does not end the others."""

import time
from pathlib import Path

import pytest
import torch

from benchmarks.timing import gpu
from benchmarks.timing.bench import Bench
from benchmarks.timing.clock import fastest, ratio
from ssldet.errors import ConfigError, SetupError


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
