"""images -> boxes where objects may be: region proposals, which pretext tasks share."""

import logging
from collections import Counter
from dataclasses import dataclass, replace
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from pretext.boxes_file import read_boxes
from pretext.networks import fingerprint_of_weights, resting_network
from pretext.normalised_cut import objects_of
from ssldet.disk import Disk, write_whole
from ssldet.errors import DataError, suggest
from ssldet.escapes import shown
from ssldet.nn.backbones import BackboneConfig
from ssldet.recipe import Within
from ssldet.source import Source, WrappedSource
from ssldet.types import Gather, Problem, Sample

log = logging.getLogger(__name__)

SEARCH_SIDE = 128
"""Side of the square to which DETReg squeezes an image before it searches for regions."""


@dataclass(frozen=True, kw_only=True)
class Proposals:
    """How regions are proposed, and which of them are taken.

    Selective search groups pixels of like colour and texture, step by step, and proposes every group (Uijlings et al.
    2013; OpenCV's fast form). Objectness splits the cells of a backbone's features by a normalised cut, takes the part
    that stands out, and goes on with the rest (Shi and Malik 2000; Wang et al. 2023, TokenCut). Random boxes are the
    baseline. A file holds boxes that another program proposed.

    Attributes:
        method: Where boxes come from: `selective_search`, `objectness`, `random` or `file`.
        count: Most boxes per image.
        choice: Which of more boxes are taken: the first (`top_k`), any (`random`), or more likely those that come early
            (`importance`).
        first: Which boxes of selective search tend to come first: the `largest`, as its paper ranks them, or the
            `smallest`, as OpenCV does, and with it DETReg's released code, whose first 30 boxes cover a hundredth of
            the image each. Their place in this order is multiplied by a random number.
        smallest_share: Shortest side of a box as a share of the image's side; smaller boxes are left out.
        largest_share: Longest side of a box as a share of the image's side; larger boxes are left out.
        side: Side in pixels of the square to which the image is squeezed before the search.
        file: COCO results or annotations as JSON, for `file`. Images are known by `file_name`, or by an `image_id` that
            is their path or its name.
        backbone: Network whose features `objectness` splits; its weights are loaded, never trained.
        similarity: Cosine above which `objectness` takes two cells for alike.
        cache: Folder in which found boxes are kept by the content of the image; `None` keeps none.
    """

    method: Literal["selective_search", "objectness", "random", "file"] = "selective_search"
    count: Annotated[int, Within(1)] = 30
    choice: Literal["top_k", "random", "importance"] = "top_k"
    first: Literal["largest", "smallest"] = "largest"
    smallest_share: Annotated[float, Within(0, 1)] = 0.0
    largest_share: Annotated[float, Within(0, 1)] = 1.0
    side: Annotated[int, Within(16, 1024)] = SEARCH_SIDE
    file: str | None = None
    backbone: BackboneConfig | None = None
    similarity: Annotated[float, Within(-1, 1)] = 0.2
    cache: str | None = None

    def problems(self) -> list[str]:
        """Return what is missing or contradictory."""
        wrong = []
        if self.method == "selective_search" and find_spec("cv2") is None:
            wrong.append(
                "method: 'selective_search' needs OpenCV with its further modules; run: pip install 'ssldet[proposals]'"
            )
        if (self.method == "file") != (self.file is not None):
            wrong.append("file: state a file of boxes with method=file, and only there")
        if (self.method == "objectness") != (self.backbone is not None):
            wrong.append("backbone: state a network with method=objectness, and only there")
        if self.cache is not None and Path(self.cache).exists() and not Path(self.cache).is_dir():
            wrong.append(f"cache: {self.cache} is a file; name a folder")
        if self.smallest_share >= self.largest_share:
            wrong.append(f"smallest_share: {self.smallest_share:g} must be below largest_share {self.largest_share:g}")
        return wrong

    def within(self, source: Source) -> Source:
        """Return a source whose samples carry what this method can't find in pixels: the boxes of the file.

        Args:
            source: Images.

        Raises:
            DataError: The file can't be read, or it has boxes for none of the images.
        """
        return source if self.file is None else WithBoxes(source, Path(self.file))

    def propose(self, sample: Sample, generator: torch.Generator) -> Float[Tensor, "R 4"]:
        """Return boxes in absolute xyxy, as many as there are and at most `count`; an image may have none.

        Args:
            sample: A whole image.
            generator: Source of all random numbers.
        """
        height, width = sample.image.shape[1:]
        if self.method == "random":
            return draw_boxes(self.count, (height, width), self.smallest_share, self.largest_share, generator)
        if self.method == "file":
            # Other images than those of the training set, such as those to predict on, have none.
            given = sample.problem.boxes if isinstance(sample.problem, GivenBoxes) else torch.zeros(0, 4)
            # The file counts pixels on disk, which are more than these where a JPEG was decoded at a part of its size.
            boxes = given * (torch.tensor([width, height]) / torch.tensor(sample.original_size[::-1])).repeat(2)
        else:
            boxes = self._find(sample.image)
        if self.method == "selective_search":
            boxes = boxes if self.first == "largest" else boxes.flip(0)
            boxes = boxes[_by_place_and_chance(len(boxes), generator)]
        boxes = boxes.clamp(min=0).minimum(torch.tensor([width, height, width, height]))
        sides = (boxes[:, 2:] - boxes[:, :2]) / torch.tensor([width, height])
        fits = (sides >= self.smallest_share) & (sides <= self.largest_share) & (sides > 0)
        boxes = boxes[fits.all(1)]
        return boxes[self._choose(len(boxes), generator)]

    def _find(self, image: UInt8[Tensor, "3 H W"]) -> Float[Tensor, "R 4"]:
        if self.cache is None:
            return self._search(image)
        words = f"{self._searched()} {tuple(image.shape)}"
        name = blake2b(words.encode() + image.numpy().tobytes(), digest_size=16).hexdigest()
        path = Path(self.cache) / name[:2] / f"{name}.boxes"
        if path.is_file() and path.stat().st_size % 16 == 0:
            return torch.from_numpy(np.fromfile(path, dtype="<f4").reshape(-1, 4).copy())
        boxes = self._search(image)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, boxes.numpy().astype("<f4").tobytes(), Disk())
        return boxes

    def _searched(self) -> str:
        """Return all that found boxes depend on, beside the image."""
        words = f"{self.method} {self.side} {self.backbone} {self.similarity}"
        if self.backbone is None:
            return words
        return f"{words} {self.count} {fingerprint_of_weights(self.backbone)}"

    def _search(self, image: UInt8[Tensor, "3 H W"]) -> Float[Tensor, "R 4"]:
        height, width = image.shape[1:]
        square = F.interpolate(image[None], (self.side, self.side), mode="bilinear", antialias=True)[0]
        if self.method == "objectness":
            assert self.backbone is not None
            network = resting_network(self.backbone)
            with torch.no_grad():
                cells = network(network.normalise(square[None]))[0].float()
            found = objects_of(cells, similarity=self.similarity, count=self.count) * self.side
        else:
            found = selective_search(square)
        return found / self.side * torch.tensor([width, height, width, height])

    def _choose(self, found: int, generator: torch.Generator) -> Tensor:
        """Return which of some boxes are taken, in their order."""
        if found <= self.count or self.choice == "top_k":
            return torch.arange(min(found, self.count))
        places = torch.arange(1, found + 1, dtype=torch.float64)
        weights = torch.ones_like(places) if self.choice == "random" else -torch.log(places / (found + 1))
        return torch.multinomial(weights, self.count, generator=generator).sort().values


