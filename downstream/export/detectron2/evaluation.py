"""answers in detectron2's structures -> figures: one-shot AP50, and panoptic quality without panopticapi."""

import itertools
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from downstream.annotations.segments import read_panoptic
from downstream.export.detectron2.catalogue import prepared
from downstream.metrics.one_shot import OneShotAP
from downstream.metrics.panoptic_predictions import score_panoptic
from downstream.one_shot import OneShot
from ssldet.errors import ConfigError
from ssldet.task import Task
from ssldet.types import Detections

PERCENT = 100.0
"""Factor from a share to per cent, in which detectron2 states figures."""


class OneShotEvaluator(DatasetEvaluator):  # type: ignore[misc]  # untyped if it is not installed
    """AP50 of seen and unseen classes over all pairs of an image and a query."""

    def __init__(self, spec: str, task: Task) -> None:
        """Start without answers.

        Args:
            spec: Labelled images.
            task: One-shot detection, with the classes that are held out.

        Raises:
            ConfigError: The task is not one-shot detection.
        """
        if not isinstance(task, OneShot):
            raise ConfigError(f"{type(task).__name__} has no pairs to evaluate; use detectron2's own evaluators")
        self.source, self.metric = prepared(spec, task, training=False), task.metric
        self.reset()

    def reset(self) -> None:
        """Forget all answers."""
        self._found: list[tuple[str, Detections]] = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Take in the answers to some pairs."""
        for entry, answer in zip(inputs, outputs, strict=True):
            instances = answer["instances"].to("cpu")
            boxes, labels = instances.pred_boxes.tensor, instances.pred_classes
            detections = Detections(boxes=boxes, scores=instances.scores, labels=labels)
            self._found.append((str(entry["ssldet_key"]), detections))

    def evaluate(self) -> dict[str, Any] | None:
        """Return the figures in per cent, on the main process."""
        gathered = comm.gather(self._found)
        if not comm.is_main_process():
            return None
        figures = OneShotAP(self.source, self.metric)
        for key, detections in itertools.chain(*gathered):
            figures.update([detections], SimpleNamespace(keys=[key]))  # type: ignore[arg-type]  # all that it reads
        results = figures.results()
        per_class = results.pop("per_class")
        named = results | {f"AP50-{name}": value for name, value in per_class.items()}
        return {"one_shot": {name: PERCENT * value for name, value in named.items() if value >= 0}}


def stand_in_for_panopticapi() -> None:
    """Provide a module `panopticapi` that computes our metric, for detectron2's panoptic evaluator, which imports it.

    It has only the names that the evaluator uses. If the real package is installed, nothing is done.
    """
    if "panopticapi" in sys.modules or find_spec("panopticapi") is not None:
        return
    utils = _module("panopticapi.utils", id2rgb=_to_colours, rgb2id=_from_colours)
    evaluation = _module("panopticapi.evaluation", pq_compute=_pq_compute)
    package = _module("panopticapi", utils=utils, evaluation=evaluation)
    sys.modules.update({module.__name__: module for module in (package, utils, evaluation)})


def _module(name: str, **members: object) -> ModuleType:
    module = ModuleType(name)
    for member, value in members.items():
        setattr(module, member, value)
    return module


def _to_colours(ids: Any) -> Any:
    numbers = np.asarray(ids)
    return np.stack([numbers & 255, numbers >> 8 & 255, numbers >> 16 & 255], axis=-1).astype(np.uint8)


def _from_colours(colours: Any) -> Any:
    red, green, blue = np.moveaxis(np.asarray(colours).astype(np.int64), -1, 0)
    return red + 256 * green + 65536 * blue


def _pq_compute(
    gt_json_file: str, pred_json_file: str, gt_folder: str | None = None, pred_folder: str | None = None
) -> dict[str, dict[str, Any]]:
    truth = f"panoptic:{gt_json_file}" + (f":{gt_folder}" if gt_folder else "")
    answers = Path(f"{pred_json_file}:{pred_folder}" if pred_folder else pred_json_file)
    figures, panoptic = score_panoptic(answers, truth), read_panoptic(truth.partition(":")[2])
    measured = [part["PQ"] >= 0 for part in figures["per_class"].values()]
    things = [occurs for occurs, thing in zip(measured, panoptic.is_thing, strict=True) if thing]
    counts = {"All": sum(measured), "Things": sum(things), "Stuff": sum(measured) - sum(things)}
    parts = {"All": figures, "Things": figures["things"], "Stuff": figures["stuff"]}
    return {
        name: {key.lower(): max(0.0, part[key]) for key in ("PQ", "SQ", "RQ")} | {"n": counts[name]}
        for name, part in parts.items()
    }
