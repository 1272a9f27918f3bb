"""Data -> specifications: sets on disk as they are, generated ones drawn once."""

import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

from benchmarks.address import data_version
from benchmarks.suite import Data, Generated, Given
from ssldet.registry import find
from ssldet.showcase import SCENES


def specifications(data: Data, folder: Path) -> tuple[str, ...]:
    """Return what a recipe takes.

    Args:
        data: The set.
        folder: Where generated sets are kept.
    """
    if isinstance(data, Given):
        return data.specs
    place = (folder / f"{data.name}-{data_version(data)[0]}").resolve()
    if not place.exists():
        _draw(data, place)
    if data.form == "panoptic":
        return (f"panoptic:{place / 'panoptic.json'}:{place / 'panoptic'}:{place / 'images'}",)
    pictures = place / "images"
    return (str(pictures) if data.form == "images" else f"coco:{place / 'instances.json'}:{pictures}",)


def _draw(data: Generated, place: Path) -> None:
    """Draw beside the place and move there, so that a set is whole or absent."""
    write: Callable[..., Path] = find("ssldet.datasets", "shapes")
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(mkdtemp(prefix=".draft-", dir=place.parent))
    write(draft, images=data.images, seed=data.seed, stuff=data.form == "panoptic", **SCENES)
    try:
        draft.rename(place)
    except OSError:
        # Another runner was first; its pixels are the same.
        shutil.rmtree(draft)
