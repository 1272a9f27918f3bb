"""command line -> the public function of each verb; parsing imports nothing heavy, so that it is quick."""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from textwrap import indent
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

from ssldet import defaults, registry
from ssldet.errors import ConfigError, DataError, SsldetError, StoppedError, refused

app = App(
    name="ssldet",
    help="Pretrain whole detection transformers on unlabelled images, then fine-tune, evaluate and export them.",
    help_epilogue="Any verb takes --help; --debug adds a traceback to an error. Documentation of every option: docs/.",
    version=lambda: version("ssldet"),
    help_format="plaintext",
)

Overrides = Annotated[
    list[str] | None,
    Parameter(name="--set", consume_multiple=True, negative=(), help="Recipe fields, such as optim.lr=1e-4."),
]
Json = Annotated[bool, Parameter(name="--json", negative=(), help="One JSON object on standard output.")]
Flag = Annotated[bool, Parameter(negative=())]
Out = Annotated[Path | None, Parameter(name="--out", help="Run folder to create; default: the next free one in runs/.")]
Steps = Annotated[int | None, Parameter(name="--steps", help="Length in optimiser steps.")]
Epochs = Annotated[float | None, Parameter(name="--epochs", help="Length in passes over the training set.")]
Resume = Annotated[Path | None, Parameter(name="--resume", help="Run folder to go on with.")]
Data = Annotated[list[str], Parameter(consume_multiple=True, negative=())]
Start = Annotated[str, Parameter(help="A run folder, a weights file (ours, DETR's or UP-DETR's), or 'scratch'.")]