@dataclass(frozen=True, kw_only=True)
class GivenBoxes(Problem):
    """Boxes that another program proposed for an image.

    Attributes:
        boxes: Absolute xyxy, the most confident first.
    """

    boxes: Annotated[Float[Tensor, "R 4"], Gather.LIST]


class WithBoxes(WrappedSource):
    """Images together with the boxes that a file holds for them.

    An image is known by its path, by as much of its end as the file states, or by its name without suffix.

    Attributes:
        source: The images.
    """

    def __init__(self, source: Source, file: Path) -> None:
        """Read the file, and say how many images it leaves without boxes.

        Args:
            source: Images.
            file: COCO results or annotations as JSON.

        Raises:
            DataError: The file can't be read, it has boxes for none of the images, or a name in it fits several.
        """
        super().__init__(source)
        self._boxes = read_boxes(file)
        self._entries = [self._entry_of(self._name(index)) for index in range(len(source))]
        uses = Counter(entry for entry in self._entries if entry is not None)
        if not uses:
            example = self._name(0)
            raise DataError(
                f"{shown(file)}: has boxes for none of the {len(source)} images, such as {example!r}"
                f"{suggest(example, self._boxes)}; images are known by `file_name`, or by an `image_id` that is a path"
            )
        name, most = uses.most_common(1)[0]
        if most > 1:
            raise DataError(
                f"{shown(file)}: {name!r} fits {most} images, such as {self._name(self._entries.index(name))!r}; state "
                "as much of their paths as tells them apart"
            )
        if missing := len(source) - uses.total():
            log.warning(
                "%s: has no box for %d of %d images, which are learned from as images without objects",
                *(shown(file), missing, len(source)),
            )

    def __getitem__(self, index: int) -> Sample:
        """Read one image and its boxes; images that the file does not know have none."""
        return self._with_boxes(index, super().__getitem__(index))

    def draw(self, index: int, generator: torch.Generator) -> Sample:
        """Read one image for training, and its boxes."""
        return self._with_boxes(index, super().draw(index, generator))

    def _with_boxes(self, index: int, sample: Sample) -> Sample:
        entry = self._entries[index]
        return replace(sample, problem=GivenBoxes(boxes=torch.zeros(0, 4) if entry is None else self._boxes[entry]))

    def _entry_of(self, name: str) -> str | None:
        """Return what the file calls an image: the longest end of its path that the file knows, or its stem."""
        parts = Path(name).parts
        ends = (str(Path(*parts[start:])) for start in range(len(parts)))
        return next((known for known in (*ends, Path(name).stem) if known in self._boxes), None)

    def _name(self, index: int) -> str:
        return self.source.name_of(index) or self.source[index].key


