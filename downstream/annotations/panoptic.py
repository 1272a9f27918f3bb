"""panoptic:ANN.json:PNGS:IMAGES -> PanopticImages: COCO's panoptic annotations, things and stuff, each pixel labelled.

A PNG holds the number of a segment in each pixel, R + 256 G + 65536 B, 0 for none; the JSON file says what each
segment is. The file is checked when it is opened, a PNG when it is read.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from downstream.annotations.labelled import Annotated, LabelledImages
from downstream.annotations.masks import run_length_text
from downstream.annotations.outlines import NO_MASK, Outlines, gathered
from downstream.annotations.pngs import read_ids
from downstream.annotations.problems import Problems
from downstream.annotations.segments import (
    EveryPixelLabelled,
    Panoptic,
    gather_panoptic,
    number_segments,
    other_areas,
    read_panoptic,
    split_spec,
    tight_boxes,
)
from ssldet.boxes import to_normalised
from ssldet.data.images import ANY_SIZE, ImageRules, image_sizes
from ssldet.errors import AnnotationError, UnreadableError
from ssldet.source import with_paths
from ssldet.types import Sample, Segmentation, Targets


@with_paths(0, 1, 2)
def open_panoptic(rest: str, rules: ImageRules, *, masks: bool = False) -> "PanopticImages":
    """Open a panoptic file with its images.

    Args:
        rest: `ANN.json:PNGS:IMAGES`; see `read_panoptic`. Without `:IMAGES` the folder is looked for beside the file.
        rules: Which images are usable.
        masks: Give every target its mask, which means to read the PNG with each image.

    Raises:
        AnnotationError: The file is not sound, or images or PNGs are missing; all problems at once.
    """
    panoptic = read_panoptic(rest)
    path, _, images = split_spec(rest)
    folder = images or _guess_folder(path, panoptic.labels.files[0])
    return PanopticImages(panoptic, rules, folder=folder, origin=path, masks=masks)


class PanopticImages(LabelledImages, EveryPixelLabelled):
    """Images whose every pixel is labelled: what `panoptic:` opens into.

    Segments are targets, things and stuff alike; crowds are left out. A box ends after the last pixel of its segment,
    as COCO's own do (DETR's end on it, so that a segment one pixel wide has no width).
    """

    def __init__(
        self, panoptic: Panoptic, rules: ImageRules, *, folder: Path, origin: Path, masks: bool = False
    ) -> None:
        """Check every file: it is there, its header can be read, and it has the stated size.

        Args:
            panoptic: What the annotations say.
            folder: Where the images lie.
            origin: The annotation file, to name in messages.
            rules: Which images are usable.
            masks: Give every target its mask, and the box of that.

        Raises:
            AnnotationError: Images or PNGs are missing, or their size is not the stated one; all problems at once.
        """
        problems = Problems(origin)
        sizes = _check_pngs(panoptic, problems)
        problems.stop()
        self._panoptic, self._draws = panoptic, masks
        labels = replace(panoptic.measured().labels, sizes=sizes)
        annotated = Annotated(labels=labels, folder=folder, origin=origin, places=panoptic.places)
        super().__init__(annotated, problems, rules)
        self._place = {str(key): index for index, key in enumerate(panoptic.labels.image_ids)}

    @property
    def is_thing(self) -> tuple[bool, ...]:
        """Whether a class is one of countable things, by label."""
        return self._panoptic.is_thing

    def with_classes(self, classes: Sequence[str]) -> "PanopticImages":
        """Return the same images with their classes counted in another order.

        Args:
            classes: The same names in the wanted order.
        """
        other = super().with_classes(classes)
        is_thing = dict(zip(self.classes, self.is_thing, strict=True))
        other._panoptic = replace(
            self._panoptic,
            labels=self._panoptic.labels.renumbered(classes),
            is_thing=tuple(is_thing[name] for name in classes),
        )
        return other

    @property
    def all_keys(self) -> tuple[str, ...]:
        """Every id as text; PNGs can be read even where their images can't."""
        return tuple(map(str, self.all_labels.image_ids))

    def truth(self, key: str) -> Segmentation:
        """Read what each pixel of an image belongs to.

        Args:
            key: `Sample.key` of the image.

        Raises:
            UnreadableError: The PNG can't be decoded.
            AnnotationError: The PNG and the file disagree.
        """
        return self._panoptic.truth(self._place[key])

    def stated(self, key: str) -> tuple[Int[Tensor, " N"], Bool[Tensor, " N"], Float[Tensor, " N"]]:
        """Return class, crowd flag and area in pixels of an image's segments as the file states them.

        Args:
            key: `Sample.key` of the image.
        """
        rows = self._panoptic.labels.rows(self._place[key])
        columns = (self._panoptic.labels.labels, self._panoptic.labels.crowd, self._panoptic.labels.areas)
        labels, crowd, areas = (torch.from_numpy(column[rows]) for column in columns)
        return labels.long(), crowd, areas

    def outlines(self) -> Outlines:
        """Return the segments of all images as run lengths; one without a pixel has none.

        Raises:
            UnreadableError: A PNG can't be decoded.
            AnnotationError: A PNG and the file disagree.
        """
        texts = []
        for key in self.keys:
            truth = self.truth(key)
            for number in range(1, len(truth.labels) + 1):
                mask = truth.segments == number
                texts.append(run_length_text(mask) if mask.any() else NO_MASK)
        return gathered(texts)

    def __getitem__(self, index: int) -> Sample:
        """Read one image with its targets.

        Raises:
            UnreadableError: The image or its PNG can't be decoded.
            AnnotationError: The PNG and the file disagree.
        """
        sample = super().__getitem__(index)
        if not self._draws:
            return sample
        truth = self.truth(sample.key)
        _, crowd, _ = self.stated(sample.key)
        numbers = [n for n in np.unique(truth.segments.numpy()).tolist() if n and not crowd[n - 1]]
        kept = torch.tensor(numbers, dtype=torch.int64)
        masks = truth.segments == kept[:, None, None]
        boxes = tight_boxes(masks)
        targets = Targets(boxes=to_normalised(boxes, sample.original_size), labels=truth.labels[kept - 1], masks=masks)
        return replace(sample, targets=targets)


