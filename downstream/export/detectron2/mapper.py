"""dictionary of detectron2's catalogue -> dictionary for our model, by the views of a task, such as augmentation."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from detectron2.data import detection_utils as utils
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances

from downstream.annotations.pngs import read_ids
from downstream.annotations.segments import tight_boxes
from downstream.export.detectron2.catalogue import contiguous, prepared
from downstream.one_shot import OneShot
from ssldet import chance
from ssldet.boxes import to_absolute, to_normalised
from ssldet.errors import DataError
from ssldet.patches import Patches
from ssldet.task import Task
from ssldet.types import Sample, Targets


class Mapper:
    """Reads an image, applies the views of a task, and returns a dictionary of detectron2."""

    def __init__(self, task: Task, *, training: bool, seed: int = 0) -> None:
        """Make the views of a task.

        Args:
            task: The task, whose views are applied.
            training: Whether to augment.
            seed: Seed of augmentation.
        """
        self.task, self.training, self.seed = task, training, seed
        self.views = task.views(training=training)
        self.stuff = tuple(getattr(task, "stuff", ()))

    def __call__(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Read an image and prepare it.

        Args:
            entry: Dictionary of a data set that we registered, or of any data set of detectron2 with boxes, masks or
                segments.
        """
        # detectron2 seeds each worker process on its own, so that this number differs from image to image.
        draw = int(torch.randint(2**31, ())) if self.training else 0
        generator = chance.generator(self.seed, "detectron2", str(entry["image_id"]), draw)
        sample = self.views(self._read(entry, generator), generator)
        result: dict[str, Any] = {
            "file_name": entry["file_name"],
            "image_id": entry["image_id"],
            "ssldet_key": sample.key,
            "height": sample.original_size[0],
            "width": sample.original_size[1],
            "image": sample.image,
        }
        if isinstance(sample.problem, Patches):
            result["query_patch"] = sample.problem.pixels
        if self.training:
            result["instances"] = _instances(sample)
        return result

    def _read(self, entry: Mapping[str, Any], generator: torch.Generator) -> Sample:
        if "ssldet_place" not in entry:
            return self._foreign(entry)
        spec, number = entry["ssldet_place"]
        source = prepared(spec, self.task, training=self.training)
        return source.draw(number, generator) if self.training else source[number]

    def _foreign(self, entry: Mapping[str, Any]) -> Sample:
        """Read an image of a data set that we did not register."""
        if isinstance(self.task, OneShot):
            raise DataError("one-shot detection makes its own pairs; give coco:… or voc:… instead of a registered name")
        image = torch.from_numpy(utils.read_image(entry["file_name"], format="RGB").copy()).permute(2, 0, 1)
        size = (int(image.shape[1]), int(image.shape[2]))
        targets = Targets.none()
        if self.training:
            targets = self._segments(entry) if "segments_info" in entry else self._objects(entry, size)
        return Sample(image=image, targets=targets, key=str(entry["image_id"]), original_size=size)

    def _objects(self, entry: Mapping[str, Any], size: tuple[int, int]) -> Targets:
        kept = [one for one in entry.get("annotations", ()) if not one.get("iscrowd", 0)]
        corners = [BoxMode.convert(one["bbox"], one["bbox_mode"], BoxMode.XYXY_ABS) for one in kept]
        boxes = torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)
        boxes = boxes.clamp(min=0).minimum(torch.tensor([size[1], size[0]] * 2))
        whole = (boxes[:, 2:] > boxes[:, :2]).all(-1)
        labels = torch.tensor([one["category_id"] for one in kept], dtype=torch.int64)
        masks = None
        if self.task.needs.masks:
            masks = torch.zeros(len(kept), *size, dtype=torch.bool)
            if kept:
                masks = utils.annotations_to_instances(kept, size, mask_format="bitmask").gt_masks.tensor
            masks = masks[whole]
        return Targets(boxes=to_normalised(boxes[whole], size), labels=labels[whole], masks=masks)

    def _segments(self, entry: Mapping[str, Any]) -> Targets:
        """Read segments; detectron2 counts the classes of things and of stuff each from 0."""
        listed = [one["id"] for one in entry["segments_info"]]
        pixels = torch.from_numpy(read_ids(Path(entry["pan_seg_file_name"]), listed))
        kept = [
            one for one in entry["segments_info"] if not one.get("iscrowd", 0) and bool((pixels == one["id"]).any())
        ]
        masks = torch.zeros(len(kept), *pixels.shape, dtype=torch.bool)
        for mask, one in zip(masks, kept, strict=True):
            mask.copy_(pixels == one["id"])
        classes = 1 + max((int(one["category_id"]) for one in kept), default=0) + len(self.stuff)
        label_of = {number: label for label, number in contiguous(classes, self.stuff).items()}
        labels = [label_of[bool(one["isthing"]), int(one["category_id"])] for one in kept]
        size = (int(pixels.shape[0]), int(pixels.shape[1]))
        targets = Targets(
            boxes=to_normalised(tight_boxes(masks), size), labels=torch.tensor(labels, dtype=torch.int64), masks=masks
        )
        return targets if self.task.needs.masks else replace(targets, masks=None)


def _instances(sample: Sample) -> Instances:
    size = (int(sample.image.shape[1]), int(sample.image.shape[2]))
    targets = sample.targets
    fields: dict[str, Any] = {"gt_boxes": Boxes(to_absolute(targets.boxes, size)), "gt_classes": targets.labels}
    if targets.masks is not None:
        fields["gt_masks"] = BitMasks(targets.masks)
    return Instances(size, **fields)
