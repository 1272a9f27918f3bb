"""words -> a run that is ready to train: recipe, changes, images, labels and start are checked; nothing is written."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ssldet.data.leaks import seen_before
from ssldet.detectors.base import backbone_of
from ssldet.engine.assemble import assemble
from ssldet.engine.checkpoint import load_weights
from ssldet.engine.description import stages
from ssldet.engine.devices import placement_of, settled
from ssldet.engine.folder import RunFolder
from ssldet.engine.run import Run
from ssldet.engine.sources import Sources, open_sources
from ssldet.errors import CheckpointError, ConfigError, DataError, SsldetError
from ssldet.escapes import printable, shown
from ssldet.ranks import launched, rank
from ssldet.recipe import check, override
from ssldet.registry import name_of
from ssldet.source import Source
from ssldet.states import few
from ssldet.task import Objective
from ssldet.verbs.channels import for_channels, normalised
from ssldet.verbs.choosing import Specs, holding_out, placed
from ssldet.verbs.composing import backbone_changes
from ssldet.verbs.opening import Which
from ssldet.verbs.quick_choice import Choice, choose_for_finetuning, choose_for_pretraining, warn_of_few_queries
from ssldet.verbs.starting import Start

log = logging.getLogger(__name__)

RUN_FOLDER = "SSLDET_RUN_FOLDER"
"""Environment variable that hands the chosen run folder to the processes of other ranks."""
UNMEASURED = (
    "nothing is measured, and the last weights are the only ones: name labelled images by --val, or keep some of these "
    "aside by --set data.held_out=0.1"
)
"""What is said where labelled images are learned from and none are measured on."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run that can be trained.

    Attributes:
        run: The configuration.
        sources: Its images, opened.
        folder: Where it is to be written; not created yet.
        recipe: Name of the recipe; empty for a `Run`.
        start: The trained model that it starts from; `None` for the recipe's own detector.
        chosen: Whether no recipe was named, so that what it brings along is said.
    """

    run: Run
    sources: Sources
    folder: RunFolder
    recipe: str = ""
    start: Start | None = None
    chosen: bool = False

    def handed_over(self) -> tuple[Objective | None, dict[str, Mapping[str, Any]]]:
        """Build what learns and hand the model of the start over to it.

        Returns:
            The objective, `None` where the run starts from nothing but its recipe; and documents about its weights for
            the run folder, by name.

        Raises:
            CheckpointError: The start hands over something else than announced.
        """
        if self.start is None:
            return None, _origin(self.run)
        documents: dict[str, Mapping[str, Any]] = {}
        objective = assemble(self.run, self.sources.train, documents)
        handed = self.start.hand_over(objective, self.run.task, self.sources.train.classes)
        return objective, documents | {"transfer.json": handed.to_json(), "lineage.json": self.start.lineage(handed)}


def prepare_pretraining(
    images: Specs,
    start: str | Path | None,
    weights: Which,
    recipe: str | Path | Run | None,
    backbone: str | None,
    changes: Mapping[str, object],
    out: str | Path | None,
) -> Prepared:
    """Choose, change and check a run of pretraining, and open its images and what it starts from.

    Args:
        images: Training images as the user named them.
        start: A run folder or a weights file; `None` starts with the recipe's own detector.
        weights: Which weights of a run folder it starts from.
        recipe: A recipe's name, a record, or a `Run`; `None` chooses.
        backbone: A backbone in one word, see `backbone_changes`; `None` keeps the recipe's.
        changes: Dotted fields that the user set, and their values.
        out: Run folder; `None` takes the next free one.

    Raises:
        ConfigError: With every problem of the configuration.
        DataError: The images can't be used.
        CheckpointError: The start can't be read.
    """
    choice, begins = choose_for_pretraining(recipe, images), Start.at(start, weights, backbone)
    if backbone is not None and begins is None:
        changes = backbone_changes(backbone, None if isinstance(recipe, Run) else choice.run.task) | dict(changes)
    run = _shaped(choice.run, begins, changes)
    _require(bool(run.data.train), "no images given; name a folder, a glob or a file list")
    _require(run.task.verb == "pretrain", "the recipe's task reads labels; use finetune for it")
    run = _checked(holding_out(run, images, changes))
    choice.announce(run)
    sources = open_sources(run)
    return Prepared(
        run=normalised(run, sources.train),
        sources=sources,
        folder=RunFolder(_out(out, "pretrain")),
        recipe=_name(recipe, choice),
        start=begins,
        chosen=bool(choice.recipe),
    )


def prepare_finetuning(
    start: str | Path | None,
    data: Specs,
    weights: Which,
    recipe: str | Path | Run | None,
    backbone: str | None,
    changes: Mapping[str, object],
    out: str | Path | None,
) -> Prepared:
    """Choose, change and check a run of fine-tuning, and open what it starts from and its labelled images.

    Args:
        start: A run folder, a weights file, or `scratch` (`None` too).
        data: Training data as the user named them.
        weights: Which weights of a run folder it starts from.
        recipe: A recipe's name, a record, or a `Run`; `None` chooses.
        backbone: A backbone in one word in place of the start's, or of the recipe's, see `backbone_changes`.
        changes: Dotted fields that the user set, and their values.
        out: Run folder; `None` takes the next free one.

    Raises:
        ConfigError: With every problem of the configuration.
        AnnotationError: Labels that can't be trusted, all listed.
        CheckpointError: The start can't be read.
    """
    _require(bool(data), "no labelled data given; add --data coco:ANN.json:IMAGES, voc:ROOT:SPLIT or yolo:ROOT:SPLIT")
    begins = Start.at(start, weights, backbone)
    choice = choose_for_finetuning(recipe, data, None if begins is None else begins.opened)
    if backbone is not None and begins is None:
        changes = backbone_changes(backbone, choice.run.task) | dict(changes)
    run = _shaped(choice.run, begins, changes)
    _require(
        bool(run.data.unlabelled) or not run.task.needs.unlabelled,
        "no unlabelled images given, which the recipe's task learns from too; add --unlabelled IMAGES",
    )
    choice.announce(run)
    if not run.data.measured_on:
        log.info(UNMEASURED)
    sources = _labelled(run, start)
    _require_classes_of_data(changes, sources.train)
    task = run.task.stage.learns_from(run.task, sources.train)
    run = _checked(override(replace(run, task=task), {"detector.num_classes": len(sources.train.classes)}))
    return Prepared(
        run=normalised(run, sources.train),
        sources=sources,
        folder=RunFolder(_out(out, "finetune")),
        recipe=_name(recipe, choice),
        start=begins,
        chosen=bool(choice.recipe),
    )


def _shaped(run: Run, begins: Start | None, changes: Mapping[str, object]) -> Run:
    """Return a recipe's run with what the user set and, from where it starts, the architecture."""
    if begins is not None:
        return placed(begins.shape(run, changes))
    return for_channels(placed(override(run, changes)))


