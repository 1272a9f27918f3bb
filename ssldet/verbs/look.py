"""RUN | images -> pictures and pages: the report of a run, and the problems that a task makes of images."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ssldet import defaults
from ssldet.boxes import to_absolute
from ssldet.citations import cited
from ssldet.data.loader import training_batches
from ssldet.data.problems import pictures
from ssldet.data.signed import require_ours_or_nothing, save_signed
from ssldet.data.sources import open_source
from ssldet.engine.assemble import assemble
from ssldet.engine.folder import RunFolder
from ssldet.engine.run import Run
from ssldet.engine.sources import prepared
from ssldet.errors import ConfigError
from ssldet.recipe import check, override, read_document
from ssldet.registry import name_of, names
from ssldet.report.page import write_report
from ssldet.report.pictures import contact_sheet, draw_answers, draw_detections, draw_problem, draw_segmentation
from ssldet.task import Objective
from ssldet.types import Batch, Detections
from ssldet.verbs.bounds import COUNT, require_within
from ssldet.verbs.choosing import Specs, changes_of, resolve, texts
from ssldet.verbs.keeping import require_no_image_of
from ssldet.verbs.measuring import measure_for_report

PROBE_BATCHES = 4
"""Batches from which `Objective.probe` measures."""
NO_FORECAST = "these numbers are measured before any training, and do not tell whether training will succeed"
"""Line that follows the numbers of `Objective.probe`."""
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Endings of the pictures that are written."""
TRIAL = 300
"""Steps after which a report tells whether a pretext task is being learned."""
NOTHING = Detections(boxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0, dtype=torch.int64))
"""Drawn for an answer without boxes."""


@dataclass(frozen=True, kw_only=True)
class Preview:
    """Problems that a task makes of images.

    Attributes:
        out: File of the picture; `None` where none was drawn.
        probe: Numbers of `Objective.probe`, measured before any training.
        meanings: What each of these numbers is.
        advice: What to do to learn whether training will succeed; empty without numbers.
    """

    out: Path | None
    probe: dict[str, float] = field(default_factory=dict)
    meanings: dict[str, str] = field(default_factory=dict)
    advice: str = ""

    def __str__(self) -> str:
        """Return the text that the command line prints."""
        lines = [str(self.out)] if self.out else []
        lines += [f"{name}  {value:.3f}  {self.meanings.get(name, '')}".rstrip() for name, value in self.probe.items()]
        return "\n".join([*lines, *([f"{NO_FORECAST}; {self.advice}"] if self.probe else [])])

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        out = None if self.out is None else str(self.out)
        return {"out": out, "probe": self.probe, "meanings": self.meanings, "advice": self.advice}


def preview(
    images: Specs,
    *,
    task: str = defaults.PREVIEW,
    recipe: str | None = None,
    out: str | Path | None = None,
    count: int = 8,
    overrides: Mapping[str, object] | None = None,
    draw: bool = True,
) -> Preview:
    """Draw the problems that a task makes of images, and measure those of a pretext task without training anything.

    Args:
        images: Folders, globs, file lists or single files; labelled data for a task that reads labels.
        task: A task's name.
        recipe: The recipe to preview; `None` takes the task's `tiny` one.
        out: Picture to write; `None` takes `preview.png`. An earlier preview is replaced, and no other picture.
        count: Images to show.
        overrides: Dotted recipe fields and their values.
        draw: Whether to draw; false only measures.

    Raises:
        ConfigError: There is no such recipe or field, or the task learns from labels and these images have none, or
            another picture than a preview has the name of this one.
        DataError: The images can't be used.
    """
    require_within({"count": (count, COUNT)})
    path = Path(out or "preview.png")
    _require_picture(path)
    run = override(resolve(recipe or f"{task}/tiny"), changes_of(images, overrides=overrides))
    check(run)
    source = prepared(run.task, open_source(run.data.train, run.data.rules, masks=run.task.needs.masks))
    if run.task.needs.labels and not source.classes:
        raise ConfigError(
            f"{', '.join(run.data.train)}: carries no labels, which the task learns from; use coco:…, voc:… or yolo:…"
        )
    size = max(1, min(run.data.batch_size, len(source)))
    if draw:
        require_no_image_of(source, [path], "name another file for the picture")
        require_ours_or_nothing(path)
    loader = training_batches(source, run.task.views(), seed=run.seed, batch_size=size, total_steps=PROBE_BATCHES)
    batches = list(islice(loader, PROBE_BATCHES))
    probe: dict[str, float] = {}
    meanings: dict[str, str] = {}
    if not run.task.needs.labels:
        objective = assemble(run, source).eval()
        probe = objective.probe(batches)
        meanings = {name: text for name, text in objective.probe_meanings.items() if name in probe}
    advice = trial_of(run, texts(images)) if probe else ""
    if not draw:
        return Preview(out=None, probe=probe, meanings=meanings, advice=advice)
    save_signed(contact_sheet(problems_of(batches, count, source.classes)), path)
    return Preview(out=path, probe=probe, meanings=meanings, advice=advice)


