"""a seed -> labelled images on disk: textured shapes on clutter, a whole data set that ships as arithmetic.

Texture and colours are drawn anew for every object, so that a patch of an object can be found again by how it looks.
Classes differ by outline, which a small detector is slow to learn, and if wanted by a band of hues as well.
"""

import colorsys
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw

from ssldet.chance import seed_of
from ssldet.data.segments import write_segments
from ssldet.errors import ConfigError, suggest

Grid = Float[np.ndarray, "H W"]
Colour = Float[np.ndarray, "3"]

STUFF: dict[str, Colour] = {"sky": np.array([110.0, 160.0, 225.0]), "ground": np.array([130.0, 95.0, 60.0])}
"""Stuff class name -> the colour that its region of the background tends to."""

OUTLINES: dict[str, Callable[[Grid, Grid], Bool[np.ndarray, "H W"]]] = {
    "circle": lambda u, v: u * u + v * v < 0.75,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) < 0.72,
    "triangle": lambda u, v: np.maximum(v - 0.5, 0.866 * abs(u) - 0.5 * v - 0.5) < 0,
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) < 0.3) & (np.maximum(abs(u), abs(v)) < 0.95),
    "ring": lambda u, v: abs(np.hypot(u, v) - 0.7) < 0.24,
    "star": lambda u, v: _star(u, v) < 0,
}
"""Class name -> is the point (u, v) inside? Shapes fill the unit circle."""

TEXTURES: tuple[Callable[[Grid, Grid, float], Grid], ...] = (
    lambda u, v, f: np.sin(f * u),
    lambda u, v, f: np.sin(f * u) * np.sin(f * v),
    lambda u, v, f: np.sin(f * np.hypot(u, v)),
    lambda u, v, f: np.cos(f * u) + np.cos(f * v) - 0.8,
    lambda u, v, f: np.sin(f * u + 2.0 * np.sin(0.5 * f * v)),
)
"""Stripes, checks, rings, dots, waves: positive is one colour, negative the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One drawn image.

    Attributes:
        image: Pixels, RGB.
        boxes: Absolute xyxy around the visible pixels of each object.
        labels: Class index of each object.
        areas: Number of visible pixels of each object.
        segments: Which object each pixel shows, counted from 1; 0 where none does.
        stuff: Which of `STUFF` each pixel shows, -1 for neither; `None` where the background was not split.
    """

    image: UInt8[np.ndarray, "H W 3"]
    boxes: Int[np.ndarray, "T 4"]
    labels: Int[np.ndarray, " T"]
    areas: Int[np.ndarray, " T"]
    segments: Int[np.ndarray, "H W"]
    stuff: Int[np.ndarray, "H W"] | None = None


def draw_scene(
    index: int,
    *,
    size: int = 64,
    classes: Sequence[str] = ("circle", "square", "triangle"),
    objects: tuple[int, int] = (1, 3),
    object_scale: tuple[float, float] = (0.25, 0.5),
    hues: bool = False,
    stuff: bool = False,
    seed: int = 0,
) -> Scene:
    """Draw image number `index`; the same arguments give the same pixels in any process.

    Args:
        index: Number of the image within its set.
        size: Height and width in pixels.
        classes: Names out of `OUTLINES`.
        objects: Fewest and most objects of an image, ends included.
        object_scale: Smallest and largest diameter of an object as a share of `size`.
        hues: Paint each class in hues of its own; else only the outline tells classes apart.
        stuff: Split the background into sky and ground, or make it one of them.
        seed: Another seed is another set.
    """
    chance = np.random.default_rng(seed_of(seed, "shapes", index))
    pixels = _clutter(size, chance)
    behind = _split(pixels, np.random.default_rng(seed_of(seed, "stuff", index))) if stuff else None
    owner = np.full((size, size), -1, dtype=np.int16)
    count = int(chance.integers(objects[0], objects[1] + 1))
    labels = chance.integers(len(classes), size=count)
    for number, (row, column, radius) in enumerate(_places(count, size, object_scale, chance)):
        colours = _hued(labels[number] / len(classes), chance) if hues else _any_two(chance)
        _draw(pixels, owner, number, OUTLINES[classes[labels[number]]], row, column, radius, colours, chance)
    pixels += chance.normal(0, 4, pixels.shape)
    visible = np.flatnonzero([(owner == number).any() for number in range(count)])
    segments = (owner[..., None] == visible) @ np.arange(1, len(visible) + 1)
    return Scene(
        image=pixels.clip(0, 255).astype(np.uint8),
        boxes=np.array([_box(owner == number) for number in visible], dtype=np.int64).reshape(-1, 4),
        labels=labels[visible],
        areas=np.array([(owner == number).sum() for number in visible], dtype=np.int64),
        segments=segments,
        stuff=None if behind is None else np.where(segments, -1, behind),
    )


