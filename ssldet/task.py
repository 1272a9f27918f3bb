"""The interface: what a pretext task, a labelled task and a metric must offer, and no more.

A task is a frozen dataclass: its fields are its configuration. It makes problems out of images (`views`, in the
loader's workers) and teaches the detector to solve them (`objective`, on the device). The two are separate because one
is pickled into CPU workers and the other lives on the accelerator.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from ssldet.detectors.base import Detector, DetectorConfig
from ssldet.findings import Findings
from ssldet.source import Source, objects_of
from ssldet.types import Answer, Batch, Losses
from ssldet.types import Views as Views


class Objective(nn.Module, ABC):
    """Conducts one batch: queries, detector, matching, criterion. Owns the heads that are thrown away afterwards.

    Attributes:
        detector: The detector that is taught.
        detr_names: How names of the task's own heads begin here -> in files with DETR's names, such as those that
            UP-DETR's authors publish. What is not named stays out of such files.
        probe_meanings: What each number of `probe` is, in words that follow the number.
    """

    detector: Detector
    detr_names: ClassVar[Mapping[str, str]] = {}
    probe_meanings: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def forward(self, batch: Batch) -> Losses:
        """Return the finite, named, weighted loss terms of a batch.

        Args:
            batch: Images as the task's views make them in training, on the device of the objective; not normalised yet.

        Raises:
            DivergedError: A cost of the matching is not finite.
        """

    @abstractmethod
    def answer(self, batch: Batch) -> Sequence[Answer]:
        """Return what the model says of each image of a batch; called in evaluation, without gradients.

        Args:
            batch: Images as the task's views make them outside training; targets are not looked at.

        Returns:
            One entry per image, of the kind that the task's evaluator takes: `Detections` (in pixels of the images on
            disk), an `Embedding`, or a kind of the task's own.
        """

    def look_at(self, images: Float[Tensor, "B c h w"]) -> tuple[Float[Tensor, "B _ _ _"], ...]:
        """Return the maps of the detector that describe what a problem shows beside the image, such as patches.

        Steps of training use it, and so does what reckons how much room kept features take.

        Args:
            images: Normalised pixels.
        """
        return self.detector.patch_levels(images)

    def begin(self, step: int, total_steps: int) -> None:
        """Make ready for a step, once on every rank, before its first batch; does nothing unless a task needs it.

        What happens once per step and not once per batch belongs here: what depends on how far the run has come, or
        follows the weights, such as a momentum encoder. The step is given, so that a resumed run knows it too.

        Args:
            step: Optimiser steps done.
            total_steps: Length of the run.
        """

    def set_average(self, average: "Objective") -> None:
        """Take note of the averaged copy of this objective; once, before the first step, if the run averages.

        The copy is what the run evaluates and hands over, and follows at every step (`optim.ema`). A task that learns
        from it says so in `Needs.average`. It must not become a submodule, which would be saved and averaged again.

        Args:
            average: The copy, on the same device.
        """

    def probe(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Measure, before any training, what a task looks like with this backbone and these images.

        Args:
            batches: A few training batches, on the device of the objective.

        Returns:
            Named numbers to print, each explained in `probe_meanings`; empty where a task measures nothing.
        """
        return {}


@runtime_checkable
class Evaluator(Protocol):
    """Collects answers and ends in named numbers."""

    def update(self, answers: list[Any], batch: Batch, /) -> None:
        """Take in one batch.

        Args:
            answers: What the objective answered, one entry per image, on the CPU.
            batch: What was asked; `keys`, `targets`, `original_sizes` and `problem` say what is true, pixels are left
                out.

        Raises:
            DivergedError: A number is not finite: a diverged model must not be scored.
        """
        ...

    def results(self) -> dict[str, Any]:
        """Return the numbers by name; a nested entry holds a group of numbers, such as one per class."""
        ...


@runtime_checkable
class SharesRows(Protocol):
    """What an evaluator may offer so that ranks send each other a few numbers of an image instead of its masks."""

    def take_rows(self) -> Any:
        """Return what was taken in since the last call, as small picklable values, and forget it."""
        ...

    def add_rows(self, rows: Any, /) -> None:
        """Take in what another evaluator of the same source returned from `take_rows`."""
        ...


