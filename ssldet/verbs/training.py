"""images -> a trained run: choose a recipe, change what is asked, check it whole, and only then write and train."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ssldet import peers
from ssldet.data.leaks import seen_before
from ssldet.detectors.base import Detector, DetectorConfig, backbone_of
from ssldet.engine.assemble import assemble
from ssldet.engine.checkpoint import inherit, load_weights
from ssldet.engine.description import stages
from ssldet.engine.fit import fit
from ssldet.engine.folder import RunFolder
from ssldet.engine.run import Run
from ssldet.engine.sources import Sources, open_sources
from ssldet.engine.steps import Checkpoints
from ssldet.errors import CheckpointError, ConfigError, DataError, SsldetError
from ssldet.escapes import printable
from ssldet.importing.base import Opened
from ssldet.ranks import launched, rank
from ssldet.recipe import check, from_document, override
from ssldet.source import Source
from ssldet.verbs.choosing import Specs, changes_of, holding_out, placed, texts
from ssldet.verbs.composing import backbone_changes
from ssldet.verbs.handing import transfer
from ssldet.verbs.look import draw_batch, report
from ssldet.verbs.opening import Which, load, open_model
from ssldet.verbs.quick_choice import choose_for_finetuning, choose_for_pretraining, warn_of_few_queries
from ssldet.verbs.using import Exported, evaluate, export, predict

log = logging.getLogger(__name__)

RUN_FOLDER = "SSLDET_RUN_FOLDER"
"""Environment variable that hands the chosen run folder to the processes of other ranks."""
UNMEASURED = (
    "nothing is measured, and the last weights are the only ones: name labelled images by --val, or keep some of these "
    "aside by --set data.held_out=0.1"
)
"""What is said where labelled images are learned from and none are measured on."""


@dataclass(frozen=True)
class Trained:
    """A finished run on disk; everything that one does next starts here.

    Attributes:
        path: The run folder.
    """

    path: Path

    @property
    def results(self) -> dict[str, Any]:
        """What the last evaluation of the run measured."""
        return dict(RunFolder(self.path).status().get("results", {}))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Every line of the metrics file, in order."""
        return RunFolder(self.path).metrics()

    @property
    def run(self) -> Run:
        """The configuration as it ran."""
        return RunFolder(self.path).run()

    @property
    def best(self) -> dict[str, Any] | None:
        """The best evaluation whose weights are kept: `measure`, `value`, `step` and `file`; `None` without one."""
        best = RunFolder(self.path).status().get("best")
        return dict(best) if best else None

    def detector(self, weights: Which = "last") -> Detector:
        """Return the trained detector as a plain `nn.Module`, with the weights of the last step or the best ones."""
        return load(self.path, weights)

    def finetune(self, data: Specs, **choices: Any) -> "Trained":
        """Fine-tune this run's detector; see `ssldet.finetune`."""
        return finetune(self.path, data, **choices)

    def evaluate(self, data: Specs, **choices: Any) -> dict[str, Any]:
        """Measure this run's model; see `ssldet.evaluate`."""
        return evaluate(self.path, texts(data), **choices)

    def predict(self, images: Specs, **choices: Any) -> dict[str, Any]:
        """Detect with this run's model; see `ssldet.predict`."""
        return predict(self.path, texts(images), **choices)

    def export(self, to: str, out: str | Path, **choices: Any) -> Exported:
        """Write this run's detector in another format; see `ssldet.export`."""
        return export(self.path, to=to, out=out, **choices)

    def report(self) -> Path:
        """Write and return this run's `report.html`."""
        return report(self.path)

    def __str__(self) -> str:
        """Say where the run is, which weights measured best, and what to do with it."""
        best, steps = self.best, RunFolder(self.path).status().get("steps")
        kept = f"best {best['measure']}: {best['value']:.4g} at step {best['step']} of {steps}\n" if best else ""
        return f"{kept}{self.path}  (next: ssldet report {self.path})"

    def to_json(self) -> dict[str, Any]:
        """Return the run's status with its folder."""
        return {"run": str(self.path), **RunFolder(self.path).status()}


