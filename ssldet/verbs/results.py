"""Detections -> results files: COCO's rows of boxes, and COCO's panoptic JSON with its PNGs."""

import json
import math
import os
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from ssldet.data.segments import write_segments
from ssldet.disk import Disk, naming, write_whole
from ssldet.documents import parse_json
from ssldet.errors import ConfigError, SetupError
from ssldet.regular import read_bytes
from ssldet.source import Measurable, Source
from ssldet.task import Task
from ssldet.types import Batch, Detections, Segmentation

LONGEST = 200
"""Bytes of a file name without its suffix; file systems take 255."""


def results_file(path: Path, task: Task, source: Source) -> "RowResults | PanopticResults":
    """Return the kind of file that fits a task and its data.

    Args:
        path: Where to write.
        task: What the model was taught.
        source: The labelled source that it is shown, whose ids the file uses.

    Raises:
        ConfigError: The source has no ids, or something else than results lies at the path, which would be lost.
    """
    _require_results_or_nothing(path)
    if not isinstance(source, Measurable):
        raise ConfigError(f"{path}: results need the ids of labelled data; give one coco:…, voc:… or panoptic:…")
    panoptic = task.needs.masks and bool(source.is_thing)
    return PanopticResults(path, source) if panoptic else RowResults(path, source)


def _require_results_or_nothing(path: Path) -> None:
    """Refuse a place where something else than earlier results lies.

    Raises:
        ConfigError: It is a folder, or a file of another kind.
    """
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; call the file {path}.json")
    if not path.exists():
        return
    with suppress(OSError, ValueError):
        document = parse_json(read_bytes(path))
        rows = document.get("annotations") if isinstance(document, dict) and len(document) == 1 else document
        if isinstance(rows, list) and all(isinstance(row, dict) and "image_id" in row for row in rows):
            return
    raise ConfigError(f"{path}: exists, and holds no results, so that something else would be lost; name another file")