def inspect_panoptic(rest: str, problems: Problems) -> Annotated:
    """Read what is sound of a panoptic file, and compare it with every pixel of its PNGs.

    Args:
        rest: `ANN.json:PNGS:IMAGES`; see `open_panoptic`.
        problems: Takes what is wrong: PNGs that are missing, of another size than stated, or with segments that the
            file does not list.

    Raises:
        AnnotationError: The file is no JSON object, or its images can't be found.
    """
    panoptic = gather_panoptic(rest, problems)
    path, _, images = split_spec(rest)
    if not panoptic.labels.files:
        problems.stop()
    for index in np.flatnonzero(_check_pngs(panoptic, problems).all(axis=1)).tolist():
        _compare(panoptic, index, problems)
    folder = images or _guess_folder(path, panoptic.labels.files[0])
    return Annotated(labels=panoptic.labels, folder=folder, origin=path, places=panoptic.places)


def _check_pngs(panoptic: Panoptic, problems: Problems) -> Int[np.ndarray, "I 2"]:
    """Return height and width of each PNG, by its header; zeros for one that is missing or has not the stated size."""
    sizes = np.zeros((len(panoptic.pngs), 2), dtype=np.int64)
    found = image_sizes(panoptic.folder, panoptic.pngs, ANY_SIZE)
    for index, (size, stated) in enumerate(zip(found, panoptic.labels.sizes.tolist(), strict=True)):
        where = f"{panoptic.places[index]}.file_name"
        if isinstance(size, UnreadableError):
            problems.add(where, f"{size.path}: {size.reason}", "restore the PNG of the segments")
        elif any(stated) and tuple(stated) != size:
            what = f"{panoptic.pngs[index]} has {size[0]} x {size[1]} pixels, its image {stated[0]} x {stated[1]}"
            problems.add(where, what, "the PNG must have the size (height x width) of the image")
        else:
            sizes[index] = size
    return sizes


def _compare(panoptic: Panoptic, index: int, problems: Problems) -> None:
    """Note where a PNG and the file disagree; what only surprises is counted among the notes of the labels."""
    rows, where, png = panoptic.labels.rows(index), panoptic.places[index], panoptic.pngs[index]
    try:
        pixels = read_ids(panoptic.folder / png, panoptic.ids[rows].tolist())
    except UnreadableError as error:
        problems.add(f"{where}.file_name", f"{error.path}: {error.reason}", "restore the PNG of the segments")
        return
    segments, strangers, absent = number_segments(pixels, panoptic.ids[rows])
    if strangers:
        more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        problems.add(
            f"{where}.segments_info", f"{png} has segment {strangers[0]}{more}", "list every segment of the PNG"
        )
    notes = {
        "segments without a pixel in their PNG": len(absent),
        "segments of another area than stated": other_areas(segments, panoptic.labels.areas[rows]),
    }
    for what, count in notes.items():
        if count:
            panoptic.labels.notes[what] = panoptic.labels.notes.get(what, 0) + count


def _guess_folder(annotations: Path, example: str) -> Path:
    """Return the folder, beside the file or as in the official layout, that holds the first image."""
    split = annotations.stem.rpartition("_")[2]
    home = annotations.parent
    places = [home / "images", home / split, home.parent / "images", home.parent / split, home]
    for place in places:
        if (place / example).is_file():
            return place
    tried = ", ".join(map(str, places))
    raise AnnotationError(f"{annotations}: no folder near it holds {example}; tried {tried}; add :PNGS:IMAGES")
