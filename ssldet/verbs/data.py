"""data specifications -> problems of a data set, a file in another format, archives, images that two sets share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ssldet import defaults
from ssldet.data.images import ImageRules
from ssldet.data.inspection import Inspection, inspect_images, not_opened
from ssldet.data.leaks import THRESHOLD, Leaks, find_leaks
from ssldet.data.object_sizes import Resizing
from ssldet.data.packing import MEGABYTES, Packed, pack
from ssldet.data.sources import open_source, split_spec
from ssldet.engine.run import Run
from ssldet.errors import ConfigError, DataError
from ssldet.registry import find, find_or_import, names
from ssldet.source import Source
from ssldet.verbs.choosing import Specs, resolve, texts

RULES = ImageRules()
"""Which images are usable, by the defaults of a run."""


@runtime_checkable
class ConversionReport(Protocol):
    """What a converter returns."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        ...


def check_data(spec: str, *, recipe: str | Path | Run = defaults.FINETUNE_SMALL) -> Inspection:
    """Check a whole data set, and go on after problems.

    Args:
        spec: A data specification.
        recipe: A recipe, or the `run.toml` of a run; objects are counted that get small by its resize.

    Returns:
        Every problem with its place and remedy, and counts of the contents.
    """
    views = resolve(recipe).task.views(training=False)
    inspection = _inspected(spec)
    return inspection.seen_by(views, str(recipe)) if isinstance(views, Resizing) else inspection


def _inspected(spec: str) -> Inspection:
    form, rest = split_spec(spec)
    if form is None:
        return inspect_images(rest, RULES)
    if form in names("ssldet.checkers"):
        inspection: Inspection = find("ssldet.checkers", form)(spec, RULES)
        return inspection
    try:
        source = _open([spec])
    except DataError as error:
        return not_opened(spec, error)
    return Inspection(spec=spec, skipped=source.skipped, counts={"images": len(source)})


def convert_data(spec: str, *, to: str, out: str | Path) -> ConversionReport:
    """Write labelled data in another format; images stay where they are.

    Args:
        spec: A data specification.
        to: A format's name.
        out: File to create.

    Raises:
        ConfigError: The file exists.
        AnnotationError: The data have problems; nothing is written then.
    """
    write = find_or_import("ssldet.converters", to)
    path = Path(out)
    if path.exists():
        raise ConfigError(f"{path}: exists and is not overwritten; choose another name")
    report: ConversionReport = write(spec, path, RULES)
    return report


def compare_data(first: Specs, second: Specs, *, threshold: float = THRESHOLD) -> Leaks:
    """Find images of one set in another: the same file, or the same picture saved again.

    Args:
        first: Training images.
        second: Test images.
        threshold: Largest difference anywhere in two pictures that count as the same, in percent of the range of grey.

    Raises:
        ConfigError: A set does not know the paths of its images, or the threshold is no percentage.
    """
    return find_leaks(_open(texts(first)), _open(texts(second)), RULES, threshold)


def pack_data(images: Specs, *, out: str | Path, megabytes: int = MEGABYTES) -> Packed:
    """Write images into tar archives in WebDataset's layout, which `tar:` reads.

    Packing again what was stopped goes on where it was; nothing is overwritten.

    Args:
        images: Folders, globs, lists or files.
        out: Folder to create.
        megabytes: Size of an archive.

    Raises:
        DataError: Nothing usable is named, or it is labelled data.
        ConfigError: The folder holds something else.
        SetupError: The disk has not enough space.
    """
    specs = texts(images)
    if formats := [spec for spec in specs if split_spec(spec)[0] is not None]:
        raise DataError(f"{formats[0]}: pack takes images; name their folder, and train on coco:ANN.json:tar:SHARDS")
    return pack(specs, Path(out), RULES, megabytes)


def _open(specs: Sequence[str]) -> Source:
    return open_source(specs, RULES)
