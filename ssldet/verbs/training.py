"""images -> a trained run: choose a recipe, change what is asked, check it whole, and only then write and train."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ssldet import peers
from ssldet.detectors.base import Detector
from ssldet.engine.fit import fit
from ssldet.engine.folder import RunFolder
from ssldet.engine.run import Run
from ssldet.engine.sources import open_sources
from ssldet.engine.steps import Checkpoints
from ssldet.errors import ConfigError
from ssldet.ranks import rank
from ssldet.recipe import check, from_document, override
from ssldet.report.story import summary_card
from ssldet.verbs.choosing import Specs, changes_of, placed, texts
from ssldet.verbs.composing import backbone_changes, require_one_backbone
from ssldet.verbs.exporting import Exported, export
from ssldet.verbs.formats import formats_of_built
from ssldet.verbs.look import draw_batch, report
from ssldet.verbs.opening import Which, load
from ssldet.verbs.preparing import Prepared, prepare_finetuning, prepare_pretraining, require_fair_measures
from ssldet.verbs.using import evaluate, predict

log = logging.getLogger(__name__)


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
        results = RunFolder(self.path).status().get("results")
        return dict(results) if isinstance(results, dict) else {}

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
        return RunFolder(self.path).best

    def detector(self, weights: Which = "last") -> Detector:
        """Return the trained detector as a plain `nn.Module`, with the weights of the last step or the best ones.

        Args:
            weights: `last` for those of the last step, `best` for those that measured best.

        Raises:
            CheckpointError: There are no such weights, or they can't be read.
        """
        return load(self.path, weights)

    def pretrain(self, images: Specs, **choices: Any) -> "Trained":
        """Go on with this run's detector on images without labels.

        Args:
            images: Folders, globs, file lists, or labelled data whose labels are then not read.
            **choices: Further arguments of `ssldet.pretrain`, which also says what is raised.
        """
        return pretrain(images, start=self.path, **choices)

    def finetune(self, data: Specs, **choices: Any) -> "Trained":
        """Fine-tune this run's detector on labelled images.

        Args:
            data: `coco:ANN.json:IMAGES`, `voc:ROOT:SPLIT` or `yolo:ROOT:SPLIT`.
            **choices: Further arguments of `ssldet.finetune`, which also says what is raised.
        """
        return finetune(self.path, data, **choices)

    def evaluate(self, data: Specs, **choices: Any) -> dict[str, Any]:
        """Measure this run's model, and return the figures by name.

        Args:
            data: Labelled images for a detector, any images for a pretext task.
            **choices: Further arguments of `ssldet.evaluate`, which also says what is raised.
        """
        return evaluate(self.path, texts(data), **choices)

    def predict(self, images: Specs, **choices: Any) -> dict[str, Any]:
        """Detect objects with this run's model, or find patches if it was pretrained only.

        Args:
            images: Folders, globs, file lists or single files.
            **choices: Further arguments of `ssldet.predict`, which also says what is raised.
        """
        return predict(self.path, texts(images), **choices)

    def export(self, to: str, out: str | Path | None = None, **choices: Any) -> Exported:
        """Write this run's detector in another format, load it back and compare.

        Args:
            to: A name from `ssldet list exporters`.
            out: File to create; `None` for `hub:`, which writes none here.
            **choices: Further arguments of `ssldet.export`, which also says what is raised.
        """
        return export(self.path, to=to, out=out, **choices)

    def report(self, **choices: Any) -> Path:
        """Write and return this run's `report.html`.

        Args:
            **choices: Further arguments of `ssldet.report`, such as `data` to measure on first.
        """
        return report(self.path, **choices)

    def __str__(self) -> str:
        """Say where the run is, which weights measured best, and what to do with it."""
        best, steps = self.best, RunFolder(self.path).status().get("steps")
        kept = f"best {best['measure']}: {best['value']:.4g} at step {best['step']} of {steps}\n" if best else ""
        return f"{kept}{self.path}  (next: ssldet report {self.path})"

    def _repr_html_(self) -> str:
        """Show in a notebook how good it is, compared with what, and where the report lies."""
        return summary_card(self.path)

    def to_json(self) -> dict[str, Any]:
        """Return the run's status with its folder."""
        return {"run": str(self.path), **RunFolder(self.path).status()}


