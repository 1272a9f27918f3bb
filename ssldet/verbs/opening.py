"""RUN | FILE -> a trained model, ours or of another project, recognised by content and not by file name."""

import logging
from pathlib import Path
from typing import Literal, get_args

import torch

from ssldet.detectors.base import Detector
from ssldet.engine.folder import RunFolder
from ssldet.errors import CheckpointError, ConfigError, suggest
from ssldet.importing.base import Candidate, Opened, importers
from ssldet.weights.cache import cached
from ssldet.weights.zoo import known_detectors

log = logging.getLogger(__name__)

Which = Literal["last", "best"]
"""Which weights of a run: those of its last step, or those that measured best on the way."""


def open_model(start: str | Path, weights: Which = "last") -> Opened:
    """Open a run folder, a weights file, or any other file or folder that a registered importer reads.

    Args:
        start: A run folder; the name of a published detector; or a file or folder of a kind that one of
            `ssldet list importers` knows, such as a DETR or UP-DETR checkpoint, one that detectron2 wrote of either, or
            a folder with a DETR of transformers.
        weights: Which weights of a run folder: `last` or `best`.

    Raises:
        CheckpointError: There is no such file or folder, or it can't be read or recognised.
        ConfigError: There is no such choice of weights.
    """
    candidate = Candidate(_place(start, weights))
    readable = []
    for importer in importers():
        if importer.recognises(candidate):
            return importer.open(candidate)
        readable.append(importer.reads)
    remedy = f"importers read {'; '.join(readable)}" if readable else "no importer is installed: install ssldet again"
    raise CheckpointError(f"{candidate.path}: {_describe(candidate)}; {remedy}")


def open_trained(start: str | Path, weights: Which = "last") -> Opened:
    """Open a model like `open_model`, and refuse one that needs training before it can answer.

    Args:
        start: As for `open_model`.
        weights: Likewise.

    Raises:
        CheckpointError: There is no such file, or it can't be read, or it lacks whole sections of the detector.
    """
    opened = open_model(start, weights)
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


def load(start: str | Path, weights: Which = "last") -> Detector:
    """Return the detector of a run or a file as a plain `nn.Module`, in evaluation mode.

    Args:
        start: A run folder, a weights file, or any other file or folder that a registered importer reads. Sections of
            which a file holds no tensor have fresh weights, with a warning.
        weights: Which weights of a run folder: `last` or `best`.
    """
    opened = open_model(start, weights)
    if opened.fresh:
        log.warning("%s: holds no %s, which gets fresh weights", start, " and no ".join(opened.fresh))
    return opened.objective.detector


def _place(start: str | Path, weights: Which) -> Path:
    """Return the file or folder that a run folder, a path or the name of a published detector stands for.

    Raises:
        CheckpointError: There is none; the message names similar ones.
    """
    path = Path(start)
    if weights not in get_args(Which):
        raise ConfigError(f"weights: {weights!r} is neither 'last' nor 'best'{suggest(weights, get_args(Which))}")
    folder = RunFolder(path)
    if folder.weights.exists() or folder.checkpoints.is_dir():
        return _of_run(folder, weights)
    if weights != "last":
        raise ConfigError(f"{path}: --weights {weights} chooses between the weights of a run; this is no run folder")
    if not path.exists():
        if (known := known_detectors()).get(str(start)):
            return cached(known[str(start)])
        siblings = [*known, *(other.name for other in path.parent.iterdir())] if path.parent.is_dir() else []
        raise CheckpointError(f"{path}: no such run or file{suggest(path.name, siblings)}")
    return path


def _of_run(folder: RunFolder, weights: Which) -> Path:
    """Return the chosen weights file of a run, and say which other one there is.

    Raises:
        CheckpointError: The run has none.
    """
    steps, best = folder.best_steps(), folder.status().get("best") or {}
    # Every file was the best when it was written, so the newest is the best of all.
    step = int(best.get("step", max(steps, default=0)))
    kept = step in steps
    of_what = f"step {step}, with the best {best['measure']} ({best['value']:.4g})" if best else f"step {step}"
    if weights == "best":
        if not kept:
            raise CheckpointError(
                f"{folder.path}: keeps no best weights; train with --val and --set evaluate_every=STEPS, or leave "
                "--weights out for the last ones"
            )
        log.info("the weights are those of %s", of_what)
        return folder.best_weights(step)
    if not folder.weights.exists():
        sooner = f"; or take the weights of {of_what}, by --weights best" if kept else ""
        raise CheckpointError(f"{folder.path}: the run has not finished; {folder.resume_command(folder.run())}{sooner}")
    if kept and step != folder.status().get("steps"):
        log.info("the weights are those of the last step; --weights best takes those of %s", of_what)
    return folder.weights


def pick_device(name: str = "auto") -> torch.device:
    """Return the device to compute on; `auto` takes an accelerator where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
