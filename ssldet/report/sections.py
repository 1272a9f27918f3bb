"""The parts of a page: what a report may hold, without a word on how it looks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows under a head. Cells are text or numbers; a number that is missing or not finite is shown as `n/a`.

    Attributes:
        columns: The head; empty for a list of names and values.
        rows: As many cells each as there are columns.
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
    """A heading and what stands below it, in this order; everything but the heading may be left out.

    Attributes:
        heading: The heading.
        text: Paragraphs, separated by blank lines.
        code: Commands, a recipe or a citation, kept line by line.
        table: A table.
        svg: Title -> drawing, as `report.curves` makes them.
        pictures: Images, wide ones over the whole page.
    """

    heading: str
    text: str = ""
    code: str = ""
    table: Table | None = None
    svg: Mapping[str, str] = field(default_factory=dict)
    pictures: Sequence[Picture] = ()
