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
class Bar:
    """One row of a bar chart.

    Attributes:
        name: Shown before the bar.
        share: Length of the bar, 0 to 1.
        value: Shown behind the bar.
        note: Shown below the name, smaller; may be empty.
    """

    name: str
    share: float
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """Small square pictures side by side.

    Attributes:
        heading: Title, such as what the pictures have in common.
        kind: `found`, `missed` or `false`, which decides the colour of the title; or empty.
        pictures: The pictures in order.
        empty: Said where there are no pictures.
    """

    heading: str
    kind: str = ""
    pictures: Sequence[Picture] = ()
    empty: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading and the content below it, in this order; everything but the heading may be empty.

    Attributes:
        heading: Title of the section.
        text: Paragraphs, separated by blank lines.
        code: Commands, a recipe or a citation, shown line by line.
        bars: A bar chart.
        galleries: Groups of small pictures.
        table: A table, or `None`.
        svg: Title -> drawing, as `report.curves` makes them.
        pictures: Images; wide ones fill the width of the page.
    """

    heading: str
    text: str = ""
    code: str = ""
    bars: Sequence[Bar] = ()
    galleries: Sequence[Gallery] = ()
    table: Table | None = None
    svg: Mapping[str, str] = field(default_factory=dict)
    pictures: Sequence[Picture] = ()
