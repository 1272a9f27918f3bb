"""a pretext task -> the laws it must keep: functions of the task and the configuration of a detector."""

import pickle
import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ssldet.boxes import cxcywh_to_xyxy
from ssldet.data.collate import collate
from ssldet.data.problems import same, without_pixels
from ssldet.detectors.base import Detector, DetectorConfig
from ssldet.engine.checkpoint import restore_objective, save_weights
from ssldet.engine.description import SCHEMA
from ssldet.engine.sources import prepared
from ssldet.recipe import to_document
from ssldet.registry import find, names
from ssldet.source import Source
from ssldet.task import Objective, PretextTask, learning_sections, transferred_sections
from ssldet.testing.law import require, seeded
from ssldet.types import Batch, Detections, Sample, Targets

SIZES = ((70, 90), (64, 51), (48, 96))
"""Height and width of the images that laws look at: unequal, so that no axis can be taken for another."""

STEPS, FALL = 40, 0.9
"""Steps on one batch, and the share of the first loss that may be left after them."""

Law = Callable[[PretextTask, DetectorConfig], None]


def check_pretext_task(task: PretextTask, detector: DetectorConfig | None = None) -> None:
    """Check every law of pretext tasks.

    Args:
        task: Any pretext task, set up small: each law runs on the CPU.
        detector: A small detector that suits the task; `None` takes that of the task's own recipe `NAME/tiny`.

    Raises:
        AssertionError: A law is broken; the message says which and how.
    """
    config = tiny_detector(task) if detector is None else detector
    for law in PRETEXT_LAWS:
        law(task, config)


def tiny_detector(task: PretextTask) -> DetectorConfig:
    """Return the detector of the recipe `NAME/tiny` that belongs to a registered task.

    Args:
        task: The task, whose class is registered.

    Raises:
        AssertionError: It is not registered.
    """
    for name in names("ssldet.tasks"):
        if find("ssldet.tasks", name) is type(task):
            config: DetectorConfig = find("ssldet.recipes", f"{name}/tiny")().detector
            return config
    raise AssertionError(f"{type(task).__name__} is not registered, so it has no recipe to take a detector from")


def it_says_where_it_comes_from(task: PretextTask, detector: DetectorConfig) -> None:
    """A task names its source and its headline metric, teaches and hands over something, and suits the detector."""
    require(bool(getattr(task, "cite", "")), "`cite` is empty; name a key of references.bib")
    require(bool(getattr(task, "headline", "")), "`headline` is empty; name the metric to show")
    built = detector.build()
    require(
        bool(learning_sections(task, built)), f"`rests` lets no section learn; the detector has {list(built.sections)}"
    )
    handed = transferred_sections(task, built)
    require(bool(handed), f"`stays_behind` hands no section over; the detector has {list(built.sections)}")
    problems = task.problems_with(detector)
    require(not problems, f"the task and the detector don't suit each other: {problems}")


def views_are_a_function_of_the_generator(task: PretextTask, detector: DetectorConfig) -> None:
    """The same image and seed give the same sample, whatever other chance was used; another seed gives another."""
    for training in (True, False):
        views = task.views(training=training)
        first = views(_photo(0), seeded(1))
        torch.manual_seed(123)
        torch.rand(7)
        require(same(first, views(_photo(0), seeded(1))), "views use chance that is not the generator's")
    other = task.views()(_photo(0), seeded(2))
    require(not same(task.views()(_photo(0), seeded(1)), other), "views of a training image never change")


def views_leave_the_source_alone(task: PretextTask, detector: DetectorConfig) -> None:
    """The sample that a source gave is not written to, since it may be read again."""
    photo = _photo(1)
    before = photo.image.clone()
    task.views()(photo, seeded(1))
    require(bool(torch.equal(before, photo.image)), "views write into the image that they were given")


