"""RUN | FILE -> a trained model, ours or of another project, recognised by content and not by file name."""

import logging
from pathlib import Path

import torch

from ssldet.detectors.base import Detector
from ssldet.engine.folder import RunFolder
from ssldet.errors import CheckpointError, suggest
from ssldet.importing.base import Candidate, Opened, importers
from ssldet.weights.cache import cached
from ssldet.weights.zoo import known_detectors

log = logging.getLogger(__name__)


def open_model(start: str | Path) -> Opened:
    """Open a run folder, a weights file, or any other file or folder that a registered importer reads.

    Args:
        start: A run folder; the name of a published detector; or a file or folder of a kind that one of
            `ssldet list importers` knows, such as a DETR or UP-DETR checkpoint, one that detectron2 wrote of either, or
            a folder with a DETR of transformers.

    Raises:
        CheckpointError: There is no such file or folder, or it can't be read or recognised.
    """
    candidate = Candidate(_place(start))
    readable = []
    for importer in importers():
        if importer.recognises(candidate):
            return importer.open(candidate)
        readable.append(importer.reads)
    remedy = f"importers read {'; '.join(readable)}" if readable else "no importer is installed: install ssldet again"
    raise CheckpointError(f"{candidate.path}: {_describe(candidate)}; {remedy}")


def open_trained(start: str | Path) -> Opened:
    """Open a model like `open_model`, and refuse one that needs training before it can answer.

    Args:
        start: As for `open_model`.

    Raises:
        CheckpointError: There is no such file, or it can't be read, or it lacks whole sections of the detector.
    """
    opened = open_model(start)
    if opened.fresh:
        raise CheckpointError(
            f"{start}: holds no {' and no '.join(opened.fresh)}, so it finds nothing before it is trained; start from "
            f"it with: ssldet finetune {start} --data coco:ANNOTATIONS.json:IMAGES"
        )
    return opened


def _describe(candidate: Candidate) -> str:
    if candidate.path.is_dir():
        weights = RunFolder(candidate.path).weights
        return f"neither a run folder (it has no weights/{weights.name}) nor known to an importer"
    # Raises a better error for a file that can't be read at all.
    state, _ = candidate.read()
    return (
        f"no importer knows its {len(state)} tensors, such as {next(iter(state))!r} (a backbone alone is loaded by "
        "detector.backbone.weights)"
    )


def load(start: str | Path) -> Detector:
    """Return the detector of a run or a file as a plain `nn.Module`, in evaluation mode.

    Args:
        start: A run folder, a weights file, or any other file or folder that a registered importer reads. Sections of
            which a file holds no tensor have fresh weights, with a warning.
    """
    opened = open_model(start)
    if opened.fresh:
        log.warning("%s: holds no %s, which gets fresh weights", start, " and no ".join(opened.fresh))
    return opened.objective.detector


def _place(start: str | Path) -> Path:
    """Return the file or folder that a run folder, a path or the name of a published detector stands for.

    Raises:
        CheckpointError: There is none; the message names similar ones.
    """
    path = Path(start)
    if path.is_dir():
        folder = RunFolder(path)
        if folder.weights.exists():
            return folder.weights
        if folder.checkpoints.is_dir():
            raise CheckpointError(f"{path}: the run has not finished; {folder.resume_command(folder.run())}")
    elif not path.exists():
        if (known := known_detectors()).get(str(start)):
            return cached(known[str(start)])
        siblings = [*known, *(other.name for other in path.parent.iterdir())] if path.parent.is_dir() else []
        raise CheckpointError(f"{path}: no such run or file{suggest(path.name, siblings)}")
    return path


def pick_device(name: str = "auto") -> torch.device:
    """Return the device to compute on; `auto` takes an accelerator where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
