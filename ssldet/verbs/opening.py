"""RUN | FILE -> a trained model, ours or of another project, recognised by content and not by file name."""

import logging
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch

from ssldet.detectors.base import Detector
from ssldet.engine.checkpoint import load_exactly
from ssldet.engine.description import describe, stated
from ssldet.engine.folder import RunFolder
from ssldet.engine.resume import fault_of
from ssldet.engine.run import Run
from ssldet.engine.sources import open_sources
from ssldet.engine.steps import Checkpoints
from ssldet.errors import CheckpointError, ConfigError, suggest
from ssldet.importing.base import Candidate, Opened, importers
from ssldet.recipe import from_document
from ssldet.weights.cache import cached
from ssldet.weights.graphs import GRAPH_ONLY
from ssldet.weights.hub import fetched, is_on_hub
from ssldet.weights.zoo import known_detectors

log = logging.getLogger(__name__)

Which = Literal["last", "best"]
"""Which weights of a run: those of its last step, or those that measured best on the way."""
RECIPE = "run.toml"
"""The file by which a run folder is known."""
PARTS = {RECIPE, "weights", "checkpoints", "run.json", "metrics.jsonl", "lineage.json", "report.html", "train.log"}
"""Files and folders of a run that hold no model by themselves."""
CHECKPOINT = ".ckpt"
"""Ending of the checkpoints of a run, which no other program reads."""
MOST_NAMED = 5
"""Runs of a folder that a message names."""
Step = int | Literal["latest"]
"""A step of which a run has a checkpoint, or the newest of them that is whole."""


def open_model(start: str | Path, weights: Which = "last", step: Step | None = None) -> Opened:
    """Open a run folder, a weights file, or any other file or folder that a registered importer reads.

    Args:
        start: A run folder; the name of a published detector; a repository of the Hugging Face hub,
            `hub:USER/NAME[@REVISION]`; or a file or folder of a kind that one of `ssldet list importers` knows, such as
            a DETR or UP-DETR checkpoint, one that detectron2 wrote of either, or a folder with a DETR of transformers.
        weights: Which weights of a run folder: `last` or `best`.
        step: Take a checkpoint of a run, which need not have finished, instead of its weights.

    Raises:
        CheckpointError: There is no such file or folder, or it can't be read or recognised; or no such checkpoint.
        ConfigError: There is no such choice of weights, or weights and a step are chosen at once.
    """
    opened = _opened(start, weights, step)
    if opened.answers_only:
        raise CheckpointError(f"{start}: {GRAPH_ONLY}")
    return opened


def open_trained(start: str | Path, weights: Which = "last", step: Step | None = None) -> Opened:
    """Open a model like `open_model`, and refuse one that needs training before it can answer.

    Args:
        start: As for `open_model`.
        weights: Likewise.
        step: Likewise.

    Raises:
        CheckpointError: There is no such file, or it can't be read, or it lacks whole sections of the detector.
    """
    return _complete(open_model(start, weights, step), start)


def open_answering(start: str | Path, weights: Which = "last", step: Step | None = None) -> Opened:
    """Open a model that only has to answer images: like `open_trained`, and an ONNX graph of ssldet too.

    Args:
        start: As for `open_model`, or an ONNX file that `ssldet export` wrote.
        weights: Likewise.
        step: Likewise.

    Raises:
        CheckpointError: As `open_trained`; or the graph is damaged, foreign, or needs more than images.
        SetupError: It is a graph, and onnxruntime is not installed.
    """
    return _complete(_opened(start, weights, step), start)


def _opened(start: str | Path, weights: Which, step: Step | None) -> Opened:
    """Open what the first importer recognises, or a checkpoint of a run."""
    if step is not None:
        if weights != "last":
            raise ConfigError(f"weights and step: choose either the {weights} weights or those of a step, not both")
        return open_checkpoint(Path(start), step)
    candidate = Candidate(_place(start, weights))
    readable = []
    for importer in importers():
        if importer.recognises(candidate):
            return importer.open(candidate)
        readable.append(importer.reads)
    remedy = f"importers read {'; '.join(readable)}" if readable else "no importer is installed: install ssldet again"
    raise CheckpointError(f"{candidate.path}: {_describe(candidate)}; {remedy}")