@peers.together()
def pretrain(
    images: Specs = (),
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
    resume: str | Path | None = None,
) -> Trained:
    """Pretrain a detector on images without labels.

    Args:
        images: Folders, globs, file lists, or labelled data whose labels are then not read.
        start: A run folder or a weights file to go on from with these images; a task of the same kind takes its heads
            over too. `None` starts with the recipe's own detector.
        weights: Which weights of a run folder it starts from: `last` or `best`.
        recipe: A recipe's name, the `run.toml` of an earlier run, or a `Run`; `None` chooses one and says why.
        backbone: A backbone's name in place of the recipe's or the start's, whose weights must fit it or be overridden;
            or the path of weights that tell their network; or a run, such as one that taught the backbone alone. The
            transformer of a start stays, and what joins it to the backbone begins anew.
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
        CheckpointError: The start can't be read, or hands over something else than announced.
        StoppedError: A signal asked to stop; all is saved, resume to go on.
    """
    changes = changes_of(images, val, steps, epochs, overrides)
    require_one_backbone(backbone, changes)
    if resume is not None:
        _require_same_run(resume, out, start=start, recipe=recipe)
        return _go_on(resume, changes if backbone is None else backbone_changes(backbone) | changes)
    return _train(prepare_pretraining(images, start, weights, recipe, backbone, changes, out))


@peers.together()
def finetune(
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
        backbone: A backbone in place of the start's or the recipe's, as for `pretrain`.
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
    changes = changes_of(data, val, steps, epochs, overrides, unlabelled)
    require_one_backbone(backbone, changes)
    if resume is not None:
        _require_same_run(resume, out, start=start, recipe=recipe)
        return _go_on(resume, changes if backbone is None else backbone_changes(backbone) | changes)
    return _train(prepare_finetuning(start, data, weights, recipe, backbone, changes, out))


def _train(prepared: Prepared) -> Trained:
    objective, documents = prepared.handed_over()
    if prepared.chosen and rank() == 0:
        log.info("the detector %s", formats_of_built(prepared.run.detector))
    preview = partial(draw_batch, classes=prepared.sources.train.classes)
    fit(
        prepared.run, prepared.folder, objective=objective, sources=prepared.sources, preview=preview,
        documents=documents,
    )  # fmt: skip
    return _reported(prepared.folder)


def _require_same_run(resume: str | Path, out: str | Path | None, **unread: object) -> None:
    """Refuse another folder for a run that goes on, and say which choices of its beginning are not made again.

    Raises:
        ConfigError: The run goes on in its own folder.
    """
    if out is not None and Path(out).absolute() != Path(resume).absolute():
        raise ConfigError(f"--out {out}: a run goes on in its own folder, {resume}; leave one of the two out")
    named = " and ".join(f"--{name}" if name != "start" else "the start" for name, value in unread.items() if value)
    if named:
        log.warning("%s: goes on with the configuration that it began with; %s is not read", resume, named)


def _go_on(path: str | Path, changes: Mapping[str, object]) -> Trained:
    folder = RunFolder(Path(path))
    run = placed(override(_recorded(folder), changes), weights=False)
    check(run)
    sources = open_sources(run)
    require_fair_measures(run, sources)
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


def _reported(folder: RunFolder) -> Trained:
    """Write the report of a finished run; that it can't be written does not make the run a failure."""
    if rank() == 0:
        try:
            report(folder.path)
        except OSError as error:
            log.warning("%s: has no report (%s); make room, then: ssldet report %s", folder.path, error, folder.path)
    return Trained(folder.path)
