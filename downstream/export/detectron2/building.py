"""recipe, weights, classes -> the task and detector that a configuration of detectron2 names.

This file does not import detectron2.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from downstream.export.detectron2.names import BY_ENDING
from downstream.export.detectron2.schedule import misplaced
from downstream.one_shot import OneShot
from ssldet.detectors.base import DetectorConfig
from ssldet.errors import CheckpointError, ConfigError
from ssldet.recipe import from_document, override
from ssldet.source import Source
from ssldet.task import Task
from ssldet.types import Sample
from ssldet.verbs.choosing import resolve
from ssldet.weights.detectron2 import configuration_beside, look_up

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """The configurations from which a model is built.

    Attributes:
        task: The task that trains the detector.
        detector: The detector.
    """

    task: Task
    detector: DetectorConfig


def blueprint(
    recipe: str,
    classes: Sequence[str],
    *,
    stuff: Sequence[int] = (),
    weights: str = "",
    overrides: Mapping[str, object] | None = None,
) -> Blueprint:
    """Choose task and detector; the detector has the architecture of the weights from which it starts.

    Args:
        recipe: Name of a recipe of a task that reads labels.
        classes: Class names of the training set, in the order of its labels.
        stuff: Labels of the classes without countable objects.
        weights: File from which the model starts; the configuration beside it (`FILE.yaml` beside `FILE.pth`) states
            its detector. Without a configuration the recipe's detector is built, with a warning.
        overrides: Dotted recipe fields and their values.

    Raises:
        CheckpointError: The configuration beside the weights can't be read.
        ConfigError: There are no classes, or no such recipe, or detectron2 decides what an override sets.
    """
    if wrong := misplaced(overrides or {}):
        raise ConfigError(wrong)
    if not classes:
        raise ConfigError("the dataset names no classes; register it by ssldet, or set thing_classes of its metadata")
    run = resolve(recipe)
    stated = read_sidecar(weights)
    detector = from_document(DetectorConfig, stated["DETECTOR"]) if stated else run.detector  # type: ignore[type-abstract]
    num_classes = 1 if isinstance(run.task, OneShot) else len(classes)
    detector = override(detector, {"num_classes": num_classes, "backbone.weights": None})
    fields = {name for names in run.task.stage.parts.values() for name in names}
    inherited = {f"task.{name}": value for name, value in stated.get("TASK", {}).items() if name in fields}
    run = override(replace(run, detector=detector), inherited | dict(overrides or {}))
    task = run.task.stage.learns_from(run.task, _Named(classes, stuff))
    return Blueprint(task=task, detector=task.stage.receives(run.detector))


def read_sidecar(weights: str) -> dict[str, Any]:
    """Return task and detector from the configuration beside a weights file; an empty dictionary if there is none.

    Args:
        weights: Path of a weights file, or an empty string.

    Raises:
        CheckpointError: The configuration can't be read.
    """
    if not weights:
        return {}
    path = Path(weights.removesuffix(BY_ENDING))
    beside = path.with_suffix(".yaml")
    if not beside.is_file():
        log.warning(
            "%s: no %s beside it, so the recipe's own detector is built; does it have that shape?", path, beside
        )
        return {}
    stated = look_up(configuration_beside(path), "MODEL.SSLDET")
    try:
        return {name: json.loads(stated[name]) for name in ("TASK", "DETECTOR")}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{beside}: does not say which detector {path.name} holds ({error!r})") from error


class _Named(Source):
    """A source without images: a task asks no more than this when it is built."""

    fingerprint = ""
    skipped = ()

    def __init__(self, classes: Sequence[str], stuff: Sequence[int]) -> None:
        self._classes, self._stuff = tuple(classes), frozenset(stuff)

    @property
    def classes(self) -> tuple[str, ...]:
        return self._classes

    @property
    def is_thing(self) -> tuple[bool, ...]:
        return tuple(label not in self._stuff for label in range(len(self._classes)))

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Sample:
        raise IndexError(index)
