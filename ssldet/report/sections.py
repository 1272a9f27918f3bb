"""The parts of a page: content of a report without its layout."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows under a header. Cells are text or numbers; a number that is missing or not finite is shown as `n/a`.

    Attributes:
        columns: The header; empty for a list of names and values.
        rows: Rows with one cell per column.
    """

    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image with its caption.

    Attributes:
        image: Pixels, or a PNG or JPEG file; either way only pixels reach the page.
        caption: Shown below, and read out in place of the image.
    """

    image: Image.Image | Path
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading and the content below it, in this order; everything but the heading may be empty.

    Attributes:
        heading: Title of the section.
        text: Paragraphs, separated by blank lines.
        code: Commands, a recipe or a citation, shown line by line.
        table: A table, or `None`.
        svg: Title -> drawing, as `report.curves` makes them.
        pictures: Images; wide ones fill the width of the page.
    """

    heading: str
    text: str = ""
    code: str = ""
    table: Table | None = None
    svg: Mapping[str, str] = field(default_factory=dict)
    pictures: Sequence[Picture] = ()
