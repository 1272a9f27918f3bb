"""Measurements: taken in turns, written after each, and a part that fails does not end the others."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.timing import gpu
from benchmarks.timing.clock import fastest, ratio
from ssldet.errors import SetupError


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


def test_a_ratio_above_one_means_faster() -> None:
    row = ratio(("quick", lambda: None), ("slow", lambda: time.sleep(0.01)), 1, "a note")
    assert row.ratio > 2
    document = row.to_json()
    assert list(document) == ["work", "against", "ratio", "repeats", "note"]


def test_a_failed_part_is_written_and_the_next_one_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(bench: gpu.Bench) -> Iterator[gpu.Row]:
        yield {"number": 1}
        raise RuntimeError("no more memory")

    def works(bench: gpu.Bench) -> Iterator[gpu.Row]:
        yield {"number": 2}

    fails.__name__ = "steps"
    for name in ("tests", "memory", "against_transformers", "matching"):
        monkeypatch.setattr(gpu, name, works)
    monkeypatch.setattr(gpu, "steps", fails)
    rows = list(gpu.measure(tmp_path / "gpu.json", minutes=1, device="cpu", tiny=True))
    assert [row.get("number") for row in rows] == [2, 1, None, 2, 2, 2]
    assert rows[2] == {"part": "steps", "failed": "RuntimeError: no more memory"}
    assert json.loads((tmp_path / "gpu.json").read_text())["results"] == rows


def test_no_part_begins_after_the_time(tmp_path: Path) -> None:
    assert list(gpu.measure(tmp_path / "gpu.json", minutes=0, device="cpu", tiny=True)) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an accelerator")
def test_a_missing_accelerator_is_said(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="--device cpu --tiny"):
        list(gpu.measure(tmp_path / "gpu.json", minutes=1, device="cuda", tiny=True))
