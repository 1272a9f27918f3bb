"""Findings, images -> small square pictures of what was found, missed and falsely detected.

A solid frame is a detection, a dashed one an object. The pictures hold pixels only: no EXIF, no comments.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from ssldet.findings import Example, Findings
from ssldet.report.bands import seen
from ssldet.types import Pixels

FOLDER = "examples"
"""Folder of the pictures, inside that of the run."""
SIDE = 240
"""Side of a picture in pixels."""
CONTEXT = 1.7
"""Side of the part that is shown, in longest sides of the boxes."""
LEAST_SIDE = 24
"""Fewest pixels of the image that are shown; fewer could not be recognised."""
COLOURS = {"found": (52, 199, 123), "missed": (240, 178, 41), "false": (240, 84, 84)}
"""Outcome -> colour of its frames."""

_EDGE, _OUTSIDE, _WHITE = (20, 20, 22), (190, 190, 194), (255, 255, 255)

Box = tuple[float, float, float, float]


def with_pictures(findings: Findings, image_of: Callable[[str], Pixels | None], folder: Path) -> dict[str, Any]:
    """Draw the examples into the run's folder of examples; return the findings as plain values that name the files.

    Args:
        findings: What an evaluation found.
        image_of: Key of an image -> its pixels; `None` where it can't be read.
        folder: The run folder.
    """
    place = folder / FOLDER
    for old in place.glob("*.png"):
        old.unlink()
    return {**findings.figures, "examples": list(_drawn(findings, image_of, place))}


def _drawn(findings: Findings, image_of: Callable[[str], Pixels | None], place: Path) -> Iterator[dict[str, Any]]:
    for number, example in enumerate(findings.examples):
        pixels = image_of(example.key)
        name = f"{number:02d}-{example.outcome}.png"
        if pixels is not None:
            place.mkdir(exist_ok=True)
            draw_example(pixels, example).save(place / name)
        yield example.to_json() | ({} if pixels is None else {"picture": name})


def draw_example(image: Pixels, example: Example) -> Image.Image:
    """Cut out the place of an example with its surroundings, as a square, and frame the detection and the object.

    Args:
        image: Pixels of the image on disk.
        example: Boxes in pixels of the image.
    """
    boxes = [box for box in (example.object, example.detected) if box is not None]
    left, top, side = _window(boxes)
    scale = SIDE / side
    image = seen(image)
    height, width = image.shape[1:]
    picture = Image.new("RGB", (SIDE, SIDE), _OUTSIDE)
    inside = max(0, left), max(0, top), min(width, left + side), min(height, top + side)
    if inside[0] < inside[2] and inside[1] < inside[3]:
        pixels = image[:, inside[1] : inside[3], inside[0] : inside[2]].permute(1, 2, 0).contiguous().cpu().numpy()
        size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
        part = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
        picture.paste(part, (round((inside[0] - left) * scale), round((inside[1] - top) * scale)))
    pen = ImageDraw.Draw(picture)
    shift = left, top, left, top
    placed = [None if box is None else _scaled(box, shift, scale) for box in (example.object, example.detected)]
    if placed[1] is not None:
        _frame(pen, placed[1], COLOURS[example.outcome])
    if placed[0] is not None:
        _dash(pen, placed[0], COLOURS["missed"] if example.outcome == "missed" else _WHITE)
    return picture


def _window(boxes: list[Box]) -> tuple[int, int, int]:
    """Return left, top and side of the square around some boxes, in whole pixels."""
    low = [min(box[side] for box in boxes) for side in (0, 1)]
    high = [max(box[side] for box in boxes) for side in (2, 3)]
    side = max(LEAST_SIDE, math.ceil(CONTEXT * max(high[0] - low[0], high[1] - low[1])))
    return round((low[0] + high[0] - side) / 2), round((low[1] + high[1] - side) / 2), side


def _scaled(box: Box, shift: tuple[int, int, int, int], scale: float) -> Box:
    left, top, right, bottom = ((edge - by) * scale for edge, by in zip(box, shift, strict=True))
    return left, top, max(left + 1, right), max(top + 1, bottom)


def _frame(pen: ImageDraw.ImageDraw, box: Box, colour: tuple[int, int, int]) -> None:
    left, top, right, bottom = box
    pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=_EDGE, width=5)
    pen.rectangle(box, outline=colour, width=3)


def _dash(pen: ImageDraw.ImageDraw, box: Box, colour: tuple[int, int, int], step: int = 7) -> None:
    left, top, right, bottom = box
    pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=_EDGE, width=4)
    for start in range(round(left), round(right), 2 * step):
        for y in (top, bottom):
            pen.line((start, y, min(start + step, right), y), fill=colour, width=2)
    for start in range(round(top), round(bottom), 2 * step):
        for x in (left, right):
            pen.line((x, start, x, min(start + step, bottom)), fill=colour, width=2)