class RowResults:
    """Boxes, and masks where there are any, as COCO's list of results."""

    def __init__(self, path: Path, source: Measurable) -> None:
        """Start without rows, and make the folder.

        Args:
            path: Where to write.
            source: Knows the ids.

        Raises:
            SetupError: It can't be written there, which would be late to find out when all is measured.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise SetupError(f"{path.parent}: can't be written to; choose another place for the results")
        self._path, self._source = path, source
        self._rows: list[dict[str, Any]] = []

    def take(self, found: Sequence[Detections], batch: Batch) -> None:
        """Take in what was found in a batch."""
        self._rows += self._source.to_results(found, batch)

    def close(self) -> None:
        """Write the file."""
        write_whole(self._path, json.dumps(self._rows).encode(), Disk())


class PanopticResults:
    """Segmentations as COCO's panoptic results: PNGs are written as they come, the JSON file at the end.

    Attributes:
        path: The JSON file.
        folder: The folder of the PNGs: beside the file, of the same name without suffix.
    """

    def __init__(self, path: Path, source: Measurable | None = None) -> None:
        """Make the folder.

        Args:
            path: The JSON file.
            source: Knows the ids, for `take`.

        Raises:
            ConfigError: The file has no suffix, so that the folder would have its name.
        """
        if not path.suffix:
            raise ConfigError(f"{path}: the PNGs go to a folder of this name; call the file {path}.json")
        self._source = source
        self.path, self.folder = path, path.with_suffix("")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._entries: list[dict[str, Any]] = []
        self._name = FileNames()

    def take(self, found: Sequence[Detections], batch: Batch) -> None:
        """Take in what was found in a batch of the source."""
        source = self._source
        assert source is not None
        ids = dict(zip(source.keys, source.image_ids, strict=True))
        for one, key in zip(found, batch.keys, strict=True):
            if one.segmentation is not None:
                self.add(one.segmentation, ids[key], key, category_ids=source.category_ids)

    def add(
        self,
        found: Segmentation,
        image_id: object,
        key: str,
        *,
        category_ids: Sequence[int] = (),
        classes: Sequence[str] = (),
    ) -> None:
        """Write the PNG of one image.

        Args:
            found: On the CPU.
            image_id: Id of the image in the file.
            key: Key of the image, which names the PNG.
            category_ids: Id of each class; the class's number where there are none.
            classes: Name of each class, if known.
        """
        name = f"{self._name(key)}.png"
        areas = torch.bincount(found.segments.flatten(), minlength=len(found.labels) + 1).tolist()
        segments = []
        for number, label in enumerate(found.labels.tolist(), start=1):
            if not areas[number]:
                continue
            segment = {"id": number, "category_id": category_ids[label] if category_ids else label}
            named = {"category": classes[label]} if label < len(classes) else {}
            segments.append(segment | {"area": areas[number]} | named)
        write_segments(found.segments, self.folder / name)
        self._entries.append({"image_id": image_id, "file_name": name, "segments_info": segments})

    def close(self) -> None:
        """Write the JSON file."""
        write_whole(self.path, json.dumps({"annotations": self._entries}, indent=1).encode(), Disk())


def rows_of(
    found: Detections, key: str, classes: Sequence[str], category_ids: Sequence[int] | None
) -> list[dict[str, Any]]:
    """Return detections in COCO results format; boxes are absolute xywh in pixels of the image on disk.

    Args:
        found: On the CPU.
        key: Key of the image.
        classes: Name of each class, as far as they are known.
        category_ids: Id of each class; the class's number where there are none.
    """
    rows = []
    for box, score, label in zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True):
        left, top, right, bottom = (round(side, 2) for side in box)
        row = {
            "image_id": key,
            "category_id": category_ids[label] if category_ids else label,
            "bbox": [left, top, round(right - left, 2), round(bottom - top, 2)],
            "score": round(score, 5),
        }
        rows.append(row | ({"category": classes[label]} if label < len(classes) else {}))
    return rows


def save_cut_out(
    image: UInt8[Tensor, "3 H W"], found: Detections, classes: Sequence[str], folder: Path, name: str
) -> None:
    """Save what was detected as pictures of its own: `CLASS/IMAGE-NUMBER.png`, the most confident first.

    Args:
        image: Pixels of the image on disk.
        found: What to cut out, on the CPU; boxes that hold no pixel are left out.
        classes: Name of each class, as far as they are known.
        folder: Where to; made when first needed.
        name: File name of the image without suffix.
    """
    height, width = image.shape[1:]
    named = FileNames()
    kinds = [named(kind) for kind in classes]
    for number, place in enumerate(found.scores.argsort(descending=True, stable=True).tolist(), start=1):
        left, top, right, bottom = found.boxes[place].tolist()
        left, top = max(0, math.floor(left)), max(0, math.floor(top))
        right, bottom = min(width, math.ceil(right)), min(height, math.ceil(bottom))
        if right <= left or bottom <= top:
            continue
        label = int(found.labels[place])
        path = folder / (kinds[label] if label < len(kinds) else str(label)) / f"{name}-{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = image[:, top:bottom, left:right].permute(1, 2, 0).contiguous().numpy()
        with naming(path):
            Image.fromarray(pixels).save(path)


class FileNames:
    """Image keys -> file names: readable, each given once, and `urllib.parse.unquote` turns them back into the key.

    Letters and digits of any script stay as they are; every other character is written as `%` and its code. Where that
    is too long for a file system, or another key's name differs in nothing but case, a number follows after `~`.
    """

    def __init__(self) -> None:
        """Start with no name given."""
        self._given: set[str] = set()

    def __call__(self, key: str) -> str:
        """Return a file name, without suffix, that no earlier call has returned.

        Args:
            key: Key of an image, whatever characters it holds.
        """
        whole = "".join(letter if letter.isalnum() or letter in "-_." else quote(letter, safe="") for letter in key)
        whole = "%2E" + whole[1:] if whole.startswith(".") else whole or "image"
        name = stem = whole.encode()[:LONGEST].decode(errors="ignore")
        number = 1 if stem == whole else 2
        if number == 2:
            name = f"{stem}~{number}"
        while _folded(name) in self._given:
            number += 1
            name = f"{stem}~{number}"
        self._given.add(_folded(name))
        return name


def _folded(name: str) -> str:
    """Return what two names share that are one on a file system without case or with composed letters."""
    return unicodedata.normalize("NFC", name).casefold()
