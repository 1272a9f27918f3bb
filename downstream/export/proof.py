"""model, copy loaded from its exported file -> `ExportReport`: whether tensors and answers to images are the same."""

import io
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ssldet.chance import generator
from ssldet.data.bands import RGB
from ssldet.detectors.base import Detector, DetectorConfig
from ssldet.disk import Disk, require_absent, write_whole
from ssldet.errors import CheckpointError, SetupError

Exporter = TypeVar("Exporter", bound=Callable[..., Any])

ALLOWED_DIFFERENCE = 1e-5
"""Largest difference of a logit or a box (a share of the image) between a detector and its copy."""


def refusing(
    unfit: Callable[[Detector, DetectorConfig], list[str]], *, any_channels: bool = False
) -> Callable[[Exporter], Exporter]:
    """Say, for an exporter, which detectors it can't write, so that this can be known before training.

    Args:
        unfit: Detector, its configuration -> reasons why the format can't hold it; an empty list if it can.
        any_channels: Whether the format holds detectors of images that are not red, green and blue.
    """

    def reasons(detector: Detector, config: DetectorConfig) -> list[str]:
        if detector.in_channels == RGB or any_channels:
            return unfit(detector, config)
        return [f"backbone.channels: images have {detector.in_channels}, and this format is for RGB"]

    def mark(exporter: Exporter) -> Exporter:
        @wraps(exporter)
        def checked(objective: Any, info: Mapping[str, Any], out: Path) -> Any:
            if objective.detector.in_channels != RGB and not any_channels:
                raise CheckpointError(
                    f"{out.name}: images have {objective.detector.in_channels} channels, and this format is for RGB; "
                    "export to safetensors or onnx"
                )
            return exporter(objective, info, out)

        checked.unfit = reasons  # type: ignore[attr-defined]
        return cast("Exporter", checked)

    return mark


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A model and the copy that was loaded from its file.

    Attributes:
        ours: Tensors of the model that the file should hold.
        theirs: Tensors of the copy, under the same names; may be on another device.
        difference: Computes the largest difference between the answers of model and copy to the same images.
        allowed: Largest allowed difference.
        remark: What the report adds, of a copy that is meant to differ.
    """

    ours: Mapping[str, Tensor]
    theirs: Mapping[str, Tensor]
    difference: Callable[[], float]
    allowed: float = ALLOWED_DIFFERENCE
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """The exported file or folder, and the evidence that it holds the same model.

    Attributes:
        out: The file or folder.
        equal: Number of tensors that are bit-identical in the loaded copy.
        tensors: Number of tensors of the model.
        parameters: Number of elements of those tensors.
        difference: Largest difference between the answers of the model and of the loaded copy.
        size: Bytes of the file, or of all files of the folder.
        remark: What else is to be said; mostly nothing.
    """

    out: Path
    equal: int
    tensors: int
    parameters: int
    difference: float
    size: int
    remark: str = ""

    def __str__(self) -> str:
        """Return the report as one line."""
        return f"{self.out}  {self.size / 1e6:.1f} MB, loaded back: {self.proof}"

    @property
    def proof(self) -> str:
        """The result of the comparison; for a graph, which has no named tensors, only that of the answers."""
        tensors = f"{self.equal}/{self.tensors} tensors, {self.parameters:,} parameters, " if self.tensors else ""
        remark = f" ({self.remark})" if self.remark else ""
        return f"{tensors}max |Δ| {self.difference:.1e}{remark}"

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return vars(self) | {"out": str(self.out)}


def write_proven(
    out: Path,
    write: Callable[[Path], None],
    read_back: Callable[[Path], Comparison],
    card: Callable[[ExportReport], str],
    beside: Mapping[str, bytes] = MappingProxyType({}),
) -> ExportReport:
    """Write a file or folder under a temporary name, load it back, compare, and only then rename it.

    Args:
        out: File or folder to create.
        write: Writes the file, or makes and fills the folder.
        read_back: Loads what was written and compares it with the model.
        card: Makes the model card, which becomes `README.md` in a folder and `FILE.md` beside a file.
        beside: Contents of further files that belong to the file, by the suffix that replaces its own; they exist when
            the file is read back.

    Raises:
        ConfigError: A file or folder of that name exists.
        CheckpointError: The loaded copy differs; nothing remains on disk then.
        SetupError: The file or folder can't be written.
    """
    for path in (out, _card_beside(out), *map(out.with_suffix, beside)):
        require_absent(path)
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
        reason = error.strerror or error
        raise SetupError(f"{out}: can't be written ({reason}); check the folder and the free space") from error
    finally:
        for path in (stage, *map(stage.with_suffix, beside)):
            _remove(path)
    return report


def _place(stage: Path, out: Path, card: str) -> None:
    """Write the card, then rename the model: if this is interrupted, a card without a model does no harm."""
    beside = stage / "README.md" if stage.is_dir() else _card_beside(out)
    write_whole(beside, card.encode(), Disk())
    stage.replace(out)


def _card_beside(out: Path) -> Path:
    return out.with_name(f"{out.name}.md")


def torch_writer(document: Mapping[str, Any]) -> Callable[[Path], None]:
    """Return a function that writes a torch file.

    Args:
        document: Tensors and plain values.
    """

    def write(path: Path) -> None:
        content = io.BytesIO()
        torch.save(dict(document), content)
        write_whole(path, content.getbuffer(), Disk())

    return write


def same_detector(detector: Detector, copy: Detector) -> Comparison:
    """Return the comparison of a detector with its copy: all tensors, and the answers to two images of unequal size.

    Args:
        detector: The original.
        copy: The loaded copy.
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
        remark=comparison.remark,
    )


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def two_images(device: torch.device, channels: int = RGB) -> tuple[Float[Tensor, "2 c H W"], Bool[Tensor, "2 H W"]]:
    """Return two random images of unequal size on one canvas, and its padding, for comparisons of models."""
    images = torch.randn(2, channels, 96, 128, generator=generator("export")).to(device)
    padding = torch.zeros(2, 96, 128, dtype=torch.bool, device=device)
    padding[1, 64:], padding[1, :, 100:] = True, True
    return images, padding


@torch.no_grad()
def answers(detector: Detector, images: Float[Tensor, "B c H W"], padding: Bool[Tensor, "B H W"]) -> list[Tensor]:
    """Return logits and boxes of all layers and, if the detector has a mask head, the masks of all queries.

    Args:
        detector: The detector; it is run in evaluation mode.
        images: Normalised images.
        padding: True where the canvas holds no image.
    """
    was_training = detector.training
    try:
        predictions = detector.eval()(images, padding)
        outputs = [predictions.logits, predictions.boxes]
        if predictions.encoded_images is not None:
            count, queries = predictions.logits.shape[1:3]
            every = torch.arange(count * queries, device=images.device)
            outputs.append(detector.masks(predictions, every // queries, every % queries))
    finally:
        detector.train(was_training)
    return outputs


def largest_difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Return the largest absolute difference between two lists of tensors; infinity if their shapes differ.

    Args:
        ours: Tensors of the model.
        theirs: Tensors of the copy.
    """
    if [one.shape for one in ours] != [other.shape for other in theirs]:
        return float("inf")
    differences = [(one - other).abs().max() for one, other in zip(ours, theirs, strict=True)]
    return float(torch.stack(differences).max())


def _difference(detector: Detector, copy: Detector) -> float:
    images, padding = two_images(next(detector.parameters()).device, detector.in_channels)
    return largest_difference(answers(detector, images, padding), answers(copy.to(images.device), images, padding))
