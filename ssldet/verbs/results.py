"""Detections -> results files: COCO's rows of boxes, and COCO's panoptic JSON with its PNGs."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from ssldet.data.segments import picture_of_segments
from ssldet.data.signed import save_signed
from ssldet.disk import Disk, write_whole
from ssldet.errors import ConfigError, SetupError
from ssldet.source import Measurable, Source
from ssldet.task import Task
from ssldet.types import Batch, Detections, Segmentation
from ssldet.verbs.file_names import FileNames
from ssldet.verbs.keeping import require_pictures_replaceable, require_results_or_nothing


def results_file(path: Path, task: Task, source: Source) -> "RowResults | PanopticResults":
    """Return the kind of file that fits a task and its data.

    Args:
        path: Where to write.
        task: What the model was taught.
        source: The labelled source that it is shown, whose ids the file uses.

    Raises:
        ConfigError: The source has no ids, or something else than results lies at the path, which would be lost.
    """
    require_results_or_nothing(path, "name another file")
    if not isinstance(source, Measurable):
        raise ConfigError(f"{path}: results need the ids of labelled data; give one coco:…, voc:… or panoptic:…")
    panoptic = task.needs.masks and bool(source.is_thing)
    return PanopticResults(path, source) if panoptic else RowResults(path, source)


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
            ConfigError: The file has no suffix, so that the folder would have its name; or PNGs that are not ours lie
                in the folder, and would be replaced.
        """
        if not path.suffix:
            raise ConfigError(f"{path}: the PNGs go to a folder of this name; call the file {path}.json")
        self._source = source
        self.path, self.folder = path, path.with_suffix("")
        if source is not None:
            require_pictures_replaceable(source, self.folder, "name another file, whose PNGs go to another folder")
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
        save_signed(picture_of_segments(found.segments), self.folder / name)
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
        save_signed(Image.fromarray(pixels), path)
