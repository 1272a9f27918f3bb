"""few labelled images, many unlabelled -> "what is where?": a detector learns from labels and from its own average.

The averaged weights of the run, the teacher, look at an unlabelled image; what they are sure of becomes its labels. The
network itself, the student, must find the same in a strongly changed view of that image, while it learns from the
labelled images of the batch as in plain detection. The scheme is that of Unbiased Teacher (Liu et al. 2021) and Soft
Teacher (Xu et al. 2021), which Omni-DETR (Wang et al. 2022) and Semi-DETR (Zhang et al. 2023) brought to detection
transformers. What is measured, handed over and exported is the teacher: the averaged weights. Known differences:

    topic               published                                   here
    teacher             average of the student, .9996 or .999       the same (`optim.ema`), with a rising decay
    burn-in             labels alone, then the teacher is a copy    labels alone for a share of the steps (`burn_in`);
                        of the student (Unbiased Teacher)           the average has followed since the first step
    thresholds          one, .7 (Unbiased), .9 (Soft Teacher);      one per class: `threshold`, lowered for classes of
                        Semi-DETR mines more by matching costs      which the teacher is less sure; rule as in FreeMatch
                                                                    (Wang et al. 2023), its global threshold fixed
    several answers     kept, or suppressed as in any detector      of those for one place the surest is a label
    matching            Semi-DETR: one-to-many at first             one-to-one, as everywhere in this project
    box loss            none on pseudo boxes (Unbiased), or where   on all pseudo boxes
                        jittered boxes agree (Soft Teacher)
    weight              one for all unlabelled images               that times the share of them in which the teacher is
                                                                    sure of something
    background          weighted by the teacher's background        not learned where the teacher is unsure, nor from
                        score (Soft Teacher)                        images in which it is sure of nothing
    weak and strong     two sizes and crops, boxes mapped (Soft     one geometry for both views, strong changes of
                        Teacher)                                    pixels only: boxes carry over exactly
    strong on labels    always                                      with probability `strong_labelled`
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from downstream.detection import Detection, SetPrediction
from downstream.pseudo_labels import Found, PseudoLabels, no_targets, spared
from ssldet import ranks
from ssldet.data.mixing import Origin
from ssldet.data.photometric import Jitter
from ssldet.data.strong import Erasing, StrongView
from ssldet.detectors.base import Detector
from ssldet.recipe import Within
from ssldet.task import Needs, Objective, Views
from ssldet.types import Batch, Gather, Losses, Predictions, Problem, Sample, Targets

SCARCE = 0.1
"""Pseudo labels per unlabelled image, below which these teach hardly anything: one image in ten, at most, has one."""
FEW_CLASSES = 20
"""Classes up to which the threshold of each is in the log; of more, only the lowest and the highest are."""


@dataclass(frozen=True, kw_only=True)
class SelfTraining(Detection):
    """Find all objects of the labelled classes, learning from unlabelled images too. All fields of `Detection` exist.

    Attributes:
        threshold: Score from which an answer of the teacher is a pseudo label, for the class of which it is surest.
        adaptive: How far the thresholds of other classes follow the teacher's mean confidence in them: 0 leaves all of
            them at `threshold`, 1 scales them by that confidence, relative to the class of which it is surest.
        least_threshold: Score below which nothing is a pseudo label or counts in a mean confidence. What lies between
            this and the threshold may be an object: the student is not taught that it is none.
        confidence_momentum: Share of a mean confidence that each step keeps.
        pseudo_weight: Weight of the losses on unlabelled images, where those on labelled ones weigh 1.
        burn_in: Share of the steps, at the beginning, that learns from labels alone.
        jitter: Photometric changes of the strong view.
        erasing: Rectangles that are painted over in the strong view.
        strong_labelled: Probability that a labelled image is changed as strongly.
    """

    cite: ClassVar[str] = "liu2021unbiased"
    needs: ClassVar[Needs] = Needs(unlabelled=True, average=True)
    unmixed_because: ClassVar[str] = "images with and without labels are kept apart"

    threshold: Annotated[float, Within(0, 1)] = 0.7
    adaptive: Annotated[float, Within(0, 1)] = 1.0
    least_threshold: Annotated[float, Within(0, 1)] = 0.3
    confidence_momentum: Annotated[float, Within(0, 1)] = 0.99
    pseudo_weight: Annotated[float, Within(0)] = 2.0
    burn_in: Annotated[float, Within(0, 1)] = 0.2
    jitter: Jitter = field(default_factory=Jitter)
    erasing: Erasing = field(default_factory=Erasing)
    strong_labelled: Annotated[float, Within(0, 1)] = 0.5

    def views(self, *, training: bool = True) -> Views:
        """Return the two views of the teacher and the student or, outside training, those of plain detection."""
        plain = super().views(training=training)
        if not training:
            return plain
        strong = StrongView(jitter=self.jitter, erasing=self.erasing)
        return TwoStrengths(weak=plain, strong=strong, strong_labelled=self.strong_labelled)

    def objective(self, detector: Detector) -> "SelfTeaching":
        """Return the module that learns from labels and from what its own average finds."""
        return SelfTeaching(self, detector)

    def symptoms(self, lately: Mapping[str, float], done: float) -> list[str]:
        """Return a clause if the teacher is sure of nothing in most images."""
        boxes = lately.get("pseudo_boxes")
        if boxes is None or boxes >= SCARCE or done <= self.burn_in:
            return []
        return [
            f"the teacher is sure of {boxes:.2f} boxes per unlabelled image, so that these teach hardly anything: "
            f"lower task.threshold (it is {self.threshold:g}), or learn from labels for longer before"
        ]

    def problems(self) -> list[str]:
        """Return what is wrong between fields."""
        wrong = super().problems()
        if self.least_threshold > self.threshold:
            wrong.append(f"least_threshold: {self.least_threshold:g} is above threshold {self.threshold:g}; lower it")
        return wrong


@dataclass(frozen=True, kw_only=True)
class Lesson(Problem):
    """What the student sees of an image that the teacher sees weakly changed.

    Attributes:
        student: The student's view, of the same size and with the same targets.
        labelled: Whether the targets are what the image shows.
    """

    student: Annotated[Sample | Batch, Gather.SAMPLE]
    labelled: Annotated[bool | list[bool], Gather.LIST]


@dataclass(frozen=True, kw_only=True)
class TwoStrengths:
    """Sample -> the teacher's view, with a `Lesson` for the student.

    Attributes:
        weak: Makes the teacher's view.
        strong: Changes it into the student's.
        strong_labelled: Probability that this is done to a labelled image.
    """

    weak: Views
    strong: Views
    strong_labelled: float

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Draw the changes and apply them."""
        labelled = not isinstance(sample.problem, Origin) or bool(sample.problem.labelled)
        seen = self.weak(replace(sample, problem=None), generator)
        plain = labelled and float(torch.rand((), generator=generator)) >= self.strong_labelled
        student = seen if plain else self.strong(seen, generator)
        return replace(seen, problem=Lesson(student=student, labelled=labelled))


