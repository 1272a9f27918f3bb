"""command line -> the verbs below `ssldet data`."""

import sys
from pathlib import Path

from cyclopts import App

from ssldet import defaults
from ssldet.cli.options import Data, Json, Whole
from ssldet.cli.printing import prints
from ssldet.errors import DataError

app = App(name="data", help="Check data, write them in another format or into archives, find images in two sets.")


@app.command
def check(spec: str, *, recipe: str = defaults.FINETUNE_SMALL, json_: Json = False) -> None:
    """List every problem of a data set with its place and remedy, and count its contents.

    Args:
        spec: coco:ANN.json:IMAGES, voc:ROOT:SPLIT, yolo:ROOT:SPLIT, hf:PATH:SPLIT, tar:SHARDS, or images.
        recipe: The recipe, or the run.toml of a run, by whose resize objects count as small.
    """
    from ssldet import verbs

    inspection = verbs.check_data(spec, recipe=recipe)
    prints(lambda: inspection)(json_=json_)
    if not inspection.sound:
        sys.exit(DataError.exit_code)


@app.command
def convert(spec: str, *, to: str = "coco", out: Path, json_: Json = False) -> None:
    """Write labelled data in another format; images stay where they are, and nothing is overwritten.

    Args:
        spec: voc:ROOT:SPLIT, yolo:ROOT:SPLIT, or coco:ANN.json:IMAGES.
        to: A format's name.
        out: File to create.
    """
    from ssldet import verbs

    prints(verbs.convert_data)(spec, to=to, out=out, json_=json_)


@app.command
def pack(images: Data, /, *, out: Path, megabytes: Whole = 256, json_: Json = False) -> None:
    """Write images into tar archives in WebDataset's layout, which tar:SHARDS reads; nothing is overwritten.

    What was stopped goes on where it was when the same is packed again.

    Args:
        images: Folders, globs, lists or files.
        out: Folder to create.
        megabytes: Size of an archive.
    """
    from ssldet import verbs

    prints(verbs.pack_data)(images, out=out, megabytes=megabytes, json_=json_)


@app.command
def leaks(first: str, second: str, *, threshold: float = 10.0, json_: Json = False) -> None:
    """Find images of a training set in a test set: the same file, or the same picture saved again; exit code 3 if any.

    Args:
        first: Training images.
        second: Test images.
        threshold: Largest difference anywhere in two pictures that count as the same, in percent of the range of grey.
    """
    from ssldet import verbs

    found = verbs.compare_data(first, second, threshold=threshold)
    prints(lambda: found)(json_=json_)
    if found.pairs:
        sys.exit(DataError.exit_code)