def write_shapes(
    folder: Path,
    *,
    images: int,
    size: int = 64,
    classes: Sequence[str] = ("circle", "square", "triangle"),
    objects: tuple[int, int] = (1, 3),
    object_scale: tuple[float, float] = (0.25, 0.5),
    hues: bool = False,
    stuff: bool = False,
    seed: int = 0,
) -> Path:
    """Write a set as `images/*.jpg` and an ordinary COCO file `instances.json`, its masks included.

    A longer set with the same seed begins with the images of the shorter one.

    Args:
        folder: Where to write; made if absent.
        images: Number of images.
        size: Height and width in pixels.
        classes: Names out of `OUTLINES`; their order is the order of the labels.
        objects: Fewest and most objects of an image, ends included.
        object_scale: Smallest and largest diameter of an object as a share of `size`.
        hues: Paint each class in hues of its own; else only the outline tells classes apart.
        stuff: Split the background into sky and ground, and write COCO's panoptic `panoptic.json` with the folder
            `panoptic` too.
        seed: Another seed is another set: give training and validation different ones.

    Returns:
        The path of `instances.json`.

    Raises:
        ConfigError: A class that doesn't exist.
    """
    for name in classes:
        if name not in OUTLINES:
            raise ConfigError(f"no shape {name!r}{suggest(name, OUTLINES)}; there are {', '.join(OUTLINES)}")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    told: list[dict[str, Any]] = []
    if stuff:
        (folder / "panoptic").mkdir(exist_ok=True)
    for index in range(images):
        scene = draw_scene(
            index,
            size=size,
            classes=classes,
            objects=objects,
            object_scale=object_scale,
            hues=hues,
            stuff=stuff,
            seed=seed,
        )
        name = f"{index:06d}.jpg"
        # No chroma subsampling: it would smear textures that are a few pixels wide.
        Image.fromarray(scene.image).save(folder / "images" / name, quality=95, subsampling=0)
        records.append({"id": index + 1, "file_name": name, "height": size, "width": size})
        annotations += _annotations(scene, image_id=index + 1, first_id=len(annotations) + 1)
        if stuff:
            told.append(_panoptic(scene, folder / "panoptic" / f"{index:06d}.png", index + 1, len(classes)))
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(classes)]
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": records, "annotations": annotations, "categories": categories}))
    if stuff:
        kinds = [{**row, "isthing": 1} for row in categories]
        kinds += [{"id": len(classes) + 1 + label, "name": name, "isthing": 0} for label, name in enumerate(STUFF)]
        document = {"images": records, "annotations": told, "categories": kinds}
        (folder / "panoptic.json").write_text(json.dumps(document))
    return path


def _annotations(scene: Scene, *, image_id: int, first_id: int) -> list[dict[str, Any]]:
    rows = zip(scene.boxes.tolist(), scene.labels.tolist(), scene.areas.tolist(), strict=True)
    return [
        {
            "id": first_id + number,
            "image_id": image_id,
            "category_id": label + 1,
            "bbox": [left, top, right - left, bottom - top],
            "area": area,
            "iscrowd": 0,
            "segmentation": _run_lengths(scene.segments == number + 1),
        }
        for number, ((left, top, right, bottom), label, area) in enumerate(rows)
    ]


def _run_lengths(mask: Bool[np.ndarray, "H W"]) -> dict[str, Any]:
    """Return a mask as COCO's uncompressed run lengths: down the columns, beginning with the pixels outside."""
    pixels = np.concatenate([[False], mask.ravel(order="F"), [False]])
    changes = np.flatnonzero(pixels[1:] != pixels[:-1])
    return {"size": list(mask.shape), "counts": np.diff([0, *changes, mask.size]).tolist()}


def _panoptic(scene: Scene, png: Path, image_id: int, things: int) -> dict[str, Any]:
    """Write the PNG of a scene whose background was split, and return its entry in the panoptic file."""
    assert scene.stuff is not None
    ids, labels = scene.segments.copy(), scene.labels.tolist()
    for label in np.unique(scene.stuff[scene.stuff >= 0]).tolist():
        labels.append(things + label)
        ids[scene.stuff == label] = len(labels)
    write_segments(torch.from_numpy(ids), png)
    segments = []
    for number, label in enumerate(labels, start=1):
        left, top, right, bottom = _box(ids == number)
        segment = {"id": number, "category_id": label + 1, "area": int((ids == number).sum()), "iscrowd": 0}
        segments.append(segment | {"bbox": [left, top, right - left, bottom - top]})
    return {"image_id": image_id, "file_name": png.name, "segments_info": segments}


