"""DETR of transformers beside ours: both compute the same before they are timed, and a missing peer is said."""

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.timing import gpu, huggingface, speed
from benchmarks.timing.bench import Bench
from benchmarks.timing.clock import compared
from benchmarks.timing.huggingface import Pair
from ssldet.errors import SetupError


def bench_of(folder: Path) -> Bench:
    return Bench(device=torch.device("cpu"), until=math.inf, tiny=True, folder=folder)


def test_both_compute_the_same_and_learn_alike(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    pair = Pair(bench_of(tmp_path), [(48, 64), (40, 56)])
    ours, theirs = pair.trainer.objective.detector, pair.theirs
    for ways in (pair.answers, pair.steps):
        for way in ways.values():
            way()()
    resting = [sum(one.numel() for one in network.parameters() if one.grad is None) for network in (ours, theirs)]
    assert resting[0] == resting[1] > 0
    with torch.no_grad():
        theirs.bbox_predictor.layers[-1].bias += 0.5
    with pytest.raises(SetupError, match=r"something else than DETR here: .*boxes differ by 0\.\d+, loss differ"):
        pair._compare()


def test_a_part_without_its_peer_is_left_out_by_name_and_its_rows_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface, "find_spec", lambda _: None)
    other = compared("other", "the plain way", [(1.0, 2.0)] * 4)
    monkeypatch.setattr(speed, "PARTS", {"other": lambda _: iter([other]), "huggingface": speed.PARTS["huggingface"]})
    recorded = {"results": [{"part": "huggingface", "work": "a step"}, {"part": "other", "work": "another"}]}
    out = tmp_path / "speed.json"
    out.write_text(json.dumps(recorded))
    main(["speed", "--out", str(out), "--only", "huggingface", "other"])
    said = "transformers is not installed; pip install 'ssldet[huggingface]'"
    assert f"left out  huggingface: {said}\n" in capsys.readouterr().out
    assert [row["work"] for row in json.loads(out.read_text())["results"]] == ["other", "a step"]
    assert list(gpu.against_transformers(bench_of(tmp_path))) == [{"left_out": said}]
