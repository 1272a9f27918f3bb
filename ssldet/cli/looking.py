"""command line -> the verbs that show: names, problems of a task, a run, this machine, a short run of everything."""

import sys
from pathlib import Path
from typing import Literal

from ssldet import defaults
from ssldet.cli.options import Data, Epochs, Flag, Json, Overrides, Steps, Whole, assignments
from ssldet.cli.printing import prints


def list_(
    what: Literal[
        "tasks",
        "recipes",
        "detectors",
        "backbones",
        "weights",
        "augmentations",
        "exporters",
        "importers",
        "sources",
        "loggers",
    ],
    pattern: str | None = None,
    *,
    json_: Json = False,
) -> None:
    """List tasks, recipes, detectors, weights, …, and what each is.

    Args:
        pattern: Names to list, such as 'timm/convnext*'; without one, one backbone per family is listed.
    """
    from ssldet import catalogue

    prints(catalogue.list_names)(what, pattern, json_=json_)


def show(recipe: str, *, set_: Overrides = None, json_: Json = False) -> None:
    """Show what --set can change: value, type, bounds and meaning.

    Args:
        recipe: A name from 'ssldet list recipes', or the run.toml of a run.
    """
    from ssldet import verbs

    prints(verbs.show)(recipe, overrides=assignments(set_), json_=json_)


def plan(
    recipe: str,
    *,
    images: Whole,
    devices: Whole = 1,
    measured: Flag = False,
    steps: Steps = None,
    epochs: Epochs = None,
    set_: Overrides = None,
    json_: Json = False,
) -> None:
    """Say what a recipe takes: steps, hours, memory and disk.

    No images are needed; each figure names its source.

    Args:
        recipe: A name from 'ssldet list recipes', or the run.toml of a run.
        images: Number of training images.
        devices: Number of devices, over all machines.
        measured: Time a few steps on this machine, instead of reading the committed measurement of a GPU.
    """
    from ssldet import verbs

    prints(verbs.plan)(
        recipe, images=images, devices=devices, measured=measured, steps=steps, epochs=epochs,
        overrides=assignments(set_), json_=json_,
    )  # fmt: skip


def preview(
    *images: str,
    task: str = defaults.PREVIEW,
    recipe: str | None = None,
    out: Path | None = None,
    count: Whole = 8,
    set_: Overrides = None,
    json_: Json = False,
) -> None:
    """Draw what a task makes of your images; measure it untrained.

    Args:
        images: Folders, globs, file lists or single files; coco:/voc:/yolo: data for a task that reads labels.
        task: A name from 'ssldet list tasks'.
        recipe: The recipe to preview; default: the task's tiny one.
        out: Picture to write; default: preview.png.
        count: Images to show.
    """
    from ssldet import verbs

    prints(verbs.preview)(
        images, task=task, recipe=recipe, out=out, count=count, overrides=assignments(set_), json_=json_
    )


def report(run: Path, *, data: Data | None = None, json_: Json = False) -> None:
    """Write report.html of a run: curves, pictures, numbers, configuration, in one self-contained file.

    Args:
        data: Images to measure on first, for a run that was trained without --val.
    """
    from ssldet import verbs

    prints(verbs.report)(run, data=data or (), json_=json_)


def doctor(*images: str, json_: Json = False) -> None:
    """Check this machine, images and detectron2, and print remedies."""
    from ssldet.checkup import doctor as examine

    findings = examine(images)
    prints(lambda: findings)(json_=json_)
    if not findings.healthy:
        sys.exit(4)


def demo(*, out: Path | None = None, seed: Whole = 0, json_: Json = False) -> None:
    """Pretrain and fine-tune on generated images in minutes, compare with training from scratch, write a report.

    Args:
        out: Folder to create; default: the next free one in runs/.
        seed: The only source of randomness.
    """
    from ssldet.showcase import demo as run_demo

    prints(run_demo)(out, seed=seed, json_=json_)


def docs(page: str | None = None) -> None:
    """List the pages of the documentation, which this installation carries, or show one.

    Args:
        page: Its name; default: all names and titles.
    """
    from ssldet import manual

    prints(manual.contents if page is None else lambda: manual.page(page))()
