"""places to write to -> nothing of the user's is lost there: only what was written by us is replaced."""

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import unquote

from ssldet.data.signed import is_free
from ssldet.documents import parse_json
from ssldet.errors import ConfigError
from ssldet.escapes import shown
from ssldet.regular import read_bytes
from ssldet.source import Measurable, Source
from ssldet.verbs.file_names import FileNames


def require_no_image_of(source: Source, paths: Sequence[Path], remedy: str) -> None:
    """Keep what is written from taking the place of an image that it is made of, by whatever name or link.

    Args:
        source: The images.
        paths: Where files will be written.
        remedy: What to do instead.

    Raises:
        ConfigError: It would.
    """
    there = {place: path for path in paths if (place := _place(path)) is not None}
    if not there:
        return
    lost = {there[place] for name in source.all_names() if name is not None and (place := _place(name)) in there}
    if lost:
        more = f", and so are {len(lost) - 1} more" if len(lost) > 1 else ""
        raise ConfigError(f"{shown(min(lost))}: is one of the images{more}; {remedy}")


def require_pictures_replaceable(source: Source, folder: Path, remedy: str) -> None:
    """Let pictures of images be written into a folder only if none there would be lost.

    Names that can't be told before an image is read are looked at when the picture is written.

    Args:
        source: The images, of which each gets a PNG named by its key.
        folder: Where to; need not exist.
        remedy: What to do instead.

    Raises:
        ConfigError: An image of the source, or a picture that is not ours, has such a name.
    """
    taken = list(_taken(source, folder))
    require_no_image_of(source, taken, remedy)
    if foreign := [path for path in taken if not is_free(path)]:
        more = f", and so do {len(foreign) - 1} more" if foreign[1:] else ""
        raise ConfigError(f"{shown(foreign[0])}: exists, and ssldet did not draw it{more}; {remedy}")


def require_results_or_nothing(path: Path, remedy: str) -> None:
    """Refuse a place where something else than earlier results lies.

    Args:
        path: Where results will be written.
        remedy: What to do instead.

    Raises:
        ConfigError: It is a folder, or a file of another kind.
    """
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; call the file {path}.json")
    if not path.exists():
        return
    with suppress(OSError, ValueError):
        document = parse_json(read_bytes(path))
        if isinstance(document, list) and all(isinstance(row, dict) and _is_result(row) for row in document):
            return
        rows = document.get("annotations") if isinstance(document, dict) and len(document) == 1 else None
        if isinstance(rows, list) and all(isinstance(row, dict) and _is_answer(row) for row in rows):
            return
    raise ConfigError(f"{path}: exists, and holds no results, so that something else would be lost; {remedy}")


def _is_result(row: dict[str, Any]) -> bool:
    """Tell a row of results from one of annotations, which states no confidence."""
    return "image_id" in row and "score" in row


def _is_answer(row: dict[str, Any]) -> bool:
    """Tell an entry of panoptic results from one of annotations, whose segments may be crowds."""
    segments = row.get("segments_info")
    return (
        "image_id" in row
        and isinstance(segments, list)
        and not any(isinstance(segment, dict) and "iscrowd" in segment for segment in segments)
    )


def _taken(source: Source, folder: Path) -> Iterable[Path]:
    """Yield the PNGs of a folder whose names are those of pictures of the images, as far as that is known."""
    there = {path.stem: path for path in sorted(folder.glob("*.png"))}
    if isinstance(source, Measurable) and there:
        name_of = FileNames()
        names = {name_of(key) for key in source.keys}
        yield from (path for stem, path in there.items() if stem in names)
    elif there:
        files = {PurePath(name).name for name in source.all_names() if name is not None}
        # The key of an image without labels is its path, behind the number of its set where there are several.
        last = {stem: PurePath(unquote(stem)).name for stem in there}
        yield from (path for stem, path in there.items() if {last[stem], last[stem].partition(":")[2]} & files)


def _place(path: str | Path) -> tuple[int, int] | None:
    """Return what tells a file from all others, whatever links lead to it; `None` where there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116  # a million times
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino
