"""Pixels and boxes -> PIL.Image: query patches, detections and true boxes, drawn for a person to check.

A solid frame is a detection, a dashed one a true box. Small images are enlarged until the text on them can be read;
boxes are always in pixels of the image that is passed. The pictures hold pixels only: no EXIF, no comments.
"""

import colorsys
import importlib.util
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ssldet.boxes import pairwise_iou
from ssldet.report.bands import seen
from ssldet.report.wording import one_line
from ssldet.types import Detections, ManyPatches, Pixels, Segmentation

LONG_SIDE = 720
"""Images with a shorter long side are enlarged to this many pixels."""

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]

_WHITE, _INK, _GREY = (255, 255, 255), (24, 24, 27), (113, 113, 122)
_PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (213, 94, 0),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (204, 121, 167),
    (148, 203, 60),
    (136, 86, 217),
    (110, 230, 220),
)


def colour_of(label: int) -> Colour:
    """Return the colour of a label, the same in every picture; the first ten also differ for colour-blind readers.

    Args:
        label: Class index or number of a patch, from 0.
    """
    if 0 <= label < len(_PALETTE):
        return _PALETTE[label]
    # Steps of the golden ratio keep any number of further hues apart.
    red, green, blue = colorsys.hls_to_rgb(label * 0.618034 % 1, 0.42 + 0.11 * (label % 3), 0.75)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_detections(
    image: Pixels,
    detections: Detections,
    *,
    classes: Sequence[str] = (),
    threshold: float | None = 0.5,
    truth_boxes_xyxy: Float[Tensor, "T 4"] | None = None,
) -> Image.Image:
    """Draw detections, each box with its name and confidence.

    Where boxes are crowded, more confident captions are placed first, and one without a free place is left out.

    Args:
        image: Pixels, RGB.
        detections: Boxes in pixels of `image`; those that are not finite are left out.
        classes: Names in the order of the labels; a label without a name is shown by its number.
        threshold: Least confidence that is drawn; `None` draws all.
        truth_boxes_xyxy: True boxes in pixels of `image`, drawn dashed and white.
    """
    shown = _finite(detections if threshold is None else detections.above(threshold))
    drawing = _Drawing(image, crowded=len(shown) > 12)
    for box in _rows(truth_boxes_xyxy):
        drawing.dash(box, _WHITE)
    faint_first = [int(index) for index in shown.scores.argsort(stable=True)]
    boxes, labels = _rows(shown.boxes), [int(label) for label in shown.labels]
    for index in faint_first:
        drawing.frame(boxes[index], colour_of(labels[index]))
    for index in reversed(faint_first):
        label = labels[index]
        name = classes[label] if 0 <= label < len(classes) else str(label)
        text = f"{one_line(name, 28)} {float(shown.scores[index]):.2f}"
        drawing.caption(boxes[index], text, colour_of(label), always=False)
    return drawing.picture


def draw_problem(
    image: Pixels,
    patches: ManyPatches,
    boxes_xyxy: Float[Tensor, "N 4"],
    names: Sequence[str] = (),
) -> Image.Image:
    """Draw the problem of a task: query patches in a strip, and their places in the image, or boxes alone.

    Args:
        image: Pixels, RGB, as the detector sees them.
        patches: Query patches.
        boxes_xyxy: Where each patch was cut, in pixels of `image`; no boxes for crops, which are not to be found.
        names: What each box is called; without names, boxes are numbered like the patches.
    """
    drawing = _Drawing(image)
    boxes = _rows(boxes_xyxy)
    for number, box in enumerate(boxes):
        drawing.frame(box, colour_of(number))
    for number, box in enumerate(boxes):
        drawing.caption(box, one_line(names[number], 28) if names else str(number + 1), colour_of(number))
    return _beside(drawing, patches, [""] * len(patches))


def draw_answers(
    image: Pixels,
    patches: ManyPatches,
    truth_xyxy: Float[Tensor, "T 4"],
    detections: Detections,
) -> Image.Image:
    """Draw the true boxes of query patches, dashed, and the most confident detection of each patch, solid.

    Args:
        image: Pixels, RGB.
        patches: Query patches.
        truth_xyxy: True box of each patch, in pixels of `image`; for a single patch any number of boxes.
        detections: Boxes in pixels of `image`; the label is the number of the patch.
    """
    drawing = _Drawing(image)
    truth, best = _rows(truth_xyxy), _best_of_each(_finite(detections), len(patches))
    for number, box in enumerate(truth):
        drawing.dash(box, colour_of(number))
    notes = []
    for number, answer in enumerate(best):
        if len(answer) == 0:
            notes.append("not found")
            continue
        true = truth_xyxy if len(patches) == 1 else truth_xyxy[number : number + 1]
        iou = max(pairwise_iou(answer.boxes, true.to(answer.boxes))[0].tolist(), default=0.0)
        notes.append(f"found {float(answer.scores[0]):.2f}\nIoU {iou:.2f}")
        drawing.frame(_rows(answer.boxes)[0], colour_of(number))
    for number, answer in enumerate(best):
        for place in (_rows(answer.boxes) or truth[number:])[:1]:
            drawing.caption(place, str(number + 1), colour_of(number))
    return _beside(drawing, patches, notes, legend="solid: found     dashed: true")


def draw_segmentation(image: Pixels, segmentation: Segmentation, *, classes: Sequence[str] = ()) -> Image.Image:
    """Draw a segmentation: each segment in the colour of its class, with an edge and its name.

    Pixels of no segment stay as they are.

    Args:
        image: Pixels, RGB.
        segmentation: Segments of the same image, in any resolution.
        classes: Names in the order of the labels; a label without a name is shown by its number.
    """
    drawing = _Drawing(image, crowded=len(segmentation.labels) > 12)
    rows, columns = segmentation.segments.shape
    across = (torch.arange(drawing.picture.width) * columns // drawing.picture.width).tolist()
    down = (torch.arange(drawing.picture.height) * rows // drawing.picture.height).tolist()
    shown = segmentation.segments.cpu()[down][:, across]
    labels = segmentation.labels.tolist()
    drawing.paint(shown, [colour_of(label) for label in labels])
    for number in torch.bincount(shown.flatten()).argsort(descending=True).tolist():
        if number and bool((shown == number).any()):
            label = labels[number - 1]
            name = classes[label] if 0 <= label < len(classes) else str(label)
            drawing.name(_deepest_point(shown == number), one_line(name, 28), colour_of(label))
    return drawing.picture


def contact_sheet(images: Sequence[Image.Image], columns: int = 3, gap: int = 12) -> Image.Image:
    """Arrange pictures in rows of equal width on white; each keeps its proportions.

    Args:
        images: Pictures of any size, at least one.
        columns: Pictures per row.
        gap: Pixels between and around them.
    """
    assert images, "a contact sheet needs a picture"
    columns = max(1, min(columns, len(images)))
    width = columns * min(LONG_SIDE, max(image.width for image in images)) + (columns + 1) * gap
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    heights: list[int] = []
    for row in rows:
        free = width - (len(row) + 1) * gap
        fitting = free / sum(image.width / image.height for image in row)
        # The few pictures of an incomplete last row would otherwise be enlarged too much.
        tallest = heights[-1] if heights and len(row) < columns else fitting
        heights.append(max(1, int(min(fitting, tallest))))
    sheet = Image.new("RGB", (width, sum(heights) + (len(rows) + 1) * gap), _WHITE)
    top = gap
    for row, height in zip(rows, heights, strict=True):
        left = gap
        for image in row:
            small = image.convert("RGB").resize((max(1, round(image.width * height / image.height)), height))
            sheet.paste(small, (left, top))
            left += small.width + gap
        top += height + gap
    return sheet


class _Drawing:
    """An image, enlarged if it is small, with frames and captions that do not cover one another."""

    def __init__(self, image: Pixels, *, crowded: bool = False) -> None:
        picture = Image.fromarray(seen(image).permute(1, 2, 0).contiguous().cpu().numpy())
        self.scale = max(1.0, LONG_SIDE / max(picture.size))
        if self.scale > 1:
            size = (max(1, round(picture.width * self.scale)), max(1, round(picture.height * self.scale)))
            picture = picture.resize(size, Image.Resampling.BICUBIC)
        self.picture = picture
        self.pen = ImageDraw.Draw(picture)
        long_side = max(picture.size)
        self.line = max(2 if crowded else 3, round(long_side / (360 if crowded else 240)))
        self.font = _font(max(12, round(long_side / 60)) if crowded else max(16, round(long_side / 44)))
        self.taken: list[Box] = []

    def paint(self, segments: Int[Tensor, "H W"], colours: Sequence[Colour]) -> None:
        """Tint the pixels of each segment, numbered from 1 on the picture's pixels, and draw edges between them."""
        tints = torch.tensor([_WHITE, *colours], dtype=torch.float32)[segments]
        pixels = torch.from_numpy(np.array(self.picture)).float()
        mixed = torch.where((segments > 0)[..., None], 0.5 * pixels + 0.5 * tints, pixels)
        edge = torch.zeros_like(segments, dtype=torch.bool)
        edge[1:] |= segments[1:] != segments[:-1]
        edge[:, 1:] |= segments[:, 1:] != segments[:, :-1]
        wide = F.max_pool2d(edge[None].float(), self.line // 2 * 2 + 1, stride=1, padding=self.line // 2)[0]
        mixed[wide > 0] = torch.tensor(_WHITE, dtype=torch.float32)
        self.picture.paste(Image.fromarray(mixed.round().to(torch.uint8).numpy()))

    def name(self, point: tuple[float, float], text: str, colour: Colour) -> None:
        """Write text on a coloured plate at or near a point of the picture, if there is a free place."""
        width, height = _extent(text, self.font)
        x, y = point[0] - width / 2, point[1] + height / 2
        place = (x / self.scale, y / self.scale, (x + width) / self.scale, (y + height) / self.scale)
        self.caption(place, text, colour, always=False)

    def frame(self, box: Box, colour: Colour) -> None:
        """Draw a solid frame with a thin dark edge, so that it shows on any background."""
        left, top, right, bottom = self._place(box)
        edge = (left - 1, top - 1, right + 1, bottom + 1)
        self.pen.rectangle(edge, outline=_INK, width=self.line + 2)
        self.pen.rectangle((left, top, right, bottom), outline=colour, width=self.line)

    def dash(self, box: Box, colour: Colour) -> None:
        """Draw a dashed frame, thinner than a solid one."""
        left, top, right, bottom = self._place(box)
        thin = max(2, self.line * 2 // 3)
        self.pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=_INK, width=thin + 2)
        step = 4 * self.line
        for start in range(round(left), round(right), 2 * step):
            end = min(start + step, right)
            self.pen.rectangle((start, top, end, top + thin - 1), fill=colour)
            self.pen.rectangle((start, bottom - thin + 1, end, bottom), fill=colour)
        for start in range(round(top), round(bottom), 2 * step):
            end = min(start + step, bottom)
            self.pen.rectangle((left, start, left + thin - 1, end), fill=colour)
            self.pen.rectangle((right - thin + 1, start, right, end), fill=colour)

    def caption(self, box: Box, text: str, colour: Colour, *, always: bool = True) -> None:
        """Write text on a coloured plate at the first corner of the box without another caption."""
        left, top, right, bottom = self._place(box)
        width, height = _extent(text, self.font)
        width, height = width + self.font.size * 0.6, height + self.font.size * 0.3
        corners = [(x, y) for y in (top - height, top, bottom - height, bottom) for x in (left, right - width)]
        plates = [self._inside((x, y, x + width, y + height)) for x, y in corners]
        plate = next((plate for plate in plates if not any(_touch(plate, other) for other in self.taken)), None)
        if plate is None and not always:
            return
        plate = plate or plates[0]
        self.taken.append(plate)
        self.pen.rectangle(plate, fill=colour, outline=_INK)
        middle = ((plate[0] + plate[2]) / 2, (plate[1] + plate[3]) / 2)
        self.pen.text(middle, text, font=self.font, fill=_readable_on(colour), anchor="mm")

    def _place(self, box: Box) -> Box:
        """Return a box in pixels of the picture, with ordered edges inside it."""
        x = sorted(min(max(edge * self.scale, 0), self.picture.width - 1) for edge in (box[0], box[2]))
        y = sorted(min(max(edge * self.scale, 0), self.picture.height - 1) for edge in (box[1], box[3]))
        return float(round(x[0])), float(round(y[0])), float(round(x[1])), float(round(y[1]))

    def _inside(self, plate: Box) -> Box:
        left = max(0.0, min(plate[0], self.picture.width - 1 - (plate[2] - plate[0])))
        top = max(0.0, min(plate[1], self.picture.height - 1 - (plate[3] - plate[1])))
        return left, top, left + plate[2] - plate[0], top + plate[3] - plate[1]


def _beside(drawing: _Drawing, patches: ManyPatches, notes: Sequence[str], legend: str = "") -> Image.Image:
    """Put the framed, numbered patches in a strip to the right of the drawing, each with its note below."""
    picture, line = drawing.picture, drawing.line
    font = _font(max(13, round(max(picture.size) / 54)), bold=False)
    if len(patches) == 0:
        return picture
    gap = 4 * line
    note_width, note_height = (math.ceil(max(_extent(note, font)[side] for note in notes)) for side in (0, 1))
    below = note_height + (line if note_height else 0)
    columns, cell = _grid(len(patches), picture.width // 2, picture.height, gap, below)
    across, down = max(cell, note_width) + gap, cell + below + gap
    height = max(picture.height, math.ceil(len(patches) / columns) * down - gap) + (2 * font.size if legend else 0)
    sheet = Image.new("RGB", (picture.width + columns * across, math.ceil(height)), _WHITE)
    sheet.paste(picture, (0, 0))
    pen = ImageDraw.Draw(sheet)
    for number, (patch, note) in enumerate(zip(patches, notes, strict=True)):
        left, top = picture.width + gap + number % columns * across, number // columns * down
        small = _framed(patch, cell, line, colour_of(number), str(number + 1))
        sheet.paste(small, (left, top))
        pen.multiline_text((left, top + small.height + line), note, font=font, fill=_INK)
    if legend:
        pen.text((0, sheet.height), legend, font=font, fill=_GREY, anchor="ld")
    return sheet


def _grid(count: int, width: int, height: int, gap: int, below: int) -> tuple[int, int]:
    """Return the number of columns with which square cells become largest, and their side."""

    def side(columns: int) -> int:
        rows = math.ceil(count / columns)
        return min(width // columns - gap, (height + gap) // rows - gap - below, 2 * LONG_SIDE // 7)

    columns = max(range(1, count + 1), key=side)
    return columns, max(24, side(columns))


def _framed(patch: Tensor, cell: int, line: int, colour: Colour, number: str) -> Image.Image:
    small = Image.fromarray(seen(patch).permute(1, 2, 0).contiguous().cpu().numpy())
    scale = cell / max(small.size)
    small = small.resize((max(1, round(small.width * scale)), max(1, round(small.height * scale))))
    pen = ImageDraw.Draw(small)
    pen.rectangle((0, 0, small.width - 1, small.height - 1), outline=colour, width=line)
    font = _font(max(12, cell // 7))
    width, height = _extent(number, font)
    plate = (0, 0, width + font.size * 0.6, height + font.size * 0.3)
    pen.rectangle(plate, fill=colour)
    pen.text((plate[2] / 2, plate[3] / 2), number, font=font, fill=_readable_on(colour), anchor="mm")
    return small


def _deepest_point(mask: Bool[Tensor, "H W"]) -> tuple[float, float]:
    """Return x and y of the point of a segment that is farthest from its edge."""
    from scipy.ndimage import distance_transform_edt

    step = max(1, max(mask.shape) // 160)
    # Without this border, segments would seem to continue beyond the picture.
    depth = distance_transform_edt(np.pad(mask[::step, ::step].numpy(), 1))
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return (float(column) - 0.5) * step, (float(row) - 0.5) * step


def _best_of_each(detections: Detections, count: int) -> list[Detections]:
    """Return, for each patch, its most confident detection: one or none."""
    order = detections.scores.argsort(descending=True, stable=True)
    picks = [order[detections.labels[order] == number][:1] for number in range(count)]
    return [
        Detections(boxes=detections.boxes[pick], scores=detections.scores[pick], labels=detections.labels[pick])
        for pick in picks
    ]


def _finite(detections: Detections) -> Detections:
    keep = detections.boxes.isfinite().all(-1) & detections.scores.isfinite()
    return Detections(
        boxes=detections.boxes[keep].float().cpu(),
        scores=detections.scores[keep].float().cpu(),
        labels=detections.labels[keep].cpu(),
    )


def _rows(boxes: Float[Tensor, "N 4"] | None) -> list[Box]:
    return [] if boxes is None else [(x0, y0, x1, y1) for x0, y0, x1, y1 in torch.nan_to_num(boxes).tolist()]


def _touch(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _extent(text: str, font: ImageFont.FreeTypeFont) -> tuple[float, float]:
    """Return width and height of text; the height does not depend on the letters."""
    lines = text.split("\n") if text else []
    return max((font.getlength(line) for line in lines), default=0.0), len(lines) * font.size * 1.15


def _readable_on(colour: Colour) -> Colour:
    red, green, blue = colour
    return _INK if 0.299 * red + 0.587 * green + 0.114 * blue > 130 else _WHITE


@cache
def _font(size: int, *, bold: bool = True) -> ImageFont.FreeTypeFont:
    # Matplotlib ships a font with Greek, Cyrillic and more; finding its folder does not import matplotlib.
    package = importlib.util.find_spec("matplotlib")
    assert package is not None
    fonts = Path(package.origin or "").parent / "mpl-data" / "fonts" / "ttf"
    return ImageFont.truetype(fonts / f"DejaVuSans{'-Bold' if bold else ''}.ttf", size)
