"""COCO results or annotations as JSON -> the boxes of each image, the most confident first."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ssldet.documents import parse_json
from ssldet.errors import DataError
from ssldet.escapes import shown
from ssldet.regular import read_bytes


def read_boxes(file: Path) -> dict[str, Float[Tensor, "_ 4"]]:
    """Return boxes in absolute xyxy by the name of their image: its `file_name`, or else its `image_id` as text.

    Args:
        file: A list of results, each with `bbox` (xywh in pixels), an `image_id` or a `file_name`, and perhaps a
            `score`; or an object with `images` and `annotations`.

    Raises:
        DataError: It is no such file; the message names every kind of bad entry and the first place of it.
    """
    place = shown(file)
    try:
        document = parse_json(read_bytes(file))
    except OSError as error:
        raise DataError(f"{place}: {error.strerror}; proposals.file must name a file of boxes") from error
    except ValueError as error:
        raise DataError(f"{place}: not JSON: {error}") from error
    names: dict[Any, str] = {}
    entries = document
    if isinstance(document, dict):
        entries = document.get("annotations")
        images = document.get("images")
        known = [one for one in images if isinstance(one, dict)] if isinstance(images, list) else []
        names = {str(one.get("id")): str(one.get("file_name")) for one in known if "file_name" in one}
    if not isinstance(entries, list):
        raise DataError(f"{place}: neither a list of results nor an object with a list `annotations`")
    boxes: dict[str, list[list[float]]] = defaultdict(list)
    wrong: list[str] = []
    for number, entry in enumerate(entries):
        box = _box(entry)
        if box is None:
            wrong.append(f"/{number}")
            continue
        name = entry.get("file_name", names.get(str(entry.get("image_id")), str(entry.get("image_id"))))
        boxes[str(name)].append(box)
    if wrong:
        raise DataError(
            f"{place}: {len(wrong)} of {len(entries)} entries are no boxes, the first at {wrong[0]}; each needs "
            "`bbox`, four finite numbers x, y, width, height with positive sides, and `image_id` or `file_name`"
        )
    if boxes and max(box[side] for some in boxes.values() for box in some for side in (2, 3)) <= 1:
        raise DataError(
            f"{place}: all boxes lie within one pixel, as if they were shares of their images; `bbox` counts pixels"
        )
    return {name: _sorted(some) for name, some in boxes.items()}


def _box(entry: Any) -> list[float] | None:
    """Return x0, y0, x1, y1 and the score of an entry; `None` if it is no box."""
    if not isinstance(entry, dict) or not ("image_id" in entry or "file_name" in entry):
        return None
    numbers, score = entry.get("bbox"), entry.get("score", 1.0)
    if not isinstance(numbers, list) or len(numbers) != 4:
        return None
    if not all(isinstance(one, int | float) and abs(one) < 1e6 for one in (*numbers, score)):
        return None
    x, y, width, height = map(float, numbers)
    return [x, y, x + width, y + height, float(score)] if width > 0 and height > 0 else None


def _sorted(boxes: list[list[float]]) -> Float[Tensor, "R 4"]:
    rows = sorted(boxes, key=lambda row: -row[4])
    return torch.tensor([row[:4] for row in rows])