def _prints(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Print the result of a verb, as JSON or as text."""

    @wraps(verb)
    def run(*positional: Any, json_: bool = False, **named: Any) -> None:
        result = verb(*positional, **named)
        document = result.to_json() if hasattr(result, "to_json") else result
        if json_:
            sys.stdout.write(json.dumps(document, default=str, allow_nan=False) + "\n")
        elif result is not None:
            sys.stdout.write(f"{_text(result)}\n")

    return run


def _text(result: Any) -> str:
    if isinstance(result, dict):
        width = max((len(str(key)) for key in result), default=0)
        return "\n".join(f"{key:<{width}}  {_entry(value)}" for key, value in result.items())
    if isinstance(result, list):
        return "\n".join(map(_text, result))
    return f"{result:.4f}" if isinstance(result, float) else str(result)


def _entry(value: Any) -> str:
    """Return the text after a name; nested values begin on a new line, indented."""
    return "\n" + indent(_text(value), "  ") if isinstance(value, dict) and value else _text(value)


def _assignments(pairs: Sequence[str] | None) -> dict[str, str]:
    wrong = [pair for pair in pairs or () if "=" not in pair]
    if wrong:
        raise ConfigError([f"--set {pair}: expects path=value, such as task.num_patches=5" for pair in wrong])
    return dict(pair.split("=", 1) for pair in pairs or ())


@app.command
def pretrain(
    *images: str,
    recipe: str = defaults.PRETRAIN,
    backbone: str | None = None,
    val: Data | None = None,
    out: Out = None,
    steps: Steps = None,
    epochs: Epochs = None,
    set_: Overrides = None,
    resume: Resume = None,
    json_: Json = False,
) -> None:
    """Pretrain a detection transformer on images without labels.

    Args:
        images: Folders, globs, file lists, or coco:/voc: data whose labels are then not read.
        recipe: A name from 'ssldet list recipes', or the run.toml of an earlier run.
        backbone: A name from 'ssldet list backbones'.
        val: Images to measure the pretext task on.
    """
    from ssldet import verbs

    _prints(verbs.pretrain)(
        images, recipe=recipe, backbone=backbone, val=val or (), out=out, steps=steps, epochs=epochs,
        overrides=_assignments(set_), resume=resume, json_=json_,
    )  # fmt: skip


@app.command
def finetune(
    start: Start | None = None,
    *,
    data: Data | None = None,
    val: Data | None = None,
    recipe: str = defaults.FINETUNE,
    out: Out = None,
    steps: Steps = None,
    epochs: Epochs = None,
    set_: Overrides = None,
    resume: Resume = None,
    json_: Json = False,
) -> None:
    """Fine-tune a detector on labelled images.

    Args:
        data: coco:ANN.json:IMAGES, voc:ROOT:SPLIT or yolo:ROOT:SPLIT.
        val: The same, to evaluate on.
        recipe: A name from 'ssldet list recipes', or the run.toml of an earlier run.
    """
    from ssldet import verbs

    _prints(verbs.finetune)(
        start, data or (), val=val or (), recipe=recipe, out=out, steps=steps, epochs=epochs,
        overrides=_assignments(set_), resume=resume, json_=json_,
    )  # fmt: skip


@app.command
def evaluate(
    start: Start | None = None,
    *,
    data: Data,
    predictions: Path | None = None,
    save_predictions: Path | None = None,
    metric: Literal["coco", "voc"] | None = None,
    iou: float | None = None,
    accelerate: Flag = False,
    batch_size: int = 1,
    workers: int = 2,
    set_: Overrides = None,
    json_: Json = False,
) -> None:
    """Measure a detector on labelled images, or a pretext task on plain ones.

    Args:
        data: coco:ANN.json:IMAGES, voc:ROOT:SPLIT or panoptic:ANN.json:PNGS:IMAGES; plain images for a pretrained run.
        predictions: A results file to score instead of a model: COCO's, or PRED.json:PNGS against panoptic data.
        save_predictions: Where to write the detections in COCO results format.
        metric: Definition of AP; default: the task's, and for predictions that of the data's form.
        iou: Least overlap of a correct box in VOC's AP of predictions; default: 0.5.
        accelerate: Compute COCO's AP with faster-coco-eval.
        batch_size: Images read at a time; results do not depend on it.
        workers: Loader processes.
    """
    from ssldet import verbs

    _prints(verbs.evaluate)(
        start, data, predictions=predictions, save_predictions=save_predictions, metric=metric, iou=iou,
        accelerate=accelerate, batch_size=batch_size, workers=workers, overrides=_assignments(set_), json_=json_,
    )  # fmt: skip


@app.command
def predict(
    start: Start,
    *images: str,
    query: Data | None = None,
    out: Path | None = None,
    threshold: float = 0.5,
    json_: Json = False,
) -> None:
    """Detect objects in images and draw them, or find patches in images.

    Args:
        images: Folders, globs, file lists or single files.
        query: Patch images to look for, with a pretrained or a one-shot run.
        out: Folder for the pictures and predictions.json; default: predictions/.
        threshold: Least confidence that is drawn.
    """
    from ssldet import verbs

    _prints(verbs.predict)(start, images, query=query or (), out=out, threshold=threshold, json_=json_)


@app.command
def export(start: Start, *, to: str, out: Path, json_: Json = False) -> None:
    """Write a detector in another format, load it back and check that its outputs are the same.

    Args:
        to: A name from 'ssldet list exporters'.
        out: File to create.
    """
    from ssldet import verbs

    _prints(verbs.export)(start, to=to, out=out, json_=json_)


@app.command(name="list")
def list_(
    what: Literal["tasks", "recipes", "backbones", "weights", "exporters", "importers", "sources"],
    pattern: str | None = None,
    *,
    json_: Json = False,
) -> None:
    """List names: tasks, recipes, backbones, published weights, exporters, importers, sources.

    Args:
        pattern: Names to list, such as 'timm/convnext*'; without one, one backbone per family is listed.
    """
    from ssldet import catalogue

    _prints(catalogue.list_names)(what, pattern, json_=json_)


@app.command
def preview(
    *images: str,
    task: str = defaults.PREVIEW,
    recipe: str | None = None,
    out: Path | None = None,
    count: int = 8,
    set_: Overrides = None,
    json_: Json = False,
) -> None:
    """Draw the problems that a pretext task makes of your images, and test whether they can be learned.

    Args:
        images: Folders, globs, file lists or single files.
        task: A name from 'ssldet list tasks'.
        recipe: The recipe to preview; default: the task's tiny one.
        out: Picture to write; default: preview.png.
        count: Images to show.
    """
    from ssldet import verbs

    _prints(verbs.preview)(
        images, task=task, recipe=recipe, out=out, count=count, overrides=_assignments(set_), json_=json_
    )


@app.command
def report(run: Path, *, json_: Json = False) -> None:
    """Write report.html of a run: curves, pictures, numbers, configuration, in one self-contained file."""
    from ssldet import verbs

    _prints(verbs.report)(run, json_=json_)


@app.command
def doctor(*images: str, json_: Json = False) -> None:
    """Check this machine, and images or detectron2 if named, and print remedies."""
    from ssldet.checkup import doctor as examine

    findings = examine(images)
    _prints(lambda: findings)(json_=json_)
    if not findings.healthy:
        sys.exit(4)


data_app = App(name="data", help="Check labelled data, write them in another format, find images in two sets.")
app.command(data_app)


@data_app.command
def check(spec: str, *, json_: Json = False) -> None:
    """List every problem of a data set with its place and remedy, and count its contents.

    Args:
        spec: coco:ANN.json:IMAGES, voc:ROOT:SPLIT, yolo:ROOT:SPLIT, or images.
    """
    from ssldet import verbs

    inspection = verbs.check_data(spec)
    _prints(lambda: inspection)(json_=json_)
    if not inspection.sound:
        sys.exit(DataError.exit_code)


@data_app.command
def convert(spec: str, *, to: str = "coco", out: Path, json_: Json = False) -> None:
    """Write labelled data in another format; images stay where they are, and nothing is overwritten.

    Args:
        spec: voc:ROOT:SPLIT, yolo:ROOT:SPLIT, or coco:ANN.json:IMAGES.
        to: A format's name.
        out: File to create.
    """
    from ssldet import verbs

    _prints(verbs.convert_data)(spec, to=to, out=out, json_=json_)


@data_app.command
def leaks(first: str, second: str, *, json_: Json = False) -> None:
    """Find images of a training set in a test set: the same file, or the same picture saved again.

    Args:
        first: Training images.
        second: Test images.
    """
    from ssldet import verbs

    _prints(verbs.compare_data)(first, second, json_=json_)


@app.command
def demo(*, out: Path | None = None, seed: int = 0, json_: Json = False) -> None:
    """Pretrain and fine-tune on generated images in minutes, compare with training from scratch, write a report.

    Args:
        out: Folder to create; default: the next free one in runs/.
        seed: The only source of randomness.
    """
    from ssldet.showcase import demo as run_demo

    _prints(run_demo)(out, seed=seed, json_=json_)


def _join_plugins() -> None:
    """Add the verbs of installed packages by name; none is imported, so that a broken one affects only its own verb."""
    for name in registry.names("ssldet.verbs"):
        if name not in app:  # our own verbs take precedence
            # The plug-in shows its own help.
            outer = App(
                name=name, help=f"Verbs of a plug-in; see: ssldet {name} --help", help_flags=[], version_flags=[]
            )
            outer.default(_calling(name))
            app.command(outer)


def _calling(name: str) -> Callable[..., None]:
    def call(*words: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> None:
        plugin = registry.find("ssldet.verbs", name)
        if not isinstance(plugin, App):
            raise ConfigError(f"verb {name!r} is {type(plugin).__name__!r} and no cyclopts App; tell who made it")
        plugin(words, exit_on_error=False, print_error=False, result_action="return_value")

    return call


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the code that the README lists.

    Args:
        arguments: Arguments after the program's name; `None` takes those of this process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        _join_plugins()
        with _logging_to_stderr():
            app(words, exit_on_error=False, print_error=False, result_action="return_value")
    except (CycloptsError, SsldetError) as error:
        if debug:
            raise
        sys.exit(_report_error(error, words[:1]))
    except OSError as error:
        if debug:
            raise
        if isinstance(error, BrokenPipeError):  # Python would try to flush it once more on its way out
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(_report_error(refused(error), words[:1]))


@contextmanager
def _logging_to_stderr() -> Iterator[None]:
    """Print log messages of our packages on standard error, one line per message."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    # `Display` shows the progress of a run on the terminal; its log messages are for the file only.
    handler.addFilter(lambda record: record.levelno > logging.INFO or record.name != "ssldet.engine.reporter")
    loggers = [logging.getLogger(package) for package in ("ssldet", "pretext", "downstream")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def _report_error(error: CycloptsError | SsldetError, verb: Sequence[str]) -> int:
    """Print an error for the user and return its exit code."""
    if isinstance(error, CycloptsError):
        sys.stderr.write(f"error: {error} (see: {' '.join(['ssldet', *verb, '--help'])})\n")
        return ConfigError.exit_code
    word = "stopped" if isinstance(error, StoppedError) else "error"
    sys.stderr.writelines(f"{word}: {line}\n" for line in str(error).splitlines())
    return error.exit_code
