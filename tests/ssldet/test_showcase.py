"""The demo in miniature: the same road with fewer images and steps."""

import json
from pathlib import Path

import pytest
import torch

from ssldet import showcase
from ssldet.errors import ConfigError
from ssldet.recipe import diff
from ssldet.verbs import Trained


@pytest.mark.slow
def test_the_demo_compares_like_with_like(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(showcase, "IMAGES", {"unlabelled": 12, "labelled": 9, "held-out": 7})
    monkeypatch.setattr(showcase, "STEPS", {"pretrain": 2, "finetune": 2})
    monkeypatch.setattr(showcase, "SEEDS", 2)
    threads = torch.get_num_threads()
    try:
        outcome = showcase.demo(tmp_path / "demo", seed=5)
    finally:
        torch.set_num_threads(threads)
    document = json.loads(json.dumps(outcome.to_json()))
    assert {"patch_iou", "patch_iou_constant", "ap_pretrained", "ap_scratch", "seconds"} <= document.keys()
    assert len(document["ap_pretrained"]) == len(document["ap_scratch"]) == 2
    assert document["seconds"].keys() >= {"generate", "pretrain", "pretrained", "scratch"}
    assert outcome.report.stat().st_size > 10_000
    assert "pretrained" in str(outcome)
    for seed in (5, 6):
        arms = [Trained(tmp_path / "demo" / arm / f"seed-{seed}").run for arm in ("pretrained", "scratch")]
        assert diff(*arms) == []
    with pytest.raises(ConfigError, match="is in use"):
        showcase.demo(tmp_path / "demo")


@pytest.mark.parametrize(
    ("pretrained", "scratch", "word"),
    [
        ((0.3, 0.4), (0.1, 0.2), "helped:"),
        ((0.1, 0.1), (0.1, 0.2), "did not help:"),
        ((0.3, 0.1), (0.2, 0.2), "in part"),
    ],
)
def test_the_verdict_follows_the_numbers(
    pretrained: tuple[float, ...], scratch: tuple[float, ...], word: str, tmp_path: Path
) -> None:
    outcome = showcase.DemoResult(
        folder=tmp_path,
        report=tmp_path,
        patch_iou=0.5,
        patch_iou_constant=0.25,
        pretrained=[{"AP": ap, "AP50": ap} for ap in pretrained],
        scratch=[{"AP": ap, "AP50": ap} for ap in scratch],
    )
    assert word in outcome.verdict()