@dataclass(frozen=True, kw_only=True)
class Regions(Problem):
    """The pixels of the regions of an image, which are described but not shown to the detector.

    Attributes:
        pixels: One square for each target, then zeros.
        jitter: Drawn photometric parameters of every square; `None` leaves them as they are.
    """

    pixels: Annotated[UInt8[Tensor, "*B P 3 h w"], Gather.PIXELS]
    jitter: Annotated[Float[Tensor, "*B P J"] | None, Gather.STACK] = None


@dataclass(frozen=True, kw_only=True)
class MeasuredRegions(Regions):
    """The same outside training, with what recall of labelled objects is taken of; boxes are normalised cxcywh.

    Attributes:
        objects: Boxes of the labels of an image, if it has any.
        candidates: As many proposals as recall looks at, the first ones first; none without labels.
    """

    objects: Annotated[Float[Tensor, "T 4"] | list[Tensor], Gather.LIST]
    candidates: Annotated[Float[Tensor, "N 4"] | list[Tensor], Gather.LIST]


def draw_boxes(
    count: int, size: tuple[int, int], smallest_share: float, largest_share: float, generator: torch.Generator
) -> Float[Tensor, "P 4"]:
    """Draw absolute xyxy boxes: first their sides, each uniformly, then a place at which the box fits.

    Args:
        count: Number of boxes.
        size: Height and width of the image in pixels.
        smallest_share: Shortest side as a share of the image's side.
        largest_share: Longest side likewise.
        generator: Source of all random numbers.
    """
    extent = torch.tensor([size[1], size[0]])
    draws = torch.rand(2, count, 2, generator=generator)
    low = torch.maximum(smallest_share * extent, torch.ones(2))
    sides = low + draws[0] * (largest_share * extent - low).clamp(min=0)
    starts = draws[1] * (extent - sides)
    return torch.cat([starts, starts + sides], dim=1)


def whole_pixels(boxes_xyxy: Float[Tensor, "R 4"], size: tuple[int, int]) -> Int[Tensor, "R 4"]:
    """Return the whole pixels that boxes touch, at least one along each side, as absolute xyxy.

    Args:
        boxes_xyxy: Absolute xyxy.
        size: Height and width of the image in pixels.
    """
    corner = torch.tensor([size[1], size[0]])
    starts = boxes_xyxy[:, :2].floor().long().clamp(min=0).minimum(corner - 1)
    ends = boxes_xyxy[:, 2:].ceil().long().minimum(corner).maximum(starts + 1)
    return torch.cat([starts, ends], dim=1)


def selective_search(image: UInt8[Tensor, "3 H W"]) -> Float[Tensor, "R 4"]:
    """Return the boxes of all groups of pixels, in absolute xyxy, the largest first; the same for the same pixels.

    Args:
        image: Pixels, RGB.
    """
    import cv2

    cv2.setNumThreads(0)  # Workers run side by side; threads of their own would only take turns.
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(image.permute(1, 2, 0).numpy()[:, :, ::-1]))
    search.switchToSelectiveSearchFast()
    # OpenCV ranks by random numbers which no seed of ours reaches; the set of boxes is always the same.
    boxes = np.unique(np.asarray(search.process(), dtype=np.float32).reshape(-1, 4), axis=0)
    boxes = boxes[np.lexsort((*boxes.T, -boxes[:, 2] * boxes[:, 3]))]
    corners = torch.from_numpy(boxes)
    return torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:]], dim=1)


def _by_place_and_chance(count: int, generator: torch.Generator) -> Tensor:
    """Return an order: by the place times a random number, as selective search ranks its groups of pixels."""
    return (torch.arange(1, count + 1) * torch.rand(count, generator=generator)).argsort()