def labels_are_not_read(task: PretextTask, detector: DetectorConfig) -> None:
    """The promise of a pretext task: other boxes and labels, or none, give the same sample and the same loss."""
    objective = _objective(task, detector).eval()
    samples, losses = [], []
    for targets in (_labels(0), _labels(3), _labels(5)):
        samples.append(task.views()(replace(_photo(0), targets=targets), seeded(1)))
        torch.manual_seed(0)
        with torch.no_grad():
            losses.append(objective(collate([samples[-1]])).total)
    require(all(same(samples[0], sample) for sample in samples), "views depend on the labels of the image")
    require(all(bool(torch.equal(losses[0], loss)) for loss in losses), "the loss depends on the labels of the image")


def views_pickle(task: PretextTask, detector: DetectorConfig) -> None:
    """Views travel into loader workers and do there what they do here."""
    views = task.views()
    again = pickle.loads(pickle.dumps(views))  # noqa: S301  # our own bytes
    require(same(views(_photo(0), seeded(1)), again(_photo(0), seeded(1))), "pickled views make other samples")


def boxes_lie_in_the_image(task: PretextTask, detector: DetectorConfig) -> None:
    """Every box to be found has an area and lies inside, to a rounding of the last digits."""
    for seed in range(20):
        boxes = cxcywh_to_xyxy(task.views()(_photo(seed % len(SIZES)), seeded(seed)).targets.boxes)
        inside = bool(((boxes >= -1e-5) & (boxes <= 1 + 1e-5)).all())
        require(inside and bool((boxes[:, 2:] > boxes[:, :2]).all()), f"a box lies outside or is empty: {boxes}")


def losses_are_named_and_finite(task: PretextTask, detector: DetectorConfig) -> None:
    """Every term is finite in every layer, has a weight, and counts in the total."""
    losses = _objective(task, detector)(_batch(task))
    require(bool(losses.terms), "there are no loss terms")
    require(losses.terms.keys() == losses.weights.keys(), "terms and weights have different names")
    for name, term in losses.terms.items():
        require(bool(term.isfinite().all()), f"the term {name!r} is not finite: {term}")
    weighted = sum(losses.weights[name] * float(term.detach().sum()) for name, term in losses.terms.items())
    require(abs(weighted - float(losses.total.detach())) < 1e-3 * (1 + abs(weighted)), "the total is not the sum")


def gradient_reaches_what_trains(task: PretextTask, detector: DetectorConfig) -> None:
    """Every parameter of the sections that train, and of the task's own heads, gets a gradient; no other does."""
    objective = _objective(task, detector)
    objective(_batch(task)).total.backward()
    sections = objective.detector.sections
    for name, parameter in objective.named_parameters():
        inner = name.removeprefix("detector.")
        owners = [s for s, parts in sections.items() if any(inner.startswith(f"{part}.") for part in parts)]
        own_head = inner == name
        learns = own_head or not all(map(task.rests, owners))
        if not learns:
            require(parameter.grad is None, f"{name} gets a gradient, but {owners} rests")
        elif parameter.requires_grad:
            require(parameter.grad is not None, f"{name} gets no gradient, but it should learn")


def one_batch_can_be_learned(task: PretextTask, detector: DetectorConfig) -> None:
    """A few steps on one batch lower the loss clearly, seen with the same memory of earlier batches at every step."""
    objective, batch = _objective(task, detector), _batch(task)
    learning = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=2e-3)
    memory = {name: buffer.clone() for name, buffer in objective.named_buffers()}
    totals = []
    for step in range(STEPS):
        # A queue of negatives would soon hold nothing but this batch itself.
        for name, buffer in objective.named_buffers():
            buffer.copy_(memory[name])
        objective.begin(step, STEPS)
        totals.append(_step(objective, batch, optimizer))
    first, last = totals[0], sum(totals[-5:]) / 5
    require(last < FALL * first, f"the loss of one batch went from {first:.3f} to {last:.3f} in {STEPS} steps")


def answers_are_measured(task: PretextTask, detector: DetectorConfig) -> None:
    """There is one answer per image, boxes in it are finite, and the evaluator ends in the headline metric."""
    objective, batch = _objective(task, detector).eval(), _batch(task, training=False)
    found = objective.answer(batch)
    require(len(found) == len(batch), f"{len(found)} answers for {len(batch)} images")
    for one in found:
        if isinstance(one, Detections):
            require(bool(one.boxes.isfinite().all()), "a found box is not finite")
    evaluator = task.evaluator(prepared(task, Photos(), training=False))
    evaluator.update(list(found), without_pixels(batch))
    results = evaluator.results()
    require(task.headline in results, f"the evaluator gives {sorted(results)}, without headline {task.headline!r}")


def weights_come_back(task: PretextTask, detector: DetectorConfig) -> None:
    """A saved objective is rebuilt from its file alone, bit by bit, and answers alike."""
    objective, batch = _objective(task, detector).eval(), _batch(task, training=False)
    info = {"schema": SCHEMA, "task": to_document(task), "detector": to_document(detector), "classes": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_weights(path, objective, info)
        again, _ = restore_objective(path)
    require(again.state_dict().keys() == objective.state_dict().keys(), "the rebuilt objective has other tensors")
    for here, there in zip(objective.answer(batch), again.eval().answer(batch), strict=True):
        same_answer = all(
            torch.equal(value, getattr(there, field.name))
            for field in fields(here)  # type: ignore[arg-type]  # every answer is a dataclass
            if isinstance(value := getattr(here, field.name), Tensor)
        )
        require(same_answer, "the rebuilt objective answers differently")


PRETEXT_LAWS: tuple[Law, ...] = (
    it_says_where_it_comes_from,
    views_are_a_function_of_the_generator,
    views_leave_the_source_alone,
    labels_are_not_read,
    views_pickle,
    boxes_lie_in_the_image,
    losses_are_named_and_finite,
    gradient_reaches_what_trains,
    one_batch_can_be_learned,
    answers_are_measured,
    weights_come_back,
)
"""All laws of pretext tasks."""


class Photos(Source):
    """A source of made-up images with labels that no pretext task may read."""

    classes = ("thing",)
    fingerprint = "made-up"
    skipped = ()

    def __len__(self) -> int:
        """Number of images."""
        return len(SIZES)

    def __getitem__(self, index: int) -> Sample:
        """Return one image."""
        return _photo(index)


def _photo(index: int) -> Sample:
    """Return an image of soft colours, in which one place differs from another."""
    height, width = SIZES[index]
    coarse = torch.rand(1, 3, 6, 6, generator=seeded(index))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    image = (255 * smooth).to(torch.uint8)
    return Sample(image=image, targets=_labels(2), key=f"photo-{index}", original_size=(height, width))


def _labels(count: int) -> Targets:
    boxes: Float[Tensor, "T 4"] = torch.full((count, 4), 0.25)
    return Targets(boxes=boxes, labels=torch.zeros(count, dtype=torch.int64))


def _batch(task: PretextTask, *, training: bool = True) -> Batch:
    source, views = prepared(task, Photos(), training=training), task.views(training=training)
    made = []
    for index in range(len(source)):
        generator = seeded(index)
        made.append(views(source.draw(index, generator), generator))
    return collate(made)


def _objective(task: PretextTask, config: DetectorConfig) -> Objective:
    """Return a fresh objective with its resting sections at rest, as the engine trains it."""
    torch.manual_seed(0)
    detector: Detector = config.build()
    objective = task.objective(detector)
    detector.train_only(learning_sections(task, detector))
    return objective.train()


def _step(objective: Objective, batch: Batch, optimizer: torch.optim.Optimizer) -> float:
    total = objective(batch).total
    optimizer.zero_grad()
    total.backward()
    optimizer.step()
    return float(total.detach())
