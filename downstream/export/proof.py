"""model, what was read back from somebody's file -> ExportReport: the same tensors, and the same answers to images."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ssldet.chance import generator
from ssldet.detectors.base import Detector
from ssldet.disk import Disk, write_whole
from ssldet.errors import CheckpointError, ConfigError, SetupError

ALLOWED_DIFFERENCE = 1e-5
"""Largest difference of a logit or a box (a share of the image) between a detector and its copy."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A model beside what was read back from its file.

    Attributes:
        ours: Tensors of the model that the file should hold.
        theirs: Tensors that were read back, under the same names; may lie on another device.
        difference: Asks both the same and returns the largest difference between their answers.
        allowed: How large that may be.
    """

    ours: Mapping[str, Tensor]
    theirs: Mapping[str, Tensor]
    difference: Callable[[], float]
    allowed: float = ALLOWED_DIFFERENCE


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written, and the proof that it is the same model.

    Attributes:
        out: The file or folder.
        equal: Tensors that came back bit for bit.
        tensors: Tensors of the model.
        parameters: Numbers that those tensors hold.
        difference: Largest difference between the answers of the model and of what came back.
        size: Bytes of the file, or of all files of the folder.
    """

    out: Path
    equal: int
    tensors: int
    parameters: int
    difference: float
    size: int

    def __str__(self) -> str:
        """Say it in one line."""
        return f"{self.out}  {self.size / 1e6:.1f} MB, loaded back: {self.proof}"

    @property
    def proof(self) -> str:
        """What was compared; a graph has answers, and no tensors under their names."""
        held = f"{self.equal}/{self.tensors} tensors, {self.parameters:,} parameters, " if self.tensors else ""
        return f"{held}max |Δ| {self.difference:.1e}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return vars(self) | {"out": str(self.out)}


def write_proven(
    out: Path,
    write: Callable[[Path], None],
    read_back: Callable[[Path], Comparison],
    card: Callable[[ExportReport], str],
    beside: Mapping[str, bytes] = MappingProxyType({}),
) -> ExportReport:
    """Write a file or folder under a passing name, load it back, compare, and only then give it its name.

    Args:
        out: File or folder to create.
        write: Writes the file, or makes and fills the folder.
        read_back: Loads what was written and lays it beside the model.
        card: Says what the model is and where it comes from; becomes `README.md` of a folder, `FILE.md` beside a file.
        beside: What else belongs to a file, by the suffix that replaces the file's own; there when it is read back.

    Raises:
        ConfigError: Something has that name already.
        CheckpointError: What came back differs; nothing is left behind then.
        SetupError: It can't be written.
    """
    for path in (out, _card_beside(out), *map(out.with_suffix, beside)):
        if path.exists():
            raise ConfigError(f"{path}: exists already and is not overwritten; choose another name or remove it")
    stage = out.with_name(f".{out.stem}.tmp-{os.getpid()}{out.suffix}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write(stage)
        for suffix, content in beside.items():
            write_whole(stage.with_suffix(suffix), content, Disk())
        comparison = read_back(stage)
        report = _report(out, comparison, _size(stage))
        if report.equal != report.tensors or not report.difference <= comparison.allowed:
            raise CheckpointError(f"{out}: not written, since what came back is not the same model ({report})")
        for suffix in beside:
            stage.with_suffix(suffix).replace(out.with_suffix(suffix))
        _place(stage, out, card(report))
    except OSError as error:
        raise SetupError(f"{out}: can't be written ({error}); check the folder and the free space") from error
    finally:
        for path in (stage, *map(stage.with_suffix, beside)):
            _remove(path)
    return report


def _place(stage: Path, out: Path, card: str) -> None:
    """Give what was proven its name, its card first: a card without a model misleads nobody."""
    beside = stage / "README.md" if stage.is_dir() else _card_beside(out)
    write_whole(beside, card.encode(), Disk())
    stage.replace(out)


def _card_beside(out: Path) -> Path:
    return out.with_name(f"{out.name}.md")


def same_detector(detector: Detector, copy: Detector) -> Comparison:
    """Lay a detector beside its copy: every tensor of both, and the answers to two images of unequal size.

    Args:
        detector: The original.
        copy: What was read back.
    """
    return Comparison(
        ours=detector.state_dict(), theirs=copy.state_dict(), difference=lambda: _difference(detector, copy)
    )


def _report(out: Path, comparison: Comparison, size: int) -> ExportReport:
    ours, theirs = comparison.ours, comparison.theirs
    return ExportReport(
        out=out,
        equal=sum(name in theirs and torch.equal(value.cpu(), theirs[name].cpu()) for name, value in ours.items()),
        tensors=len(ours.keys() | theirs.keys()),
        parameters=sum(value.numel() for value in ours.values()),
        difference=comparison.difference(),
        size=size,
    )


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def two_images(device: torch.device) -> tuple[Float[Tensor, "2 3 H W"], Bool[Tensor, "2 H W"]]:
    """Return two images of unequal size on one canvas, and where it holds none: what proofs ask about."""
    images = torch.randn(2, 3, 96, 128, generator=generator("export")).to(device)
    padding = torch.zeros(2, 96, 128, dtype=torch.bool, device=device)
    padding[1, 64:], padding[1, :, 100:] = True, True
    return images, padding


@torch.no_grad()
def answers(detector: Detector, images: Float[Tensor, "B 3 H W"], padding: Bool[Tensor, "B H W"]) -> list[Tensor]:
    """Return logits and boxes of all layers, and the masks of all queries where the detector draws any.

    Args:
        detector: Who is asked, in evaluation mode.
        images: Normalised images.
        padding: True where the canvas holds no image.
    """
    was_training = detector.training
    try:
        predictions = detector.eval()(images, padding)
        found = [predictions.logits, predictions.boxes]
        if predictions.encoded_images is not None:
            count, queries = predictions.logits.shape[1:3]
            every = torch.arange(count * queries, device=images.device)
            found.append(detector.masks(predictions, every // queries, every % queries))
    finally:
        detector.train(was_training)
    return found


def furthest(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Return the largest difference between two sets of answers; infinite where they are not of one kind.

    Args:
        ours: Some tensors.
        theirs: As many of the same shapes.
    """
    if [one.shape for one in ours] != [other.shape for other in theirs]:
        return float("inf")
    apart = [(one - other).abs().max() for one, other in zip(ours, theirs, strict=True)]
    return float(torch.stack(apart).max())


def _difference(detector: Detector, copy: Detector) -> float:
    images, padding = two_images(next(detector.parameters()).device)
    return furthest(answers(detector, images, padding), answers(copy.to(images.device), images, padding))
