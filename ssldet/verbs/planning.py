"""a run that is ready -> what it would do: recipe, images, steps, device, memory and disk; nothing is written."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ssldet.detectors.base import backbone_of
from ssldet.engine.devices import placement_of
from ssldet.engine.features import keep_features
from ssldet.engine.fit import require_usable
from ssldet.engine.optim import MOMENTS, count_learning
from ssldet.engine.run import Run
from ssldet.escapes import counted
from ssldet.nn.backbones import Backbone
from ssldet.recipe import diff
from ssldet.registry import name_of
from ssldet.task import Objective, learning_sections
from ssldet.verbs.choosing import Specs, changes_of, resolve
from ssldet.verbs.composing import require_one_backbone
from ssldet.verbs.formats import formats_of
from ssldet.verbs.opening import Which
from ssldet.verbs.preparing import Prepared, prepare_finetuning, prepare_pretraining
from ssldet.verbs.quick_choice import weights_in_words
from ssldet.weights.backbone import load_backbone, names_a_file

MEGABYTE = 2**20
BYTES = 4
"""Bytes of one number: weights, gradients and the optimiser's state have 32 bits in either precision."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run would do.

    Attributes:
        recipe: Its name; empty for a `Run`.
        changes: Fields that differ from the recipe, with their values.
        task: Name of the task.
        detector: Name of the detector, and of its backbone.
        weights: Where the weights of the backbone come from, their licence and size; empty without any.
        start: What fine-tuning starts from; empty for the recipe's own detector.
        parameters: Number of parameters.
        learning: Number of those that are trained.
        train: Images to train on.
        val: Images to measure on.
        skipped: Files that can't be used.
        classes: Number of classes; zero for a task that reads no labels.
        steps: Optimiser steps.
        batch_size: Images of one step.
        epochs: Passes over the images.
        evaluate_every: Steps between evaluations; zero for one at the end.
        device: Kind and number of devices.
        precision: Precision of training.
        memory: Bytes of weights, gradients, optimiser and averaged weights; activations come on top.
        disk: Most bytes that checkpoints and weights take.
        free: Free bytes where the run would be written.
        features: What features of a frozen backbone take on disk, and where; empty where none are kept.
        features_disk: Most bytes of these.
        exports: Which exporters will take the detector, and which fields open more formats.
        out: The run folder.
    """

    recipe: str
    changes: dict[str, Any]
    task: str
    detector: str
    weights: str
    start: str
    parameters: int
    learning: int
    train: int
    val: int
    skipped: int
    classes: int
    steps: int
    batch_size: int
    epochs: float
    evaluate_every: int
    device: str
    precision: str
    memory: int
    disk: int
    free: int
    features: str
    features_disk: int
    exports: str
    out: str

    def __str__(self) -> str:
        """Return a line per subject, and that nothing was written."""
        often = f"every {self.evaluate_every} steps" if self.evaluate_every else "at the end"
        measured = f"{self.val:,} to measure on {often}" if self.val else "none to measure on"
        bad = f"; {self.skipped:,} files can't be used" if self.skipped else ""
        classes = f"; {self.classes} classes" if self.classes else ""
        rows = {
            "recipe": self.recipe or "your own",
            "changed": ", ".join(f"{path}={value}" for path, value in self.changes.items()),
            "task": self.task,
            "detector": f"{self.detector}: {self.parameters / 1e6:.1f} M parameters, {self.learning / 1e6:.1f} M learn",
            "start": self.start or (f"backbone {self.weights}" if self.weights else "fresh weights"),
            "images": f"{self.train:,} to train on, {measured}{classes}{bad}",
            "length": f"{counted(self.steps, 'step')} of {self.batch_size} images: {self.epochs:.3g} passes over them",
            "device": f"{self.device}, precision {self.precision}",
            "memory": f"{in_words(self.memory)} for weights and optimiser; activations come on top",
            "disk": f"at most {in_words(self.disk)} for checkpoints and weights; {in_words(self.free)} are free",
            "features": self.features,
            "exports": self.exports,
            "out": self.out,
        }
        return "\n".join(
            [*(f"{name:<8}  {text}" for name, text in rows.items() if text), "all of it checked; nothing was written"]
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What can be counted of a run before it begins.

    Attributes:
        parameters: Number of parameters.
        learning: Number of those that are trained.
        memory: Bytes of weights, gradients, optimiser and averaged weights.
        disk: Most bytes that checkpoints and weights take.
    """

    parameters: int
    learning: int
    memory: int
    disk: int

    @classmethod
    def of(cls, run: Run, objective: Objective | None = None, *, measures: bool) -> "Sizes":
        """Count.

        Args:
            run: The configuration.
            objective: What learns; `None` builds it.
            measures: Whether the run measures anything, so that it keeps its best weights too.
        """
        objective = objective or run.task.objective(run.detector.build())
        objective.detector.train_only(learning_sections(run.task, objective.detector))
        stored = sum(tensor.numel() for tensor in objective.state_dict().values())
        taught = count_learning(objective, run.optim)
        kept = stored * (2 if measures and run.checkpoint.best_of else 1)
        state = stored + MOMENTS[run.optim.optimizer] * taught + (stored if run.optim.ema else 0)
        return cls(
            parameters=sum(p.numel() for p in objective.parameters()),
            learning=taught,
            memory=BYTES * (state + taught),
            # A new checkpoint is written before the oldest is removed.
            disk=BYTES * ((run.checkpoint.keep + 1) * state + kept),
        )


