"""Sections -> one HTML file that can be sent: no script, no link to anywhere, pictures inside.

Everything that a file, a class or a message may hold is escaped; absolute paths are shortened and pictures are written
anew from their pixels, so that a page tells nothing of the machine, and nothing of the camera, that it came from.
"""

import base64
import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup
from PIL import Image

from ssldet.report.record import read_record
from ssldet.report.sections import Picture, Section, Table
from ssldet.report.story import key_figures, sections_of
from ssldet.report.wording import MISSING, number, printable, without_places

__all__ = ["Picture", "Section", "Table", "write_page", "write_report"]

MOST_PICTURES = 24
"""Pictures on one page; further ones are counted, not shown."""

PICTURE_SIDE = 1400
"""Longest side of a picture on a page, in pixels."""

LARGEST_PICTURE = 64_000_000
"""Picture files with more pixels are not opened."""

_STATES = {"finished": "good", "failed": "bad", "diverged": "bad", "stopped": "so"}


def write_report(folder: Path, *, citation: str = "") -> Path:
    """Write `report.html` into a run folder, whatever state the run is in.

    Args:
        folder: A run folder.
        citation: Text to cite, such as the BibTeX entry of the task.

    Returns:
        The page.
    """
    record = read_record(folder)
    return write_page(
        folder / "report.html",
        record.name,
        sections_of(record, folder, citation),
        status=str(record.status.get("status", "unknown")),
        figures=key_figures(record),
    )


def write_page(
    path: Path,
    title: str,
    sections: Sequence[Section],
    *,
    status: str = "",
    figures: Sequence[tuple[str, str]] = (),
    lead: str = "",
) -> Path:
    """Write a page; a page that was there before is replaced whole or not at all.

    Args:
        path: The HTML file.
        title: Its title.
        sections: What stands on it, in order.
        status: A word on the state of things, shown as a badge.
        figures: Name and value of the few numbers that stand at the top.
        lead: A sentence or two below the title.

    Returns:
        `path`.
    """
    room = MOST_PICTURES
    bodies = []
    for section in sections:
        shown = [_picture(picture) for picture in section.pictures[:room]]
        room -= len(shown)
        bodies.append({"section": section, "pictures": shown, "left_out": len(section.pictures) - len(shown)})
    text = _template().render(
        title=title,
        lead=_paragraphs(lead),
        status=status,
        state=_STATES.get(status, "open"),
        figures=figures,
        bodies=bodies,
        paragraphs=_paragraphs,
        is_number=_is_number,
        drawing=_drawing,
    )
    _replace(path, text)
    return path


@cache
def _template() -> Template:
    # Escaping by file ending would miss this name, so it is switched on for all.
    rules = Environment(
        autoescape=True, finalize=_shown, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return rules.from_string(files("ssldet.report").joinpath("page.html.j2").read_text(encoding="utf-8"))


def _shown(value: Any) -> Any:
    """Turn any value of the template into text that is safe to show; the template escapes it afterwards."""
    if isinstance(value, Markup):
        return value
    if value is None or _is_number(value):
        return number(value)
    return printable(without_places(str(value)))


def _is_number(value: Any) -> bool:
    """Say whether a table cell is a number, present or missing, and so stands at the right."""
    return value is None or value == MISSING or (isinstance(value, int | float) and not isinstance(value, bool))


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in text.split("\n\n") if part.strip()]


def _picture(picture: Picture) -> Mapping[str, Any]:
    """Write a picture anew from its pixels; one that can't be read keeps its caption."""
    try:
        uri = _uri("image/jpeg", _jpeg(picture.image))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        uri = None
    return {"uri": uri, "caption": picture.caption}


def _jpeg(image: Image.Image | Path) -> bytes:
    if isinstance(image, Path):
        with Image.open(image, formats=("PNG", "JPEG")) as opened:
            if opened.width * opened.height > LARGEST_PICTURE:
                raise ValueError(image.name)
            return _jpeg(opened.convert("RGB"))
    # Pasting onto fresh pixels leaves behind whatever else the image carried.
    clean = Image.new("RGB", image.size, (255, 255, 255))
    clean.paste(image.convert("RGB"))
    clean.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    buffer = io.BytesIO()
    clean.save(buffer, format="JPEG", quality=86, subsampling=0, optimize=True)
    return buffer.getvalue()


def _drawing(svg: str) -> Markup:
    # As an image a drawing can run nothing and its names can't clash with those of another.
    return _uri("image/svg+xml", printable(svg).encode())


def _uri(kind: str, data: bytes) -> Markup:
    return Markup("data:{};base64,{}").format(kind, base64.b64encode(data).decode())


def _replace(path: Path, text: str) -> None:
    """Write beside the file, then move over it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