def _require_picture(path: Path) -> None:
    """Let a preview begin only if its picture can be written.

    Raises:
        ConfigError: It is a folder, or no format of pictures has this ending.
    """
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; name the picture, such as {path / 'preview.png'}")
    if path.suffix.lower() not in PICTURES:
        raise ConfigError(f"{path}: ends in none of {' '.join(PICTURES)}; name it {path.with_suffix('.png')}")


def trial_of(run: Run, images: Sequence[str]) -> str:
    """Return the commands that tell whether a pretext task can be learned from images, and what decides it.

    Args:
        run: What was previewed.
        images: Its images, as they were named.
    """
    name = name_of("ssldet.tasks", type(run.task))
    recipe = f"{name}/small" if f"{name}/small" in names("ssldet.recipes") else f"{name}/tiny"
    named = " ".join(map(shlex.quote, images))
    return (
        f"a short run does: ssldet pretrain {named} --recipe {recipe} --steps {TRIAL} --out runs/trial; then "
        f"'ssldet report runs/trial' says in words whether {run.task.headline} on held-out images exceeds that of one "
        "answer for all of them. Where it does not, more steps or images may help, or else do without pretraining"
    )


def problems_of(batches: Sequence[Batch], count: int, classes: Sequence[str] = ()) -> list[Image.Image]:
    """Draw the first images of some batches: boxes, and beside each image the patches that the task adds.

    Args:
        batches: Training batches of a task.
        count: Images to draw.
        classes: Names in the order of the labels; boxes without patches are named by them.
    """
    drawn: list[Image.Image] = []
    for batch in batches:
        for number in range(min(len(batch), count - len(drawn))):
            image, size = _image(batch, number)
            targets, beside = batch.targets[number], pictures(batch, number)
            boxes = to_absolute(targets.boxes, size)
            named = () if len(beside) or not classes else [classes[label] for label in targets.labels.tolist()]
            drawn.append(draw_problem(image, beside, boxes, named))
    return drawn


def draw_batch(objective: Objective, batch: Batch, classes: Sequence[str] = (), count: int = 6) -> Image.Image:
    """Draw the answers of a model to the first images of a batch: the preview of a training run.

    Args:
        objective: The model inside its objective, on the device of the batch.
        batch: Some images.
        classes: Names in the order of the labels.
        count: Images to show.
    """
    drawn = []
    for number, answer in enumerate(objective.answer(batch)[:count]):
        image, size = _image(batch, number)
        found = answer.to("cpu") if isinstance(answer, Detections) else NOTHING
        if found.segmentation is not None:
            drawn.append(draw_segmentation(image, found.segmentation, classes=classes))
            continue
        boxes = _on_canvas(found, batch, number, size)
        truth = to_absolute(batch.targets[number].boxes.cpu(), size)
        asked = pictures(batch, number).cpu()
        if len(asked):
            drawn.append(draw_answers(image, asked, truth, boxes))
        else:
            drawn.append(draw_detections(image, boxes, classes=classes, truth_boxes_xyxy=truth))
    return contact_sheet(drawn)


def report(run: str | Path, *, data: Specs = ()) -> Path:
    """Write `report.html` into a run folder: curves, pictures, numbers, configuration; one file, no network.

    Args:
        run: A run folder.
        data: Images to measure on first, for a run that was trained without any; as for `ssldet.evaluate`.

    Returns:
        The page.

    Raises:
        ConfigError: It is no run folder, or images are named and the run measured itself already.
    """
    folder = RunFolder(run)
    recipe = folder.path / "run.toml"
    if not recipe.exists():
        raise ConfigError(f"{run}: not a run folder; it has no {recipe.name}")
    if data:
        measure_for_report(folder.path, texts(data))
    return write_report(folder.path, citation=cited([*folder.lineage(), read_document(recipe)]))


def _image(batch: Batch, number: int) -> tuple[Any, tuple[int, int]]:
    height, width = (int(side) for side in batch.sizes[number])
    return batch.images[number, :, :height, :width].cpu(), (height, width)


def _on_canvas(found: Detections, batch: Batch, number: int, size: tuple[int, int]) -> Detections:
    height, width = (int(side) for side in batch.original_sizes[number])
    scale = found.boxes.new_tensor([size[1] / width, size[0] / height] * 2)
    return Detections(boxes=found.boxes * scale, scores=found.scores, labels=found.labels)