def _clutter(size: int, chance: np.random.Generator) -> Float[np.ndarray, "H W 3"]:
    """Return a background: noise at three scales over a gradient, crossed by lines and blots."""
    coarse = chance.uniform(20, 235, (3, 3, 3)).astype(np.uint8)
    canvas = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    for cells, strength in ((size // 8 + 1, 0.35), (size // 3 + 1, 0.2)):
        noise = chance.uniform(0, 255, (cells, cells, 3)).astype(np.uint8)
        canvas = Image.blend(canvas, Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC), strength)
    pen = ImageDraw.Draw(canvas)
    for _ in range(int(chance.integers(3, 9))):
        ends = chance.uniform(-0.1 * size, 1.1 * size, 4).tolist()
        pen.line(ends, fill=tuple(chance.integers(0, 256, 3).tolist()), width=int(chance.integers(1, 2 + size // 40)))
    for _ in range(int(chance.integers(2, 6))):
        column, row, radius = (chance.uniform(0, 1, 3) * (size, size, 0.06 * size)).tolist()
        pen.ellipse(
            (column - radius, row - radius, column + radius, row + radius),
            fill=tuple(chance.integers(0, 256, 3).tolist()),
        )
    return np.asarray(canvas, dtype=np.float64).copy()


def _split(pixels: Float[np.ndarray, "H W 3"], chance: np.random.Generator) -> Int[np.ndarray, "H W"]:
    """Paint sky over ground, parted by a slanted line, or one of them alone; return which is where."""
    size = len(pixels)
    middle, slope = chance.uniform(0.25, 0.75) * size, chance.uniform(-0.4, 0.4)
    rows, columns = np.ogrid[:size, :size]
    below = (rows > middle + slope * (columns - size / 2)).astype(np.int64)
    if chance.uniform() < 0.25:
        below[:] = chance.integers(2)
    pixels += 0.7 * (np.stack(list(STUFF.values()))[below] - pixels)
    return below


def _places(
    count: int, size: int, scale: tuple[float, float], chance: np.random.Generator
) -> list[tuple[float, float, float]]:
    """Return (row, column, radius) of each object: wholly inside the image, as far apart as a few tries allow."""
    chosen: list[tuple[float, float, float]] = []
    for radius in 0.5 * size * chance.uniform(*scale, count):
        tries = chance.uniform(radius, size - radius, (12, 2))
        gaps = [
            min((math.hypot(row - r, column - c) - radius - other for r, c, other in chosen), default=0.0)
            for row, column in tries
        ]
        row, column = tries[int(np.argmax(np.minimum(gaps, 0)))]
        chosen.append((float(row), float(column), float(radius)))
    return chosen


def _draw(
    pixels: Float[np.ndarray, "H W 3"],
    owner: Int[np.ndarray, "H W"],
    number: int,
    outline: Callable[[Grid, Grid], Bool[np.ndarray, "H W"]],
    row: float,
    column: float,
    radius: float,
    colours: tuple[Colour, Colour],
    chance: np.random.Generator,
) -> None:
    """Paint one object over what is there, and write its number into the map of owners."""
    top, left = max(int(row - radius), 0), max(int(column - radius), 0)
    window = np.s_[top : int(row + radius) + 2, left : int(column + radius) + 2]
    rows, columns = np.ogrid[: owner[window].shape[0], : owner[window].shape[1]]
    y, x = (rows + top + 0.5 - row) / radius, (columns + left + 0.5 - column) / radius
    angle = chance.uniform(0, 2 * math.pi)
    u, v = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
    inside = outline(u, v)
    # A period of at least four pixels survives JPEG and the first stride of a backbone.
    frequency = min(chance.uniform(5, 14), 0.5 * math.pi * radius)
    texture = TEXTURES[int(chance.integers(len(TEXTURES)))]
    light = texture(u + chance.uniform(-1, 1), v + chance.uniform(-1, 1), frequency) > 0
    painted = np.where(light[..., None], *colours) * (1 + 0.15 * x[..., None])
    pixels[window][inside] = painted[inside]
    owner[window][inside] = number


def _any_two(chance: np.random.Generator) -> tuple[Colour, Colour]:
    """Return two colours that are well apart."""
    bright, dark = chance.uniform(0, 256, 3), chance.uniform(0, 256, 3)
    while abs(bright - dark).sum() < 200:
        dark = chance.uniform(0, 256, 3)
    return bright, dark


def _hued(hue: float, chance: np.random.Generator) -> tuple[Colour, Colour]:
    """Return a light and a dark colour of about this hue, which counts once around the circle from 0 to 1."""
    light, dark = (
        colorsys.hsv_to_rgb((hue + chance.uniform(-0.07, 0.07)) % 1, chance.uniform(0.6, 1), value)
        for value in (chance.uniform(0.75, 1), chance.uniform(0.2, 0.45))
    )
    return 255 * np.array(light), 255 * np.array(dark)


def _star(u: Grid, v: Grid) -> Grid:
    """Return on which side of its edge a point of a five-pointed star lies: negative is inside."""
    sector = 2 * math.pi / 5
    angle = abs((np.arctan2(v, u) + sector / 2) % sector - sector / 2)
    radius = np.hypot(u, v)
    x, y = radius * np.cos(angle), radius * np.sin(angle)
    inner_x, inner_y = 0.45 * math.cos(sector / 2), 0.45 * math.sin(sector / 2)
    return np.asarray((x - 1) * inner_y - y * (inner_x - 1))


def _box(mask: Bool[np.ndarray, "H W"]) -> tuple[int, int, int, int]:
    """Return absolute xyxy around the true pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