@peers.together()
def pretrain(
    images: Specs = (),
    *,
    recipe: str | Path | Run | None = None,
    backbone: str | None = None,
    val: Specs = (),
    out: str | Path | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    overrides: Mapping[str, object] | None = None,
    resume: str | Path | None = None,
) -> Trained:
    """Pretrain a detector on images without labels.

    Args:
        images: Folders, globs, file lists, or labelled data whose labels are then not read.
        recipe: A recipe's name, the `run.toml` of an earlier run, or a `Run`; `None` chooses one and says why.
        backbone: A backbone's name in place of the recipe's, whose weights must fit it or be overridden; or the path of
            weights that tell their network; or a run, such as one that taught the backbone alone.
        val: Images to measure the pretext task on; without any, one in twenty of the images, 200 at most, is held out
            for it; the word `none` measures on nothing.
        out: Run folder to create; `None` takes the next free one in `runs/`.
        steps: Length in optimiser steps.
        epochs: Length in passes over the images.
        overrides: Dotted recipe fields and their values.
        resume: A run folder to go on with, instead of starting one.

    Raises:
        ConfigError: With every problem of the configuration; nothing has been written then.
        DataError: The images can't be used.
        StoppedError: A signal asked to stop; all is saved, resume to go on.
    """
    changes = changes_of(images, val, steps, epochs, overrides)
    if backbone is not None:
        changes = backbone_changes(backbone) | changes
    if resume is not None:
        return _go_on(resume, changes)
    choice = choose_for_pretraining(recipe, images)
    run = placed(override(choice.run, changes))
    _require(bool(run.data.train), "no images given; name a folder, a glob or a file list")
    _require(run.task.verb == "pretrain", "the recipe's task reads labels; use finetune for it")
    run = holding_out(run, images, changes)
    choice.announce(run)
    folder = RunFolder(_out(out, "pretrain"))
    fit(run, folder, preview=draw_batch, documents=_origin(run))
    return _reported(folder)


@peers.together()
def finetune(
    start: str | Path | None = None,
    data: Specs = (),
    *,
    val: Specs = (),
    unlabelled: Specs = (),
    weights: Which = "last",
    recipe: str | Path | Run | None = None,
    out: str | Path | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    overrides: Mapping[str, object] | None = None,
    resume: str | Path | None = None,
) -> Trained:
    """Fine-tune a detector on labelled images; its architecture comes from where it starts and is never retyped.

    Args:
        start: A run folder, a weights file, or `scratch` (`None` too) for the recipe's own detector, of which at most
            the backbone has learned before.
        data: `coco:ANN.json:IMAGES`, `voc:ROOT:SPLIT` or `yolo:ROOT:SPLIT`.
        val: The same, to evaluate on. Without it nothing is measured: labels are few and learned from, unless
            `data.held_out` says what share is kept aside.
        unlabelled: Images without labels, or whose labels are then not read, for tasks that learn from both kinds.
        weights: Which weights of a run folder it starts from: `last` or `best`.
        recipe: A recipe's name, the `run.toml` of an earlier run, or a `Run`; `None` chooses one and says why.
        out: Run folder to create; `None` takes the next free one in `runs/`.
        steps: Length in optimiser steps.
        epochs: Length in passes over the images.
        overrides: Dotted recipe fields and their values.
        resume: A run folder to go on with, instead of starting one.

    Raises:
        ConfigError: With every problem of the configuration; nothing has been written then.
        AnnotationError: Labels that can't be trusted, all listed.
        CheckpointError: The start can't be read, or hands over something else than announced.
    """
    changes = changes_of(data, val, steps, epochs, overrides)
    if unlabelled := texts(unlabelled):
        changes = {"data.unlabelled": unlabelled} | changes
    if resume is not None:
        return _go_on(resume, changes)
    _require(bool(data), "no labelled data given; add --data coco:ANN.json:IMAGES, voc:ROOT:SPLIT or yolo:ROOT:SPLIT")
    opened = None if start in (None, "scratch") else open_model(str(start), weights)
    choice = choose_for_finetuning(recipe, data, opened)
    run = placed(override(choice.run if opened is None else _with_detector_of(opened, choice.run), changes))
    _require(
        bool(run.data.unlabelled) or not run.task.needs.unlabelled,
        "no unlabelled images given, which the recipe's task learns from too; add --unlabelled IMAGES",
    )
    choice.announce(run)
    if not run.data.measured_on:
        log.info(UNMEASURED)
    sources = _labelled(run, start)
    classes = sources.train.classes
    task = run.task.stage.learns_from(run.task, sources.train)
    run = override(replace(run, task=task), {"detector.num_classes": len(classes)})
    check(run)
    documents: dict[str, Mapping[str, Any]] = {}
    objective = assemble(run, sources.train, documents)
    if opened is not None:
        handed = transfer(opened, objective.detector, classes=classes)
        handed = replace(handed, rows=handed.rows + inherit(opened.objective, objective, run.task.stage.parts))
        log.info("handed over by %s:\n%s", start, handed)
        documents = {"transfer.json": handed.to_json(), "lineage.json": {"stages": stages(opened.info)}}
    folder = RunFolder(_out(out, "finetune"))
    preview = partial(draw_batch, classes=classes)
    fit(run, folder, objective=objective, sources=sources, preview=preview, documents=documents)
    return _reported(folder)


def _origin(run: Run) -> dict[str, Mapping[str, Any]]:
    """Return the record of the stages behind the backbone's weights, where they are a file of ours."""
    backbone = backbone_of(run.detector)
    weights = Path("" if backbone is None else backbone.weights or "").expanduser()
    try:
        info, _ = load_weights(weights)
    except CheckpointError:
        return {}  # someone else's weights, or none, or what the run will refuse by itself
    return {"lineage.json": {"stages": stages(info)}}


