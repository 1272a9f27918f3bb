"""Sections -> one self-contained HTML file: no script, no links, pictures embedded.

All text is escaped; absolute paths are shortened and pictures are re-encoded from their pixels, so that a page reveals
neither the machine nor the camera of its data.
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

from markupsafe import Markup
from PIL import Image

from ssldet.regular import open_regular
from ssldet.report.record import read_record
from ssldet.report.sections import Picture, Section, Table
from ssldet.report.story import key_figures, sections_of, verdict_on
from ssldet.report.verdict import Verdict
from ssldet.report.wording import ABSENT, MISSING, number, printable, without_places

__all__ = ["Picture", "Section", "Table", "write_page", "write_report"]

MOST_PICTURES = 24
"""Largest number of pictures on one page; further ones are counted, not shown."""

PICTURE_SIDE = 1400
"""Longest side of a picture on a page, in pixels."""

LARGEST_PICTURE = 64_000_000
"""Limit of pixels; larger picture files are not opened."""

NO_VERDICT = Verdict()

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
        verdict=verdict_on(record, folder),
    )


def write_page(
    path: Path,
    title: str,
    sections: Sequence[Section],
    *,
    status: str = "",
    figures: Sequence[tuple[str, str]] = (),
    lead: str = "",
    verdict: Verdict = NO_VERDICT,
) -> Path:
    """Write a page; an existing page is replaced atomically.

    Args:
        path: The HTML file.
        title: Title of the page.
        sections: Sections of the page, in order.
        status: State of the run in one word, shown as a badge.
        figures: Name and value of the key figures at the top.
        lead: A sentence or two below the title.
        verdict: How good it is, in words.

    Returns:
        The HTML file.
    """
    remaining = MOST_PICTURES
    bodies = []
    for section in sections:
        shown = [_picture(picture) for picture in section.pictures[:remaining]]
        remaining -= len(shown)
        left_out = len(section.pictures) - len(shown)
        tiles = [(group, [_picture(picture) for picture in group.pictures]) for group in section.galleries]
        bodies.append({"section": section, "pictures": shown, "left_out": left_out, "galleries": tiles})
    text = _template().render(
        title=title,
        lead=_paragraphs(lead),
        status=status,
        state=_STATES.get(status, "open"),
        figures=[*figures[:1], *verdict.comparisons, *figures[1:]],
        verdict=verdict,
        bodies=bodies,
        paragraphs=_paragraphs,
        is_number=_is_number,
        all_numbers=_all_numbers,
        drawing=_drawing,
        percent=_percent,
    )
    _replace(path, text)
    return path


@cache
def _template() -> Any:
    # Escaping by file extension would miss this name, so it is switched on for all.
    from jinja2 import Environment, StrictUndefined

    rules = Environment(
        autoescape=True, finalize=_shown, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return rules.from_string(files("ssldet.report").joinpath("page.html.j2").read_text(encoding="utf-8"))


def _shown(value: Any) -> Any:
    """Return printable text for a value of the template, which escapes it afterwards."""
    if isinstance(value, Markup):
        return value
    if not isinstance(value, str) and _is_number(value):
        return number(value)
    return printable(without_places(str(value)))


def _is_number(value: Any) -> bool:
    """Tell whether a table cell is a number, or a missing one, and is aligned to the right."""
    return value is None or _is_shown_number(value) or (isinstance(value, int | float) and not isinstance(value, bool))


def _all_numbers(rows: Sequence[Sequence[Any]], column: int) -> bool:
    """Tell whether a column of a table holds numbers and nothing else, so that its name is aligned to the right too."""
    return all(_is_number(row[column]) for row in rows if column < len(row))


def _is_shown_number(value: Any) -> bool:
    """Tell whether text is what `ssldet.report.wording` makes of a number."""
    return isinstance(value, str) and (value in {MISSING, ABSENT} or value.replace(".", "", 1).isdecimal())


def _percent(share: float) -> str:
    """Return the length of a bar for a style sheet."""
    return f"{100 * min(1.0, max(0.0, share)):.1f}"


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in text.split("\n\n") if part.strip()]


def _picture(picture: Picture) -> Mapping[str, Any]:
    """Re-encode a picture from its pixels; one that can't be read keeps its caption."""
    try:
        uri = _uri("image/jpeg", _jpeg(picture.image))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        uri = None
    return {"uri": uri, "caption": picture.caption}


def _jpeg(image: Image.Image | Path) -> bytes:
    if isinstance(image, Path):
        with open_regular(image) as file, Image.open(file, formats=("PNG", "JPEG")) as opened:
            if opened.width * opened.height > LARGEST_PICTURE:
                raise ValueError(image.name)
            return _jpeg(opened.convert("RGB"))
    # Pasting onto a new image drops everything but the pixels.
    clean = Image.new("RGB", image.size, (255, 255, 255))
    clean.paste(image.convert("RGB"))
    clean.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    buffer = io.BytesIO()
    clean.save(buffer, format="JPEG", quality=86, subsampling=0, optimize=True)
    return buffer.getvalue()


def _drawing(svg: str) -> Markup:
    # As an image, a drawing can run no script, and its ids can't clash with those of another.
    return _uri("image/svg+xml", printable(svg).encode())


def _uri(kind: str, data: bytes) -> Markup:
    return Markup("data:{};base64,{}").format(kind, base64.b64encode(data).decode())


def _replace(path: Path, text: str) -> None:
    """Write a temporary file beside the page, then replace the page."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
