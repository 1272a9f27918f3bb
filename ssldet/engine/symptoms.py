"""answers, scores, losses of a run -> plain sentences about a detector that does not learn, with figures and remedies.

A detector that answers every image alike is called blind here. It may have a low loss, since boxes in the places where
objects often lie cost little, and only its score shows that it finds nothing.
"""

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ssldet import defaults
from ssldet.blind_scores import HARDLY_BETTER, blind_score, finite, share_of_the_way
from ssldet.detectors.base import backbone_of
from ssldet.engine.run import Run
from ssldet.registry import name_of
from ssldet.task import Task
from ssldet.types import Answer, Batch, Detections

MOST_IMAGES = 500
"""Images whose boxes are compared."""
FEWEST_IMAGES = 4
BLIND_SHARE, BLIND_DEVIATION = 0.01, 0.01
"""A detector is blind if its boxes vary less than this from image to image: of their whole variance, or as a standard
deviation in sides of an image."""
LOW_SCORES = {True: 0.1, False: 0.3}
"""Score, for tasks with labels and for others, above which a detector is not called blind: it does find objects. Where
what is reached without looking was measured, that decides."""
NO_SCORE = 0.005
"""Score below which nothing is found: it is shown as 0.00."""
LATE = 0.5
"""Share of the budget after which a score no better than blind, or a loss that has not fallen, is said: warm-up is over
then, and enough is left for it to be worth stopping."""
HARDLY = 0.1
"""Share of the first loss by which a loss must have fallen; from batch to batch, losses vary by about as much."""
RECENT = 0.9
"""Share that each further line keeps of what a metric was lately: about the last ten lines count."""
FEWEST_LINES = 10
"""Lines of losses without which none is judged."""
ONE_DIRECTION = 1.1
"""Effective rank below which all vectors of images are as good as one: if one singular value holds all but a share e of
the sum, the rank is about 1 + e (1 - ln e), so that e is below two hundredths here."""
LOST = 0.25
"""Share of its first effective rank, below which a part that learns has lost what told images apart. Decoders that went
on to find objects in photographs kept 0.3 and more."""
DEVIATIONS = 2
"""Standard errors of a share of images that neighbours must be better than chance by; less is chance once in 40."""


class BoxVariance:
    """Compares how boxes vary from image to image with how they vary among the answers to one image."""

    def __init__(self) -> None:
        """Start without boxes."""
        self._boxes: list[Tensor] = []

    def update(self, answers: Sequence[Answer], batch: Batch) -> None:
        """Take in the answers to a batch.

        Args:
            answers: One entry per image, on the CPU; those without boxes are left out.
            batch: What was asked.
        """
        for answer, (height, width) in zip(answers, batch.original_sizes.tolist(), strict=True):
            if isinstance(answer, Detections) and len(self._boxes) < MOST_IMAGES:
                self._boxes.append(answer.boxes.float() / torch.tensor([width, height, width, height]))

    def between_images(self) -> tuple[float, float] | None:
        """Return the variance from image to image, of each query, and the whole variance; `None` for too few images.

        Both are means over the four numbers of a box, in sides of the image.
        """
        if len(self._boxes) < FEWEST_IMAGES or len({len(boxes) for boxes in self._boxes}) > 1:
            return None
        boxes = torch.stack(self._boxes)
        if not boxes.shape[1] or not bool(boxes.isfinite().all()):
            return None
        return float(boxes.var(0, correction=0).mean()), float(boxes.flatten(0, 1).var(0, correction=0).mean())


def blindness(task: Task, results: Mapping[str, Any], variance: BoxVariance) -> str:
    """Return a clause if the answers hardly depend on the image; empty if they do, or objects are found anyway.

    Args:
        task: What the detector was taught.
        results: What was measured.
        variance: The boxes that were answered.
    """
    measured, score = variance.between_images(), _score(task, results)
    if measured is None or score is None or _finds(task, results):
        return ""
    between, whole = measured
    if between >= BLIND_SHARE * whole and between >= BLIND_DEVIATION**2:
        return ""
    if between < BLIND_SHARE * whole or not whole:
        share = between / whole if whole else 0.0
        reason = f"{share:.2%} of their variance is from image to image, the rest among the answers to one image"
    else:
        reason = f"from image to image they deviate by {between**0.5:.2%} of an image's side"
    return f"the boxes hardly depend on the image: {reason}; {task.headline} is {score:.3f}"


@dataclass
class _Course:
    """What a run wrote down so far, as far as it is judged.

    Attributes:
        step: The last step that was written down; 0 before the first.
        losses: One loss per line.
        checks: Lines about health.
        lately: Name of a metric of the task -> its mean over the last lines.
    """

    step: int = 0
    losses: "array[float]" = field(default_factory=lambda: array("d"))
    checks: list[Mapping[str, Any]] = field(default_factory=list)
    lately: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, lines: Iterable[Mapping[str, Any]]) -> "_Course":
        """Go through the lines of a metrics file."""
        course = cls()
        for line in lines:
            if line.get("kind") == "health":
                course.checks.append(line)
            elif line.get("kind") == "train":
                course.step = int(line["step"])
                if isinstance(line.get("loss"), int | float):
                    course.losses.append(line["loss"])
                for name, value in _metrics(line):
                    course.lately[name] = value + RECENT * (course.lately.get(name, value) - value)
        return course


def symptoms(
    run: Run, total_steps: int, lines: Iterable[Mapping[str, Any]], results: Mapping[str, Any], variance: BoxVariance
) -> list[str]:
    """Return what shows, at this point of a run, that it does not learn, and last what may help; empty if it learns.

    Args:
        run: The configuration.
        total_steps: Length of the run.
        lines: Lines of the metrics file so far, which are gone through once and not kept.
        results: What was measured now; empty without an evaluation.
        variance: The boxes that were answered in it.
    """
    course = _Course.of(lines)
    if not course.step:
        return []
    score, done = _score(run.task, results), course.step / max(1, total_steps)
    found = [blindness(run.task, results, variance)]
    finds = _finds(run.task, results)
    if score is not None and done >= LATE and (failure := _failure(run.task, score, results)):
        found.append(f"{failure} after {done:.0%} of the budget, step {course.step:,} of {total_steps:,}")
    if done >= LATE and not finds:
        found.append(_flatness(course.losses))
    found += collapse(course.checks, done, finds=finds)
    if done >= LATE:
        found += run.task.symptoms(course.lately, done)
    clauses = [clause for clause in found if clause]
    # What helps is the same for all of them, and said once.
    return [*clauses[:-1], f"{clauses[-1]}. {_remedies(run, total_steps)}"] if clauses else []


def collapse(lines: Sequence[Mapping[str, Any]], done: float, *, finds: bool = False) -> list[str]:
    """Return clauses about images that no longer differ to the network; none for a healthy run.

    Args:
        lines: Lines of the metrics file so far.
        done: Share of the budget that is spent.
        finds: Whether the score says that the detector finds things, so that its decoder does tell images apart.
    """
    checks = [line for line in lines if line.get("kind") == "health"]
    if not checks:
        return []
    first, last, found = checks[0], checks[-1], []
    for name in (name for name in last if name.startswith("rank_") and not (finds and name == "rank_decoder")):
        part, before, now = name.removeprefix("rank_"), float(first.get(name, 0)), float(last[name])
        if now < ONE_DIRECTION:
            found.append(
                f"to the {part} all images look the same: their vectors use {now:.2f} directions (effective rank; 1 is "
                f"a complete collapse, {ONE_DIRECTION} means that all but two hundredths lie in one)"
            )
        elif now < LOST * before:
            found.append(
                f"the {part} tells images apart by fewer directions: the effective rank of their vectors fell "
                f"from {before:.1f} to {now:.1f}, to less than a quarter"
            )
    chance, share = last.get("knn_chance"), last.get("knn_backbone")
    if chance is not None and share is not None and done >= LATE:
        error = (chance * (1 - chance) / last.get("images", 1)) ** 0.5
        if share < chance + DEVIATIONS * error:
            found.append(
                f"neighbours by the backbone share a folder no more often than by chance: {share:.2f} of the images, "
                f"where the largest folder has {chance:.2f} (within {DEVIATIONS} standard errors, {error:.2f} each)"
            )
    return found


def _flatness(losses: Sequence[float]) -> str:
    """Return a clause if a loss has hardly fallen; empty if it has."""
    tenth = len(losses) // 10
    if len(losses) < FEWEST_LINES:
        return ""
    first, last = fmean(losses[:tenth]), fmean(losses[-tenth:])
    if last <= (1 - HARDLY) * first:
        return ""
    return f"the loss has hardly fallen: {first:.3g} in the first tenth of the steps so far, {last:.3g} in the last"


def _remedies(run: Run, total_steps: int) -> str:
    helps = [f"more steps (--steps {2 * total_steps})"]
    backbone = backbone_of(run.detector)
    if backbone is None or backbone.weights is None:
        helps.append(f"a backbone that knows photographs ({recipe_that_knows_photographs(run.task)})")
    return f"What may help: {', '.join(helps)}, or another learning rate (optim.lr is {run.optim.lr:g})"


def recipe_that_knows_photographs(task: Task) -> str:
    """Return the option that takes a backbone which has learned from photographs: a recipe, where the task has one.

    Args:
        task: What is taught.
    """
    recipe = f"{name_of('ssldet.tasks', type(task))}/small"
    return f"--recipe {recipe}" if recipe in defaults.SMALL else f"--set {defaults.BACKBONE_OF_SMALL}"


def _metrics(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in line.items():
        if name.startswith("metric/") and (number := finite(value)) is not None:
            yield name.removeprefix("metric/"), number


def _failure(task: Task, score: float, results: Mapping[str, Any]) -> str:
    """Return the score, if it is no better than without looking, and what that would reach; else nothing."""
    words, blind = blind_score(task.headline, results)
    if score >= NO_SCORE and (blind is None or score > blind):
        return ""
    return f"{task.headline} is {score:.3f}" + ("" if blind is None else f", where {words} would reach {blind:.3f},")


def _finds(task: Task, results: Mapping[str, Any]) -> bool:
    """Return whether the score says that something is found by looking at the images."""
    score, (_, blind) = _score(task, results), blind_score(task.headline, results)
    if score is None:
        return False
    if blind is None:
        return score >= LOW_SCORES[task.needs.labels]
    return share_of_the_way(score, blind) >= HARDLY_BETTER


def _score(task: Task, results: Mapping[str, Any]) -> float | None:
    """Return the metric that counts, if it was measured."""
    value = results.get(task.headline)
    return float(value) if isinstance(value, int | float) and value >= 0 else None