def _with_detector_of(opened: Opened, run: Run) -> Run:
    """Take the architecture from a file, with the choices that shape what the task inherits from it.

    What the file holds replaces whatever weights its own backbone once started from.
    """
    taught: DetectorConfig = from_document(DetectorConfig, opened.info["detector"])  # type: ignore[type-abstract]
    config = run.task.stage.receives(opened.task.stage.hands_over(taught))
    shaping = {
        f"task.{field}": getattr(opened.task, field)
        for part, names in run.task.stage.parts.items()
        for field in names
        if hasattr(opened.objective, part) and hasattr(opened.task, field)
    }
    own_weights = {} if backbone_of(config) is None else {"detector.backbone.weights": "none"}
    return override(replace(run, detector=config), own_weights | shaping)


def _labelled(run: Run, start: str | Path | None) -> Sources:
    """Open the training data, which must have classes, and make sure that the evaluation data have the same."""
    sources = open_sources(run)
    warn_of_few_queries(run.detector, sources.train, run.task)
    _require(
        bool(sources.train.classes), f"{', '.join(run.data.train)}: carries no labels; use coco:…, voc:… or yolo:…"
    )
    if sources.val is not None:
        _require_same_classes(run, sources.train, sources.val)
        _warn_of_leaks(start, sources.val)
        if seen := seen_before(run.data.unlabelled, sources.val):
            log.warning(
                "%d of %d images of data.val are among the unlabelled ones, %s for one; the score may flatter, though "
                "no label of theirs is read. Leave them out, or say so beside the number",
                len(seen),
                len(sources.val),
                seen[0],
            )
    return sources


def _warn_of_leaks(start: str | Path | None, val: Source) -> None:
    """Say if images to measure on were pretrained on, as far as the record of the start tells without a search."""
    folder = RunFolder(Path(str(start)))
    if not (folder.path / "run.toml").exists():
        return
    try:
        seen = seen_before(folder.run().data.train, val)
    except SsldetError as error:
        log.info("can't tell whether data.val was pretrained on: %s", error)
        return
    if seen:
        log.warning(
            "%d of %d images of data.val lie where %s was pretrained, %s for one; its score may flatter it, although "
            "no label was read. Pretrain without them, or say so beside the number",
            len(seen),
            len(val),
            start,
            seen[0],
        )


def _require_same_classes(run: Run, source: Source, val: Source) -> None:
    """Labels are numbers to a detector: other classes would score near zero, unnoticed."""
    _require(
        bool(val.classes),
        f"{', '.join(run.data.measured_on)}: carries no labels to measure on; use coco:…, voc:… or yolo:…",
    )
    if val.classes != source.classes:
        train, measured = set(source.classes), set(val.classes)
        missing = [name for name in source.classes if name not in measured]
        added = [name for name in val.classes if name not in train]
        parts = [("lacks", missing), ("has in addition", added)]
        words = " and ".join(f"{verb} {_listed(names)}" for verb, names in parts if names)
        raise DataError(
            f"data.val {words}, compared with the {len(source.classes)} classes of data.train; their order may differ, "
            "their names may not: give both the same class list"
        )


def _listed(names: Sequence[str]) -> str:
    """Return some names on one line, escaped where they hold line ends."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(map(printable, names[:10])) + more


def _go_on(path: str | Path, changes: Mapping[str, object]) -> Trained:
    folder = RunFolder(Path(path))
    run = placed(override(_recorded(folder), changes), weights=False)
    check(run)
    sources = open_sources(run)
    fit(run, folder, sources=sources, resume=True, preview=partial(draw_batch, classes=sources.train.classes))
    return _reported(folder)


def _recorded(folder: RunFolder) -> Run:
    """Return the configuration of a run; where its record can't be read, the one in its newest checkpoint."""
    try:
        return folder.run()
    except ConfigError as error:
        restored = Checkpoints(folder.checkpoints).newest()
        if restored is None:
            raise
        run = from_document(Run, restored.state["run"])
        log.warning("%s; the configuration in the checkpoint of step %d is used instead", error, restored.step)
        return run


def _out(out: str | Path | None, verb: str) -> Path:
    """Return the run folder; the processes that the first one launches are told which it chose."""
    if out is not None:
        return Path(out)
    here, machines = launched() or (1, 1)
    if here * machines > 1 or (rank() and RUN_FOLDER not in os.environ):
        raise ConfigError("processes that a launcher starts side by side can't agree on a run folder; name it by --out")
    if rank() == 0:
        number = 1
        while (Path("runs") / f"{verb}-{number}").exists():
            number += 1
        os.environ[RUN_FOLDER] = str(Path("runs") / f"{verb}-{number}")
    return Path(os.environ[RUN_FOLDER])


def _reported(folder: RunFolder) -> Trained:
    """Write the report of a finished run; that it can't be written does not make the run a failure."""
    if rank() == 0:
        try:
            report(folder.path)
        except OSError as error:
            log.warning("%s: has no report (%s); make room, then: ssldet report %s", folder.path, error, folder.path)
    return Trained(folder.path)


def _require(fine: bool, problem: str) -> None:
    if not fine:
        raise ConfigError(problem)