def _checked(run: Run) -> Run:
    """Return a run with the precision of its device settled, if it can be made and the device is there."""
    check(run)
    placement_of(run)
    return settled(run)


def _name(recipe: str | Path | Run | None, choice: Choice) -> str:
    return choice.recipe if recipe is None or isinstance(recipe, Run) else str(recipe)


def _origin(run: Run) -> dict[str, Mapping[str, Any]]:
    """Return the record of the stages behind the backbone's weights, where they are a file of ours."""
    backbone = backbone_of(run.detector)
    weights = Path("" if backbone is None else backbone.weights or "").expanduser()
    try:
        info, _ = load_weights(weights)
    except CheckpointError:
        return {}  # someone else's weights, or none, or what the run will refuse by itself
    return {"lineage.json": {"stages": stages(info)}}


def _labelled(run: Run, start: str | Path | None) -> Sources:
    """Open the training data, which must have classes, and make sure that the evaluation data have the same."""
    _require(
        run.task.needs.labels,
        f"the recipe's task, {name_of('ssldet.tasks', type(run.task))}, learns without labels; use pretrain for it, or "
        "another recipe: ssldet list recipes 'detection/*'",
    )
    sources = open_sources(run)
    warn_of_few_queries(run.detector, sources.train, run.task)
    _require(
        bool(sources.train.classes), f"{', '.join(run.data.train)}: carries no labels; use coco:…, voc:… or yolo:…"
    )
    _require(
        _has_objects(sources.train),
        f"{', '.join(run.data.train)}: has classes and not one object to learn from; look at it with ssldet data check",
    )
    require_fair_measures(run, sources)
    if sources.val is not None and start is not None:
        _warn_of_leaks(start, sources.val)
    return sources


def require_fair_measures(run: Run, sources: Sources) -> None:
    """Make sure that labelled images are measured on with the classes that are learned, and say which are learned from.

    Args:
        run: The configuration, of a run that begins or of one that goes on.
        sources: Its images.

    Raises:
        DataError: The images to measure on have other classes.
        ConfigError: They have none.
    """
    if sources.val is None or not run.task.needs.labels:
        return
    _require_same_classes(run, sources.train, sources.val)
    if seen := seen_before(run.data.unlabelled, sources.val):
        log.warning(
            "%d of %d images of data.val are among the unlabelled ones, %s for one; the score may flatter, though "
            "no label of theirs is read. Leave them out, or say so beside the number",
            *(len(seen), len(sources.val), seen[0]),
        )
    else:
        _warn_of_common_images(sources.train, sources.val)


def _require_classes_of_data(changes: Mapping[str, object], train: Source) -> None:
    """Refuse another number of classes than that of the labels, which would be dropped without a word."""
    asked, known = changes.get("detector.num_classes"), len(train.classes)
    _require(
        asked is None or str(asked) == str(known),
        f"detector.num_classes={asked}: fine-tuning takes the classes of the data, which are {known} "
        f"({few(train.classes)}); leave it out",
    )


def _has_objects(source: Source) -> bool:
    """Return whether any image has an object, as far as that is known without reading images."""
    known = (targets for targets in map(source.targets_of, range(len(source))) if targets is not None)
    first = next(known, None)
    return first is None or len(first.boxes) > 0 or any(len(targets.boxes) for targets in known)


def _warn_of_common_images(train: Source, val: Source) -> None:
    """Say if images to measure on are trained on under the same names, labelled or not."""
    names = {name for name in train.all_names() if name is not None}
    if common := [name for name in val.all_names() if name in names]:
        log.warning(
            "%d of %d images of data.val are among those that are trained on, %s for one; the score flatters",
            *(len(common), len(val), shown(common[0])),
        )


def _warn_of_leaks(start: str | Path, val: Source) -> None:
    """Say if images to measure on were pretrained on, as far as the record of the start tells without a search."""
    folder = RunFolder(Path(start))
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


def _require(fine: bool, problem: str) -> None:
    if not fine:
        raise ConfigError(problem)
