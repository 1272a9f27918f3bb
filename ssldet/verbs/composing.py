"""task, backbone, detector -> Run: what a recipe does not say by itself is put together here."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import nn

from ssldet.detectors.base import DetectorConfig
from ssldet.engine.folder import RunFolder
from ssldet.engine.run import Budget, Run
from ssldet.errors import ConfigError
from ssldet.nn.backbones import adopt
from ssldet.nn.backbones.own import own_names
from ssldet.recipe import override
from ssldet.registry import name_of
from ssldet.task import Task
from ssldet.verbs.choosing import recipe_of, resolve
from ssldet.weights.words import choose_backbone


def compose(
    *, pretext: str | Task, backbone: str | nn.Module | None = None, detector: DetectorConfig | None = None
) -> Run:
    """Put a pretext task, a backbone and a detector together into a run that `pretrain` takes as its recipe.

    Args:
        pretext: A task or its name, for the task's recipe `NAME/r50` or else its first one; or the name of a recipe. A
            task without recipes gets a run of defaults, whose length is chosen in `pretrain`.
        backbone: A backbone's name; or the path of its weights where they tell the network; or a network of your own
            with its weights (see `ssldet.register_backbone`), which is registered by the name of its class and learns
            from its first stage on, unless a task that is given as an object keeps backbones frozen; `None` keeps the
            detector's.
        detector: The detector; `None` keeps the recipe's.

    Raises:
        ConfigError: There is no such task or recipe, or a task without recipes came without a detector.
    """
    if isinstance(pretext, Task):
        run = _run_around(pretext, detector)
    else:
        run = resolve(pretext if "/" in pretext else recipe_of(pretext) or f"{pretext}/r50")
    if detector is not None:
        run = replace(run, detector=detector)
    if isinstance(backbone, nn.Module):
        backbone = adopt(backbone)
    return (
        override(run, backbone_changes(backbone, None if isinstance(pretext, Task) else run.task)) if backbone else run
    )


def _run_around(task: Task, detector: DetectorConfig | None) -> Run:
    """Put a task into the run of its own recipe, or into one of defaults where it has none."""
    name = name_of("ssldet.tasks", type(task))
    recipe = recipe_of(name)
    if recipe is not None:
        return replace(resolve(recipe), task=task)
    if detector is None:
        raise ConfigError(f"task {name!r} has no recipe to take a detector from; give compose a detector as well")
    return Run(task=task, detector=detector, budget=Budget())


def require_one_backbone(word: str | None, changes: Mapping[str, object]) -> None:
    """Refuse a backbone that is named in one word and by its field, of which one would be dropped without a word.

    Args:
        word: See `backbone_changes`; `None` names none.
        changes: Dotted fields that the user set, and their values.

    Raises:
        ConfigError: It is.
    """
    if word is not None and "detector.backbone.name" in changes:
        raise ConfigError(f"--set detector.backbone.name: --backbone {word} says it already; leave one of the two out")


def backbone_changes(word: str, task: Task | None = None) -> dict[str, object]:
    """Return changes of recipe fields for a backbone that is named in one word.

    A network of the user's own keeps the weights that it comes with, and learns from its first stage on: a recipe
    freezes the published backbone that it names, and nobody has trained this one for the purpose.

    Args:
        word: A backbone's name; the path of its weights where they tell the network; or a run that taught it.
        task: The recipe's task, which then lets an own network learn; `None` leaves the task as it is.
    """
    if word in own_names():
        own: dict[str, object] = {"name": word, "weights": None, "frozen_stages": 0}
        learns: dict[str, object] = {"task.freeze_backbone": False} if hasattr(task, "freeze_backbone") else {}
        return {f"detector.backbone.{field}": value for field, value in own.items()} | learns
    trained = RunFolder(Path(word).expanduser()).weights
    name, weights = choose_backbone(str(trained) if trained.exists() else word)
    changes: dict[str, object] = {"detector.backbone.name": name}
    return changes if weights is None else changes | {"detector.backbone.weights": weights}