def plan_pretraining(
    images: Specs,
    *,
    start: str | Path | None = None,
    weights: Which = "last",
    recipe: str | Path | Run | None = None,
    backbone: str | None = None,
    val: Specs = (),
    out: str | Path | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Plan:
    """Check a run of pretraining and say what it would do, without writing, fetching or training anything.

    The arguments are those of `pretrain`.

    Raises:
        SsldetError: What `pretrain` would raise before it trains.
    """
    changes = changes_of(images, val, steps, epochs, overrides)
    require_one_backbone(backbone, changes)
    return _plan(prepare_pretraining(images, start, weights, recipe, backbone, changes, out))


def plan_finetuning(
    start: str | Path | None = None,
    data: Specs = (),
    *,
    val: Specs = (),
    unlabelled: Specs = (),
    weights: Which = "last",
    recipe: str | Path | Run | None = None,
    backbone: str | None = None,
    out: str | Path | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Plan:
    """Check a run of fine-tuning and say what it would do, without writing, fetching or training anything.

    The arguments are those of `finetune`.

    Raises:
        SsldetError: What `finetune` would raise before it trains.
    """
    changes = changes_of(data, val, steps, epochs, overrides, unlabelled)
    require_one_backbone(backbone, changes)
    return _plan(prepare_finetuning(start, data, weights, recipe, backbone, changes, out))


def _plan(prepared: Prepared) -> Plan:
    run, sources = prepared.run, prepared.sources
    require_usable(run, sources)
    prepared.folder.require_unused(run)
    objective, _ = prepared.handed_over()
    objective = objective or _built(run)
    steps, sizes = run.total_steps(len(sources.train)), Sizes.of(run, objective, measures=sources.val is not None)
    exports, placement = str(formats_of(objective.detector, run.detector)), placement_of(run)
    features = keep_features(run, objective, sources, placement.world)
    return Plan(
        recipe=prepared.recipe,
        changes=_changes(prepared.recipe, run),
        task=name_of("ssldet.tasks", type(run.task)),
        detector=_detector(run),
        weights=weights_in_words(run.detector),
        start="" if prepared.start is None else prepared.start.name,
        parameters=sizes.parameters,
        learning=sizes.learning,
        train=len(sources.train),
        val=0 if sources.val is None else len(sources.val),
        skipped=len(sources.train.skipped),
        classes=len(sources.train.classes) if run.task.needs.labels else 0,
        steps=steps,
        batch_size=run.data.batch_size,
        epochs=steps * run.data.batch_size / len(sources.train),
        evaluate_every=run.evaluate_every,
        device=str(placement),
        precision=run.precision,
        memory=sizes.memory,
        disk=sizes.disk,
        free=shutil.disk_usage(_existing(prepared.folder.path)).free,
        features="" if features is None else str(features),
        features_disk=0 if features is None else min(features.total, features.store.limit),
        exports=exports,
        out=str(prepared.folder.path),
    )


def _built(run: Run) -> Objective:
    """Build what learns; a file of weights is opened and must fit, and weights that have a name are not fetched."""
    objective, config = run.task.objective(run.detector.build()), backbone_of(run.detector)
    if config is not None and config.weights is not None and names_a_file(config.weights):
        backbone = objective.detector.get_submodule("backbone")
        assert isinstance(backbone, Backbone)
        load_backbone(backbone, config.weights, architecture=config.name, coverage=config.coverage)
    return objective


def _detector(run: Run) -> str:
    """Return the names of the detector and of its backbone."""
    backbone = backbone_of(run.detector)
    return name_of("ssldet.detectors", type(run.detector)) + (f" on {backbone.name}" if backbone else "")


def _changes(recipe: str, run: Run) -> dict[str, Any]:
    """Return the fields in which a run differs from the recipe of its name, without the images and the classes."""
    if not recipe:
        return {}
    found = {path: value for path, _, value in diff(resolve(recipe), run) if value is not None}
    return {
        path: value for path, value in found.items() if path not in {"data.train", "detector.num_classes", "precision"}
    }


def _existing(path: Path) -> Path:
    """Return the folder that a new one would be made in, or the nearest above it that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.is_dir())


def in_words(count: int) -> str:
    """Return a number of bytes as a person reads it."""
    return f"{count / MEGABYTE:,.0f} MB" if count < 10_000 * MEGABYTE else f"{count / 1024 / MEGABYTE:,.0f} GB"
