"""START -> what a run takes over from a trained model: its architecture, then its sections; another backbone if asked.

Backbones keep improving, and the transformer of a detector whose backbone is exchanged is worth keeping: it is handed
over as it is, and what joins it to the backbone starts anew, because the channels of another network mean other things.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ssldet.detectors.base import DetectorConfig, backbone_of
from ssldet.engine.checkpoint import TransferReport, inherit
from ssldet.engine.description import stages
from ssldet.engine.run import Run
from ssldet.errors import ConfigError
from ssldet.importing.base import Opened
from ssldet.recipe import from_document, override
from ssldet.report.record import read_record
from ssldet.report.verdict import verdict_of
from ssldet.task import Objective, Task
from ssldet.verbs.composing import backbone_changes
from ssldet.verbs.handing import HANDED_OVER, transfer
from ssldet.verbs.opening import Which, open_model

log = logging.getLogger(__name__)

WEIGHTS = "detector.backbone.weights"
JOINING = ("backbone", "projection")
"""Sections that start anew behind another backbone."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """A trained model that a run starts from.

    Attributes:
        name: The run folder or file, as the user named it.
        opened: The model there.
        backbone: A backbone in one word that takes the place of the model's, see `backbone_changes`; `None` keeps it.
    """

    name: str
    opened: Opened
    backbone: str | None = None

    @classmethod
    def at(cls, name: str | Path | None, weights: Which, backbone: str | None) -> "Start | None":
        """Open what a run starts from; nothing if that is the recipe's own detector.

        Args:
            name: A run folder, a weights file, or `scratch` (`None` too).
            weights: Which weights of a run folder.
            backbone: See the class.

        Raises:
            CheckpointError: It can't be read.
        """
        if name in (None, "scratch"):
            return None
        return cls(name=str(name), opened=open_model(str(name), weights), backbone=backbone)

    def shape(self, run: Run, changes: Mapping[str, object]) -> Run:
        """Give a run the architecture of the model, with the choices that shape what the task inherits from it.

        What the model holds replaces whatever weights its own backbone once started from. A task of another kind brings
        the number of classes of its own recipe.

        Args:
            run: The recipe's.
            changes: Dotted fields that the user set, and their values.

        Raises:
            ConfigError: The model has no backbone that could be exchanged, or nobody says whether the new one begins
                with weights.
        """
        task, taught = run.task, from_document(DetectorConfig, self.opened.info["detector"])  # type: ignore[type-abstract]
        config = task.stage.receives(self.opened.task.stage.hands_over(taught))
        shaping: dict[str, object] = {
            f"task.{field}": getattr(self.opened.task, field)
            for part, names in task.stage.parts.items()
            for field in names
            if hasattr(self.opened.objective, part) and hasattr(self.opened.task, field)
        }
        if task.verb == "pretrain" and not self._teaches_the_same(task):
            shaping["detector.num_classes"] = run.detector.num_classes
        backbone = backbone_of(config)
        if backbone is not None:
            shaping |= {WEIGHTS: "none", "data.channels": backbone.channels}
        if self.backbone is not None:
            if backbone is None:
                raise ConfigError(f"{self.name}: its detector has no backbone to exchange; leave --backbone out")
            exchanged = backbone_changes(self.backbone, task)
            if WEIGHTS not in exchanged and WEIGHTS not in changes:
                raise ConfigError(
                    f"--backbone {self.backbone}: say which weights it begins with, such as --set {WEIGHTS}=imagenet, "
                    "a file, or none for fresh ones"
                )
            shaping |= exchanged
        return override(replace(run, detector=config), {**shaping, **changes})

    def hand_over(self, objective: Objective, task: Task, classes: Sequence[str]) -> TransferReport:
        """Copy what the task takes over into an objective; warn if the model has learned little.

        Going on with the task that taught the model takes over everything, heads included.

        Args:
            objective: Changed in place.
            task: Its task.
            classes: Names of its classes, in its order.

        Raises:
            CheckpointError: The model hands over something else than announced.
        """
        detector, exchanged = objective.detector, self.backbone is not None
        same = task.verb == "pretrain" and self._teaches_the_same(task)
        handed = transfer(
            self.opened,
            detector,
            tuple(detector.sections) if same else None,
            classes=classes,
            expects_fresh=JOINING if exchanged else (),
        )
        parts: Sequence[str] = tuple(task.stage.parts)
        if same:
            parts = [name for name, _ in objective.named_children() if name != "detector"]
        # Features of another backbone have other channels, for which what a task made of them is no use.
        inherited = () if exchanged else inherit(self.opened.objective, objective, parts)
        handed = replace(handed, rows=handed.rows + inherited)
        log.info("handed over by %s:\n%s", self.name, handed)
        self._warn_of_little_learned()
        return handed

    def lineage(self, handed: TransferReport) -> Mapping[str, Any]:
        """Return the record of the stages behind the model, and of what the last of them handed over.

        Args:
            handed: What was handed over.
        """
        *earlier, last = stages(self.opened.info)
        loaded = sorted({row.section for row in handed.rows if row.outcome == "loaded" and row.section})
        return {"stages": [*earlier, last | {HANDED_OVER: loaded}]}

    def _teaches_the_same(self, task: Task) -> bool:
        return type(task) is type(self.opened.task)

    def _warn_of_little_learned(self) -> None:
        """Say if the model did hardly better, by its own measure, than what needs no learning.

        Heads that answer every image alike are worse to start from than fresh ones: training has to undo them first.
        """
        folder = Path(self.name)
        if not (folder / "run.json").is_file():
            return
        record = read_record(folder, numbers=False)
        results = record.status.get("results")
        verdict = verdict_of(record, results if isinstance(results, Mapping) else {}, self.opened.task.headline, {})
        if verdict.grade == "bad":
            log.warning(
                "%s: %s %s Fine-tuning may find more from fresh weights: compare with ssldet finetune scratch, or "
                "pretrain for longer",
                self.name,
                verdict.sentence,
                " ".join(verdict.reasons),
            )