def _complete(opened: Opened, start: str | Path) -> Opened:
    """Return a model that needs no training before it answers; refuse others."""
    if opened.fresh:
        raise CheckpointError(
            f"{start}: holds no {' and no '.join(opened.fresh)}, so it finds nothing before it is trained; start from "
            f"it with: ssldet finetune {start} --data coco:ANNOTATIONS.json:IMAGES"
        )
    return opened


def open_checkpoint(path: Path, step: Step) -> Opened:
    """Open the model that a run had at a step, averaged where the run averages.

    Args:
        path: A run folder.
        step: Which checkpoint.

    Raises:
        ConfigError: It is not a run folder.
        CheckpointError: There is no such checkpoint, or it is damaged or of another run.
    """
    folder = RunFolder(path)
    checkpoints = Checkpoints(folder.checkpoints)
    fault = partial(fault_of, recorded=folder.run(), run_id=folder.id)
    if not (steps := checkpoints.steps()):
        raise CheckpointError(f"{path}: has no checkpoint; leave --step out, or {folder.resume_command(folder.run())}")
    if step == "latest":
        restored = checkpoints.newest(fault)
        assert restored is not None
        number, state = restored.step, restored.state
    elif step in steps:
        number, state = step, checkpoints.read(step)
        if reason := fault(state):
            raise CheckpointError(f"{checkpoints.path(step)}: {reason}; name another --step")
    else:
        there = ", ".join(map(str, sorted(steps)))
        raise CheckpointError(f"{path}: has no checkpoint of step {step}; there are {there}, or --step latest")
    run = from_document(Run, state["run"])
    data = state["data"] if "classes" in state["data"] else stated(open_sources(run).train)
    objective = run.task.objective(run.detector.build())
    average = {name.removeprefix("module."): value for name, value in (state["average"] or {}).items()}
    weights = {name: value for name, value in average.items() if name != "n_averaged"} or state["objective"]
    load_exactly(objective, weights, str(checkpoints.path(number)))
    total = run.total_steps(data["images"])
    unfinished = ", which has not finished," if number < total else ""
    log.warning("%s: the model of step %d of %d of a run%s is taken", path, number, total, unfinished)
    info = describe(run, data, number, folder.lineage())
    return Opened(objective=objective.eval(), task=run.task, classes=tuple(data["classes"]), info=info)


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
    if is_on_hub(start) and weights == "last":
        return fetched(start, folder=True)
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
    _refuse_parts(path)
    return path


def _refuse_parts(path: Path) -> None:
    """Refuse a part of a run folder, or a folder of runs, where the run is meant.

    Raises:
        CheckpointError: It is one; names the run.
    """
    run = path.absolute().parent.parent if path.suffix == CHECKPOINT else path.absolute().parent
    if (path.name in PARTS or path.suffix == CHECKPOINT) and (run / RECIPE).is_file():
        raise CheckpointError(
            f"{path}: is a part of a run; name the run, {run}; evaluate, predict and export take checkpoints by --step"
        )
    if path.is_dir() and (runs := sorted(recipe.parent for recipe in path.glob(f"*/{RECIPE}"))):
        more = f", …, {len(runs)} in all" if len(runs) > MOST_NAMED else ""
        raise CheckpointError(
            f"{path}: is a folder of runs; name one of them: {', '.join(map(str, runs[:MOST_NAMED]))}{more}"
        )


def _of_run(folder: RunFolder, weights: Which) -> Path:
    """Return the chosen weights file of a run, and say which other one there is.

    Raises:
        CheckpointError: The run has none.
    """
    steps, best = folder.best_steps(), folder.best
    # Every file was the best when it was written, so the newest is the best of all.
    step = int(best["step"]) if best else max(steps, default=0)
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
        raise CheckpointError(
            f"{folder.path}: the run has not finished; take its newest checkpoint with --step latest, or go on with: "
            f"{folder.resume_command(folder.run())}{sooner}"
        )
    if kept and step != folder.status().get("steps"):
        log.info("the weights are those of the last step; --weights best takes those of %s", of_what)
    return folder.weights


def pick_device(name: str = "auto") -> torch.device:
    """Return the device to compute on; `auto` takes an accelerator where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
