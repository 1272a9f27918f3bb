"""The interface of the house: what a pretext task, a labelled task and a metric must offer, and no more.

A task is a frozen dataclass: its fields are its configuration. It makes problems out of images (`views`, in the
loader's workers) and teaches the detector to solve them (`objective`, on the device). The two are separate because one
is pickled into CPU workers and the other lives on the accelerator.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import UInt8
from torch import Tensor, nn

from ssldet.detectors.base import Detector, DetectorConfig
from ssldet.types import Batch, Detections, Losses, Source
from ssldet.types import Views as Views


class Objective(nn.Module, ABC):
    """Conducts one batch: queries, detector, matching, criterion. Owns the heads that are thrown away afterwards.

    Attributes:
        detector: The detector that is taught.
        detr_names: How names of the task's own heads begin here -> in files with DETR's names, such as those that
            UP-DETR's authors publish. What is not named stays out of such files.
    """

    detector: Detector
    detr_names: ClassVar[Mapping[str, str]] = {}

    def begin(self, step: int, total_steps: int) -> None:
        """Make ready for a step, once on every rank, before its first batch; nothing, unless a task has a use for it.

        What happens at a step and not in a batch belongs here: what depends on how far the run has come, or moves with
        the weights, such as a momentum encoder. The step is told, so that a resumed run knows it too.

        Args:
            step: Optimiser steps done.
            total_steps: Length of the run.
        """

    @abstractmethod
    def forward(self, batch: Batch) -> Losses:
        """Return the finite, named, weighted loss terms of a batch."""

    @abstractmethod
    def detect(self, batch: Batch) -> list[Detections]:
        """Return what the detector finds in each image of a batch, in pixels of the images on disk."""


@runtime_checkable
class Localiser(Protocol):
    """An objective that can look for patches which it has never seen."""

    def localise(self, batch: Batch, patches: Sequence[UInt8[Tensor, "3 _ _"]]) -> list[Detections]:
        """Look for any patches in every image of a batch.

        Args:
            batch: Where to look.
            patches: What to look for, of any size and number.

        Returns:
            The answers, for each image, in pixels of the images on disk; labels are the numbers of the patches.
        """
        ...


@runtime_checkable
class Evaluator(Protocol):
    """Collects detections and ends in named numbers."""

    def update(self, detections: list[Detections], batch: Batch) -> None:
        """Take in one batch.

        Args:
            detections: One entry an image, absolute xyxy in pixels of the image on disk.
            batch: Where they were found; `keys`, `targets` and `original_sizes` say what is true.

        Raises:
            DivergedError: A box or score is not finite: a diverged model must not be scored.
        """
        ...

    def results(self) -> dict[str, Any]:
        """Return the numbers by name; a nested entry holds a group of numbers, such as one a class, in the same way."""
        ...


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """Something to teach a detector.

    Attributes:
        cite: Key of the source in `references.bib`.
        headline: The metric that a progress line and a table show for this task.
        reads_masks: Whether the labels of each object must come with its mask.
        inherits: Parts of the objective that start as they are in the model which a run starts from, where that has a
            part of the same name -> the fields of the task that shape the part and come along with it.
    """

    group: ClassVar[str] = "ssldet.tasks"
    cite: ClassVar[str]
    headline: ClassVar[str]
    reads_masks: ClassVar[bool] = False
    inherits: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    @property
    @abstractmethod
    def trains(self) -> tuple[str, ...]:
        """Sections of the detector that learn; the others run without autograd."""

    @property
    @abstractmethod
    def transfers(self) -> tuple[str, ...]:
        """Sections of the detector that are handed over to the next stage."""

    @abstractmethod
    def views(self, *, training: bool = True) -> Views:
        """Return the function that makes samples.

        Args:
            training: False gives the sample that evaluation sees: no augmentation.
        """

    @abstractmethod
    def objective(self, detector: Detector) -> Objective:
        """Return the module that computes this task's losses with the detector."""

    @abstractmethod
    def evaluator(self, source: Source) -> Evaluator:
        """Return the metric of this task on a source."""

    def prepare(self, source: Source, *, training: bool = True) -> Source:
        """Return the source whose items are this task's problems, such as pairs of an image and what to look for in it.

        Views see one image at a time; what needs the whole set belongs here. The engine trains and measures on what
        this returns, and `evaluator` gets it too. Where items depend on chance, the returned source has a method
        `draw(index, generator) -> Sample`, which the loader calls in place of the index; the generator goes on to the
        views, so that an item is a function of (seed, epoch, index).

        Args:
            source: The images as they were opened.
            training: False gives the items of evaluation.

        Raises:
            DataError: The images can't serve this task.
        """
        return source

    def probe(self, objective: Objective, batches: Iterable[Batch]) -> dict[str, float]:
        """Measure, before any training, whether the task can be learned with this backbone and these images.

        Args:
            objective: The objective with its fresh detector, on the device of the batches.
            batches: A few training batches.

        Returns:
            Named numbers to print; empty where a task has no such check.
        """
        return {}

    def taught_on(self, source: Source) -> "Task":
        """Return this task with what it must know of its training set, which travels with the weights.

        Args:
            source: The training set.
        """
        return self

    def adapt(self, detector: DetectorConfig) -> DetectorConfig:
        """Return what this task makes of a detector that another one taught, such as one with a further section."""
        return detector

    def hands_over(self, detector: DetectorConfig) -> DetectorConfig:
        """Return the detector that the next stage should build for what this task hands over.

        Args:
            detector: The one that was taught; a stage that fixes the norms of what this one taught is an example of a
                difference.
        """
        return detector

    def problems_with(self, detector: DetectorConfig) -> list[str]:
        """Say what keeps this task and a detector from working together; empty if nothing does."""
        return []


@dataclass(frozen=True, kw_only=True)
class PretextTask(Task):
    """A task that promises to read no box label: the engine hands its views samples stripped of their targets."""
