"""words -> Run: a recipe by name, file or value, with the changes that the caller asks for."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ssldet.data.files import absolute
from ssldet.data.holding_out import USUAL_SHARE
from ssldet.data.own_transform import adopt
from ssldet.data.sources import absolute_spec
from ssldet.detectors.base import backbone_of
from ssldet.engine.run import Run
from ssldet.errors import ConfigError
from ssldet.recipe import is_unset, override
from ssldet.recipe import load as load_record
from ssldet.registry import FIELDS, find_or_import, names

NOTHING = "none"
"""What takes the place of images to evaluate on where nothing is to be evaluated."""

Specs = str | Path | Sequence[str | Path]
"""One data specification or several: folders, globs, file lists, `coco:…`, `voc:…`."""


def resolve(recipe: str | Path | Run) -> Run:
    """Return the run of a recipe.

    Args:
        recipe: A recipe's name, a TOML file, or a `Run`, which is returned as it is.

    Raises:
        ConfigError: No such recipe, or the record does not describe a run.
    """
    if isinstance(recipe, Run):
        return recipe
    if str(recipe).endswith(".toml"):
        return load_record(Run, Path(recipe))
    run: Run = find_or_import("ssldet.recipes", str(recipe))()
    return run


def recipe_of(task: str) -> str | None:
    """Return the name of a task's recipe `NAME/r50`, or else of its first one; `None` where it has none.

    Args:
        task: A registered name.
    """
    own = [name for name in names("ssldet.recipes") if name.startswith(f"{task}/")]
    return f"{task}/r50" if f"{task}/r50" in own else next(iter(own), None)


def changes_of(
    train: Specs,
    val: Specs = (),
    steps: int | None = None,
    epochs: float | None = None,
    overrides: Mapping[str, object] | None = None,
    unlabelled: Specs = (),
) -> dict[str, object]:
    """Return changes of recipe fields for the arguments of a verb; explicit overrides take precedence.

    Args:
        train: Training images; empty keeps the recipe's.
        val: Images to evaluate on; empty keeps the recipe's, and the word `none` takes none, held out or not.
        steps: Length in optimiser steps; in place of the recipe's length, however that is stated.
        epochs: Length in passes over the training set, likewise.
        overrides: Dotted recipe fields and their values. `task.name`, `detector.name` or `task.augmentation` may be a
            `module:Object` that no package registers: the module is imported here, because the caller named it, and
            files that name the same object can then be read. `task.augmentation` may be a transform itself.
        unlabelled: Images whose labels are not read; empty keeps the recipe's.

    Raises:
        ConfigError: The length, or a set of images, is stated twice.
    """
    overrides = dict(overrides or {})
    _require_once(overrides, train, val, unlabelled)
    for group, path in FIELDS.items():
        # An augmentation without a colon may be one that a task knows by itself.
        if isinstance(named := overrides.get(path), str) and (":" in named or path != "task.augmentation"):
            find_or_import(group, named)
    if callable(transform := overrides.get("task.augmentation")):
        overrides["task.augmentation"] = adopt(transform)
    changes: dict[str, object] = {}
    if train := texts(train):
        changes["data.train"] = train
    if texts(val) == (NOTHING,):
        changes |= {"data.val": (), "data.held_out": 0.0}
    elif val := texts(val):
        changes["data.val"] = val
    if unlabelled := texts(unlabelled):
        changes["data.unlabelled"] = unlabelled
    return changes | _length(steps, epochs, overrides) | overrides


def _require_once(overrides: Mapping[str, object], train: Specs, val: Specs, unlabelled: Specs) -> None:
    """Refuse images that are named by an argument and by a field, of which one would be dropped without a word."""
    measured = ("data.val", "data.held_out") if texts(val) == (NOTHING,) else ("data.val",)
    named = {"data.train": train, **dict.fromkeys(measured, val), "data.unlabelled": unlabelled}
    if twice := [path for path, specs in named.items() if texts(specs) and path in overrides]:
        raise ConfigError(
            [
                f"--set {path}: {', '.join(texts(named[path]))} says it already; leave one of the two out"
                for path in twice
            ]
        )


def _length(steps: int | None, epochs: float | None, overrides: Mapping[str, object]) -> dict[str, object]:
    """Return the length of training that the caller states, which replaces the recipe's in either unit."""
    stated = {
        name: (path, value)
        for name, path, value in (
            ("--steps", "budget.steps", steps),
            ("--epochs", "budget.epochs", epochs),
            ("budget.steps", "budget.steps", overrides.get("budget.steps")),
            ("budget.epochs", "budget.epochs", overrides.get("budget.epochs")),
        )
        if not is_unset(value)
    }
    if len(stated) > 1:
        raise ConfigError(f"{' and '.join(stated)}: each states the length of training; leave all but one out")
    length: dict[str, object] = {}
    for path, value in stated.values():
        length = {"budget.steps": None, "budget.epochs": None, path: value}
    return length


def holding_out(run: Run, images: Specs, changes: Mapping[str, object]) -> Run:
    """Return a run that holds some of its images out to measure on, unless it says where to measure or is a record.

    It is measured as often as it saves checkpoints, so that there is a number to watch.

    Args:
        run: The run with the user's changes.
        images: Training images that the user named; without any, the run is one written down and stays as it is.
        changes: Dotted fields that the user set.
    """
    if run.data.val or run.data.held_out is not None or not images:
        return run
    often = {} if run.evaluate_every or "evaluate_every" in changes else {"evaluate_every": run.checkpoint.every_steps}
    return override(run, {"data.held_out": USUAL_SHARE, **often})


def placed(run: Run, *, weights: bool = True) -> Run:
    """Return a run whose paths are absolute, so that its record means the same in every working folder.

    Args:
        run: The run as it was asked for.
        weights: Whether those of the backbone are looked at too; a run that goes on can't change them.
    """
    changes: dict[str, object] = {
        f"data.{name}": tuple(map(absolute_spec, getattr(run.data, name))) for name in ("train", "val", "unlabelled")
    }
    backbone = backbone_of(run.detector)
    if weights and backbone is not None and backbone.weights and Path(backbone.weights).expanduser().exists():
        changes["detector.backbone.weights"] = str(absolute(Path(backbone.weights)))
    return override(run, changes)


def texts(specs: Specs) -> tuple[str, ...]:
    """Return data specifications as a tuple of text."""
    return (str(specs),) if isinstance(specs, str | Path) else tuple(map(str, specs))
