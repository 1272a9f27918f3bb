"""What must hold on an accelerator: the CPU's answers, mixed precision, a resume to the last bit, and few waits."""

import copy
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.timing.bench import Bench, Trainer
from ssldet.detectors.base import DetectorConfig
from ssldet.detectors.deformable_detr import DeformableDETRConfig
from ssldet.detectors.detr import DETRConfig
from ssldet.engine.checkpoint import load_weights
from ssldet.engine.evaluate import autocast
from ssldet.engine.fit import fit
from ssldet.engine.folder import RunFolder
from ssldet.nn.backbones import BackboneConfig
from ssldet.recipe import override

pytestmark = pytest.mark.gpu

DETECTORS: dict[str, DetectorConfig] = {
    name: kind(
        backbone=BackboneConfig(name="resnet18"),
        num_classes=4,
        num_queries=12,
        width=64,
        heads=4,
        encoder_layers=2,
        decoder_layers=2,
        feedforward=96,
        dropout=0.0,
    )
    for name, kind in (("detr", DETRConfig), ("deformable_detr", DeformableDETRConfig))
}


@pytest.fixture
def device() -> torch.device:
    """The accelerator, or what `SSLDET_TEST_DEVICE` names, to rehearse."""
    name = os.environ.get("SSLDET_TEST_DEVICE", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no accelerator")
    return torch.device(name)


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """32 bits are 32 bits."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def bench(device: torch.device, tmp_path: Path) -> Bench:
    return Bench(device=device, until=float("inf"), tiny=True, folder=tmp_path)


def images_and_padding() -> tuple[torch.Tensor, torch.Tensor]:
    padding = torch.zeros(2, 96, 128, dtype=torch.bool)
    padding[1, 70:], padding[1, :, 101:] = True, True
    return torch.randint(0, 256, (2, 3, 96, 128), dtype=torch.uint8), padding


@pytest.mark.parametrize("name", DETECTORS)
def test_answers_are_those_of_the_cpu(name: str, device: torch.device) -> None:
    ours = DETECTORS[name].build().eval()
    theirs = copy.deepcopy(ours).to(device)
    images, padding = images_and_padding()
    with torch.no_grad():
        here = ours(ours.normalise(images, padding), padding)
        there = theirs(theirs.normalise(images.to(device), padding.to(device)), padding.to(device))
    torch.testing.assert_close(there.logits.cpu(), here.logits, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(there.boxes.cpu(), here.boxes, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", DETECTORS)
def test_mixed_precision_is_close(name: str, device: torch.device) -> None:
    detector = DETECTORS[name].build().to(device).eval()
    images, padding = (part.to(device) for part in images_and_padding())
    found = []
    for precision in ("32", "bf16"):
        with torch.no_grad(), autocast(device, precision):  # type: ignore[arg-type]
            found.append(detector(detector.normalise(images, padding), padding).boxes.float())
    assert found[1].isfinite().all()
    assert (found[0] - found[1]).abs().mean() < 0.02


def test_a_resumed_run_ends_with_the_same_bits(bench: Bench, tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric")
    steps = {"budget.steps": 4, "checkpoint.every_steps": 2, "checkpoint.keep": 3, "data.batch_size": 4}
    run = bench.run("r50", **steps, device=bench.device.type, deterministic=bench.device.type == "cuda")
    folder = RunFolder.create(tmp_path / "run", run)
    fit(run, folder)
    _, whole = load_weights(folder.weights)
    for path in folder.checkpoints.glob("step-000004.ckpt*"):
        path.unlink()
    fit(run, RunFolder(folder.path), resume=True)
    _, resumed = load_weights(folder.weights)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_step_waits_for_the_device_twice(bench: Bench) -> None:
    if bench.device.type != "cuda":
        pytest.skip("only CUDA tells when it is waited for")
    trainer = Trainer(bench.run("r50", **{"data.batch_size": 4}), bench.device)
    batch = next(iter(trainer.batches())).to(bench.device)
    for _ in range(2):
        trainer.step(batch)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            trainer.step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(warning.message) for warning in said if "synchroniz" in str(warning.message)]
    assert len(waits) <= 2, waits


def test_the_optimiser_updates_all_tensors_in_one_pass_there(bench: Bench) -> None:
    trainer = Trainer(override(bench.run("r50"), {"data.batch_size": 4}), bench.device)
    wanted = True if bench.device.type == "cuda" else None
    assert {group["fused"] for group in trainer.progress.optimizer.param_groups} == {wanted}
