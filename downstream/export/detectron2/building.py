"""recipe, weights, classes -> the configuration of a task and a detector, as detectron2's configurations name them.

Nothing of detectron2 is imported here.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from downstream.export.detectron2.names import BY_ENDING
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
    """What the model is built from.

    Attributes:
        task: Who teaches it.
        detector: Who is taught.
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
    """Choose task and detector; what shapes the detector comes from the file that it starts from, never retyped.

    Args:
        recipe: Name of a recipe of a task that reads labels.
        classes: Class names of the training set, in the order of its labels.
        stuff: Labels that have no objects to count.
        weights: File that the model starts from; the configuration beside it (`FILE.yaml` beside `FILE.pth`) says
            which detector it holds. Without one, the recipe's detector is built, with a warning.
        overrides: Dotted recipe fields and their values.

    Raises:
        CheckpointError: The configuration beside the weights can't be read.
        ConfigError: There are no classes, or the recipe is none.
    """
    if not classes:
        raise ConfigError("the dataset names no classes; register it by ssldet, or set thing_classes of its metadata")
    run = resolve(recipe)
    stated = read_sidecar(weights)
    detector = from_document(DetectorConfig, stated["DETECTOR"]) if stated else run.detector  # type: ignore[type-abstract]
    num_classes = 1 if isinstance(run.task, OneShot) else len(classes)
    detector = override(detector, {"num_classes": num_classes, "backbone.weights": None})
    fields = {name for names in run.task.stage.parts.values() for name in names}
    known = {f"task.{name}": value for name, value in stated.get("TASK", {}).items() if name in fields}
    run = override(replace(run, detector=detector), known | dict(overrides or {}))
    task = run.task.stage.learns_from(run.task, _Named(classes, stuff))
    return Blueprint(task=task, detector=task.stage.receives(run.detector))


def read_sidecar(weights: str) -> dict[str, Any]:
    """Return what the configuration beside a file states of its task and detector; empty where there is none.

    Args:
        weights: Path of a weights file, or empty text.

    Raises:
        CheckpointError: It can't be read.
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
