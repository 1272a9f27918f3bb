"""data set -> data specifications; a generated set is drawn once and kept on disk."""

import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

from benchmarks.address import code_version, data_version
from benchmarks.suite import Data, GeneratedScenes, ImagesOnDisk
from ssldet.registry import find
from ssldet.showcase import SCENES


def specifications(data: Data, folder: Path) -> tuple[str, ...]:
    """Return the data specifications of a set, as recipes take them.

    Args:
        data: The set.
        folder: Folder of generated sets.
    """
    if isinstance(data, ImagesOnDisk):
        return data.specs
    # Other code may draw other scenes.
    place = (folder / f"{data.name}-{data_version(data)[0]}-{code_version()}").resolve()
    if not place.exists():
        _draw(data, place)
    if data.form == "panoptic":
        return (f"panoptic:{place / 'panoptic.json'}:{place / 'panoptic'}:{place / 'images'}",)
    pictures = place / "images"
    return (str(pictures) if data.form == "images" else f"coco:{place / 'instances.json'}:{pictures}",)


def _draw(data: GeneratedScenes, place: Path) -> None:
    """Generate a set in a temporary folder and rename that, so that a set is complete or absent."""
    write: Callable[..., Path] = find("ssldet.datasets", "shapes")
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(mkdtemp(prefix=".draft-", dir=place.parent))
    write(draft, images=data.images, seed=data.seed, stuff=data.form == "panoptic", **SCENES)
    try:
        draft.rename(place)
    except OSError:
        # Another runner has generated the same set in the meantime.
        shutil.rmtree(draft)