@runtime_checkable
class Explains(Protocol):
    """What an evaluator may offer beside its numbers, for the report of a run."""

    def findings(self) -> Findings:
        """Return what stands behind the numbers."""
        ...


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a task needs of its images.

    Attributes:
        labels: Whether it reads boxes and classes; where it does not, the engine removes them before the task's views.
        measures_labels: Whether a task that learns without labels is measured on them too, where images have any.
        masks: Whether each object must come with its mask.
        unlabelled: Whether it learns from further images without labels too, `data.unlabelled`, which then come mixed
            with the others; see `ssldet.data.mixing`.
        average: Whether it learns from the averaged weights of its own run; see `Objective.set_average`.
        colours: Whether images must be red, green and blue; a task that says no takes any channels (`data.channels`).
    """

    labels: bool = True
    measures_labels: bool = False
    masks: bool = False
    unlabelled: bool = False
    average: bool = False
    colours: bool = True


def _same_task(task: Any, source: Source) -> Any:
    return task


def _same_detector(detector: DetectorConfig) -> DetectorConfig:
    return detector


@dataclass(frozen=True, kw_only=True)
class Stage:
    """How a task joins the stages before and after it.

    Attributes:
        parts: Parts of the objective that start as they are in the model which a run starts from, where that has a part
            of the same name -> the fields of the task that shape the part and are taken over with it.
        learns_from: Task, training set -> the task with what it must know of the set, which travels with the weights.
        receives: Detector that another task taught -> the detector for this task, such as one with a further section.
        hands_over: Detector that this task taught -> the one that the next stage should build, such as one with fixed
            norms.
    """

    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    learns_from: Callable[[Any, Source], Any] = _same_task
    receives: Callable[[DetectorConfig], DetectorConfig] = _same_detector
    hands_over: Callable[[DetectorConfig], DetectorConfig] = _same_detector


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """Something to teach a detector.

    Attributes:
        cite: Key of the source in `references.bib`.
        headline: The metric that a progress line and a table show for this task.
        needs: What the task needs of its images.
        stage: How the task joins the stages before and after it.
        retired: Fields that the task once had -> why it has them no more; files that hold one still load, and its value
            is ignored.
        verb: The command that teaches it.
    """

    group: ClassVar[str] = "ssldet.tasks"
    verb: ClassVar[Literal["pretrain", "finetune"]] = "finetune"
    cite: ClassVar[str]
    headline: ClassVar[str]
    needs: ClassVar[Needs] = Needs()
    stage: ClassVar[Stage] = Stage()
    retired: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def rests(self, section: str) -> bool:
        """Return whether a section of the detector does not learn; it then runs without autograd.

        Args:
            section: One of `Detector.sections`, possibly one that this task has never heard of.
        """
        return False

    def stays_behind(self, section: str) -> bool:
        """Return whether a section of the detector is not handed over to the next stage.

        Args:
            section: One of `Detector.sections`, possibly one that this task has never heard of.
        """
        return False

    @abstractmethod
    def views(self, *, training: bool = True) -> Views:
        """Return the function that makes samples.

        Args:
            training: False gives the sample that evaluation sees: no augmentation.
        """

    @property
    def in_parts(self) -> bool:
        """Whether images are looked at in parts, such as tiles; they may be large then, and are read one at a time."""
        return False

    def shown_at_once(self, source: Source) -> list[int]:
        """Return how many labelled objects of each image the detector sees at once, at most; no image is read.

        Args:
            source: Images with or without labels.
        """
        return objects_of(source)

    @abstractmethod
    def objective(self, detector: Detector) -> Objective:
        """Return the module that computes this task's losses with the detector.

        Args:
            detector: The detector to teach, which becomes part of the module and shares its weights with it.
        """

    @abstractmethod
    def evaluator(self, source: Source) -> Evaluator:
        """Return the metric of this task on a source.

        Args:
            source: What is measured on, as `prepare` returned it.

        Raises:
            ConfigError: This task can't be measured as its fields ask.
        """

    def prepare(self, source: Source, *, training: bool = True) -> Source:
        """Return the source whose items are this task's problems, such as pairs of an image and what to look for in it.

        Views see one image at a time; what needs the whole set belongs here. The engine trains and measures on what
        this returns, and `evaluator` gets it too. Where items depend on chance, the returned source overrides
        `Source.draw`; its generator goes on to the views, so that an item is a function of (seed, epoch, index).

        Args:
            source: The images as they were opened, without labels where the task needs none.
            training: False gives the items of evaluation.

        Raises:
            DataError: The images can't serve this task.
        """
        return source

    def symptoms(self, lately: Mapping[str, float], done: float) -> list[str]:
        """Return a clause, with its remedy, for each thing that this task's own metrics show to go wrong in a run.

        They are said in the log and in the report, from the middle of a run on.

        Args:
            lately: Name of a metric, as in `Losses.metrics` -> its mean over the last lines of the log.
            done: Share of the budget that is spent.
        """
        return []

    def problems_with(self, detector: DetectorConfig) -> list[str]:
        """Return one message for each thing that keeps this task and a detector from working together.

        They are shown together with all other problems of a run before anything is written. A message begins with the
        field that is wrong and ends with a value that would do.

        Args:
            detector: The detector's configuration.
        """
        return []


@dataclass(frozen=True, kw_only=True)
class PretextTask(Task):
    """A task that promises to learn from no box label: the engine hands its views samples stripped of their targets."""

    verb: ClassVar[Literal["pretrain", "finetune"]] = "pretrain"
    needs: ClassVar[Needs] = Needs(labels=False)


def headline_of(task: type[Task] | None, results: Mapping[str, Any]) -> str:
    """Name the measure that counts: the one that a task is known by if it was measured, else the first that was.

    Args:
        task: The task's class, if it is known.
        results: What an evaluation returned.

    Returns:
        The name; empty where nothing was measured.
    """
    plain = [name for name, value in results.items() if not isinstance(value, Mapping)]
    return task.headline if task is not None and task.headline in plain else next(iter(plain), "")


def learning_sections(task: Task, detector: Detector) -> tuple[str, ...]:
    """Return the sections of a detector that learn while a task is taught."""
    return tuple(section for section in detector.sections if not task.rests(section))


def transferred_sections(task: Task, detector: Detector) -> tuple[str, ...]:
    """Return the sections of a detector that are handed over after a task was taught."""
    return tuple(section for section in detector.sections if not task.stays_behind(section))
