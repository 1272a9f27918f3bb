"""detector, the copy in somebody's file -> ExportReport: the same tensors, and the same answers to random images."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ssldet.chance import generator
from ssldet.detectors.base import Detector
from ssldet.errors import CheckpointError, ConfigError, SetupError

ALLOWED_DIFFERENCE = 1e-5
"""Largest difference of a logit or a box (a share of the image) between a detector and its copy."""


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written, and the proof that it is the same detector.

    Attributes:
        out: The file.
        equal: Tensors that came back bit for bit.
        tensors: Tensors of the detector.
        difference: Largest difference between the answers of the detector and of what came back.
        size: Bytes of the file.
    """

    out: Path
    equal: int
    tensors: int
    difference: float
    size: int

    def __str__(self) -> str:
        """Say it in one line."""
        same = f"{self.equal}/{self.tensors} tensors, max |Δ| {self.difference:.1e}"
        return f"{self.out}  {self.size / 1e6:.1f} MB, loaded back: {same}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return vars(self) | {"out": str(self.out)}


def write_proven(
    out: Path, write: Callable[[Path], None], read: Callable[[Path], Detector], detector: Detector
) -> ExportReport:
    """Write a file under a passing name, load it back, compare, and only then give it its name.

    Args:
        out: File to create.
        write: Writes a file.
        read: Builds a detector from such a file.
        detector: What the file should hold.

    Raises:
        ConfigError: Something has that name already.
        CheckpointError: What came back differs; nothing is left behind then.
        SetupError: The file can't be written.
    """
    if out.exists():
        raise ConfigError(f"{out}: exists already and is not overwritten; choose another name or remove it")
    stage = out.with_name(f".{out.stem}.tmp-{os.getpid()}{out.suffix}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write(stage)
        report = _compare(out, detector, read(stage), stage.stat().st_size)
        if report.equal != report.tensors or not report.difference <= ALLOWED_DIFFERENCE:
            raise CheckpointError(f"{out}: not written, since what came back is not the same detector ({report})")
        stage.replace(out)
    except OSError as error:
        raise SetupError(f"{out}: can't be written ({error}); check the folder and the free space") from error
    finally:
        stage.unlink(missing_ok=True)
    return report


def _compare(out: Path, detector: Detector, copy: Detector, size: int) -> ExportReport:
    state, back = detector.state_dict(), copy.state_dict()
    equal = sum(name in back and torch.equal(value.cpu(), back[name].cpu()) for name, value in state.items())
    return ExportReport(
        out=out, equal=equal, tensors=max(len(state), len(back)), difference=_difference(detector, copy), size=size
    )


@torch.no_grad()
def _difference(detector: Detector, copy: Detector) -> float:
    """Ask both the same: two images of unequal size on one canvas."""
    device = next(detector.parameters()).device
    images = torch.randn(2, 3, 96, 128, generator=generator("export")).to(device)
    padding = torch.zeros(2, 96, 128, dtype=torch.bool, device=device)
    padding[1, 64:], padding[1, :, 100:] = True, True
    was_training = detector.training
    try:
        ours = detector.eval()(images, padding)
        theirs = copy.to(device).eval()(images, padding)
    finally:
        detector.train(was_training)
    if ours.logits.shape != theirs.logits.shape:
        return float("inf")
    apart = (ours.logits - theirs.logits).abs().max(), (ours.boxes - theirs.boxes).abs().max()
    return float(torch.stack(apart).max())