class SelfTeaching(SetPrediction):
    """Learns from the labelled images of a batch, and on the others from what the averaged weights find there.

    Attributes:
        detector: The detector that is trained: the student.
        pseudo_labels: Answers of the teacher -> what counts as a label.
    """

    def __init__(self, task: SelfTraining, detector: Detector) -> None:
        """Build what plain detection has, and the memory of how sure the teacher is.

        Args:
            task: The task's choices.
            detector: The detector that is trained.
        """
        super().__init__(task, detector)
        self.task = task
        self.pseudo_labels = PseudoLabels(
            detector.num_classes,
            threshold=task.threshold,
            adaptive=task.adaptive,
            least=task.least_threshold,
            momentum=task.confidence_momentum,
        )
        # In a tuple: as a submodule the average would be saved a second time, and averaged again.
        self._average: tuple[Objective, ...] = ()
        self._burning_in = False

    def set_average(self, average: Objective) -> None:
        """Take the averaged weights as the teacher."""
        self._average = (average,)

    def begin(self, step: int, total_steps: int) -> None:
        """Find out whether this step still learns from labels alone."""
        self._burning_in = step < self.task.burn_in * total_steps

    def forward(self, batch: Batch) -> Losses:
        """Compare the student's answers with the labels and, after the burn-in, with the teacher's answers."""
        student, has_labels = _lesson(batch)
        labelled = [row for row, has in enumerate(has_labels) if has]
        others = [] if self._burning_in else [row for row, has in enumerate(has_labels) if not has]
        found, metrics = self._teach(batch, others)
        # Where the teacher is sure of nothing it may overlook everything, so that nothing is learned from the image.
        taught = {row: one for row, one in zip(others, found, strict=True) if len(one.sure)}
        rows = [*labelled, *taught] or [0]
        predictions = self._detect(self.detector, student.images[rows], student.padding[rows])
        known = self._compare(predictions, range(len(labelled)), [student.targets[row] for row in labelled])
        places = range(len(labelled), len(labelled) + len(taught))
        unjudged = spared(predictions, dict(zip(places, taught.values(), strict=True)))
        pseudo = self._compare(unjudged, places, [one.sure for one in taught.values()])
        weight = 0.0 if self._burning_in else self.task.pseudo_weight
        share = self._share_taught(len(taught), len(others))
        return Losses(
            terms=known.terms | {f"pseudo_{name}": share * term for name, term in pseudo.terms.items()},
            weights=known.weights | {f"pseudo_{name}": weight * own for name, own in pseudo.weights.items()},
            metrics=known.metrics | metrics,
        )

    @torch.no_grad()
    def _teach(self, batch: Batch, rows: list[int]) -> tuple[list[Found], dict[str, Tensor]]:
        """Return what the teacher finds in some images, and measures of it; every rank must call this.

        Args:
            batch: With the teacher's views.
            rows: Numbers of the unlabelled images within the batch.
        """
        answers = self._ask_teacher(batch.images[rows], batch.padding[rows]) if rows else None
        if self.training and not self._burning_in:
            self.pseudo_labels.follow(answers)
        found: list[Found] = [] if answers is None else self.pseudo_labels(answers)
        limits = self.pseudo_labels.thresholds()
        scores = torch.cat([limits.new_zeros(0), *(one.scores for one in found)])
        measures = {
            "pseudo_boxes": limits.new_tensor(len(scores) / max(1, len(rows))),
            "pseudo_score": scores.sum() / max(1, len(scores)),
            "unsure_boxes": limits.new_tensor(sum(len(one.unsure) for one in found) / max(1, len(rows))),
        }
        if len(limits) > FEW_CLASSES:
            return found, measures | {"threshold_lowest": limits.min(), "threshold_highest": limits.max()}
        return found, measures | {f"threshold_{label}": limit for label, limit in enumerate(limits.unbind())}

    def _share_taught(self, taught: int, others: int) -> Tensor:
        """Return the share of the unlabelled images, on all ranks, from which something is learned.

        Losses are means over boxes. Without this share, the one box of a batch of which the teacher is sure would weigh
        as much as all labels together, and while the teacher is seldom sure it is often wrong.
        """
        counts: Tensor = ranks.reduce_mean(self.pseudo_labels.confidence.new_tensor([taught, others]))
        return counts[0] / counts[1].clamp(min=1e-12)

    def _ask_teacher(self, images: UInt8[Tensor, "B 3 H W"], padding: Bool[Tensor, "B H W"]) -> Predictions:
        """Detect with the averaged weights, or the student's own where the run averages none, without dropout."""
        teacher = self._average[0].detector if self._average else self.detector
        training = teacher.training
        teacher.eval()
        try:
            return self._detect(teacher, images, padding)
        finally:
            teacher.train(training)

    def _detect(
        self, detector: Detector, images: UInt8[Tensor, "B 3 H W"], padding: Bool[Tensor, "B H W"]
    ) -> Predictions:
        predictions: Predictions = detector(detector.normalise(images, padding), padding)
        return predictions

    def _compare(self, predictions: Predictions, rows: Sequence[int], targets: list[Targets]) -> Losses:
        """Compare some images with their targets; without images all terms are zero, under the same names.

        The criterion is asked in any case, because the ranks count their targets together.
        """
        if rows:
            return self.criterion(predictions.of_images(rows), targets)
        nothing = [no_targets(predictions.boxes.device)]
        losses = self.criterion(predictions.of_images([0]), nothing, counted=False)
        return Losses(
            terms={name: 0 * term for name, term in losses.terms.items()},
            weights=losses.weights,
            metrics={name: 0 * value for name, value in losses.metrics.items()},
        )


def _lesson(batch: Batch) -> tuple[Batch, list[bool]]:
    """Return the student's views, and which images are labelled."""
    lesson = batch.problem
    assert isinstance(lesson, Lesson)
    assert isinstance(lesson.student, Batch)
    assert isinstance(lesson.labelled, list)
    return lesson.student, lesson.labelled
