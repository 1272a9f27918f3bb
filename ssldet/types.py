"""The data types that all packages share, and the one legend of their axes.

Axis letters mean the same everywhere in the project:

    B batch     L decoder layer   Q query   P patch   T targets of one image   S feature level
    H W pixels  h w cells         K all cells of one image     D width   C rows of the class head (see `ClassScores`)
    N M         anything, in pure functions

Boxes are **normalised cxcywh inside** (fractions of the valid image, padding excluded) **and absolute xyxy at every
edge** (pixels of the image as it lies on disk). Shapes are checked when the tests run and cost nothing otherwise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from ssldet.class_scores import ClassScores, SoftmaxScores
from ssldet.on_device import OnDevice

Pixels = UInt8[Tensor, "3 H W"] | Float[Tensor, "c H W"]
"""An image: RGB in 0..255, or any channels in 0..1 (see `ssldet.data.bands`); `c` counts the channels of images."""
OnePatch = UInt8[Tensor, "3 _ _"] | Float[Tensor, "c _ _"]
"""A patch of any size, whatever the sizes of others."""
ManyPixels = UInt8[Tensor, "*N 3 H W"] | Float[Tensor, "*N c H W"]
"""Several images of one size."""
ManyPatches = UInt8[Tensor, "*N 3 h w"] | Float[Tensor, "*N c h w"]
"""Several patches of one size."""


class Gather(Enum):
    """How one field of a `Problem` becomes the field of a batch; it stands in the annotation of the field."""

    PIXELS = "pixels"
    """Images of bytes, or a tuple of them: stacked over the batch, shown in previews, and not needed for scoring."""
    STACK = "stack"
    """Tensors of one shape: stacked over the batch."""
    LIST = "list"
    """Any other values: a list with one entry per image."""
    SAMPLE = "sample"
    """Another `Sample` per image: gathered into a `Batch` with a canvas of its own."""
    ORIGINAL = "original"
    """A large `Sample` per image, or `None`: a list that stays on the CPU, is not shown, and not needed for scoring."""


@dataclass(frozen=True, kw_only=True)
class Problem(OnDevice):
    """What a task adds to an image: the base of one frozen dataclass per kind of task.

    Each field says in its annotation how it gathers, such as `Annotated[Float[Tensor, "*B N"], Gather.STACK]`. The same
    class describes one image (in `Sample`) and several (in `Batch`); gathering, slicing, moving, comparing and drawing
    follow from the annotations, see `ssldet.data.problems`.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets(OnDevice):
    """The objects or patches to find in one image.

    Attributes:
        boxes: Normalised cxcywh.
        labels: Class index of each box, contiguous from 0.
        embeddings: A feature vector that the matched prediction should reproduce, where a task asks for one.
        groups: The query group that may answer each target; `None` means that any query may.
        masks: The pixels of each target, on the image that the boxes are relative to; in a batch, on its canvas.
    """

    boxes: Float[Tensor, "T 4"]
    labels: Int[Tensor, " T"]
    embeddings: Float[Tensor, "T E"] | None = None
    groups: Int[Tensor, " T"] | None = None
    masks: Bool[Tensor, "T H W"] | None = None

    @classmethod
    def none(cls) -> "Targets":
        """Return the targets of an image in which nothing is to be found, on the CPU."""
        return cls(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))

    def __len__(self) -> int:
        """Number of targets."""
        return len(self.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A file that could not be used and was replaced by another one.

    Attributes:
        path: The file, shown with escapes where its name is not UTF-8.
        reason: One of the words that `ssldet.data.images` uses: `truncated`, `not-an-image`, `too-large`, …
    """

    path: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One image, and what a task made of it.

    A source returns the whole image with all of its boxes; a task's views return it resized and cropped, and may add a
    problem.

    Attributes:
        image: Pixels, RGB.
        targets: Boxes relative to `image`.
        key: Identity of the image in its source: path or image id, unique within the source.
        original_size: Height and width on disk, after EXIF rotation.
        problem: What a task added, such as patches to look for; `None` where it added nothing.
        skipped: Files that were tried before this one and could not be used.
    """

    image: Pixels
    targets: Targets
    key: str
    original_size: tuple[int, int]
    problem: Problem | None = None
    skipped: tuple[Skipped, ...] = ()


Views = Callable[[Sample, torch.Generator], Sample]
"""Turns one source image into one training sample; all randomness comes from the generator. Must be picklable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch(OnDevice):
    """Samples padded to one canvas.

    Attributes:
        images: Pixels, padded at the bottom and the right.
        padding: True where the canvas holds no image.
        sizes: Valid height and width of each image on the canvas.
        targets: One entry per image.
        keys: Identity of each image.
        original_sizes: Height and width of each image on disk.
        problem: What a task added to the images, gathered; `None` where it added nothing.
        skipped: Files that could not be used while this batch was gathered.
    """

    images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B c H W"]
    padding: Bool[Tensor, "B H W"]
    sizes: Int[Tensor, "B 2"]
    targets: list[Targets]
    keys: list[str]
    original_sizes: Int[Tensor, "B 2"]
    problem: Problem | None = None
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        """Number of images."""
        return len(self.keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class Queries(OnDevice):
    """The queries of the decoder.

    Attributes:
        content: Starting content of each query; DETR starts from zeros.
        position: Query embedding, added to queries and keys of every decoder layer.
        groups: Group of each query slot, which matching may need; `None` means one group.
        attend_within_groups: Whether queries of different groups are hidden from one another in self-attention.
        equal_groups: The number of groups, where whoever made them knows that they are of one size and lie one after
            the other, so that nobody needs to look at their ids; `None` where that is not known.
        asked: What each group asks for, such as the feature of a patch; groups are numbered from 0. `None` where
            queries ask for any object.
        looks: What each group looks like, in each level of the backbone that describes it, from fine to coarse; empty
            where nobody described that.
    """

    content: Float[Tensor, "B Q D"]
    position: Float[Tensor, "B Q D"]
    groups: Int[Tensor, " Q"] | None = None
    attend_within_groups: bool = True
    equal_groups: int | None = None
    asked: Float[Tensor, "B G D"] | None = None
    looks: tuple[Float[Tensor, "B G _"], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedImages(OnDevice):
    """Features of each image before and after the encoder, kept for heads that need them, such as those of masks.

    Attributes:
        cells: Projected features, as they enter the encoder.
        encoded: The same cells after the encoder, row by row.
        padding: True for cells without image; `None` where nothing is padded.
        finer: Levels of the backbone that are finer than the cells, finest first.
        canvas: True for pixels without image; `None` where the detector was given no padding.
    """

    cells: Float[Tensor, "B D h w"]
    encoded: Float[Tensor, "B K D"]
    padding: Bool[Tensor, "B K"] | None
    finer: list[Float[Tensor, "B _ _ _"]]
    canvas: Bool[Tensor, "B H W"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions(OnDevice):
    """Outputs of a detector for all decoder layers; the last layer gives the detections.

    Attributes:
        logits: Outputs of the class head; `scores` says how to read them.
        boxes: Normalised cxcywh.
        states: Decoder outputs after the shared norm, for heads that a task owns.
        groups: Group of each query slot, carried over from the queries.
        encoded_images: Features of the images, where the detector can draw masks; see `Detector.masks`.
        masks: Mask logits of the matched predictions of the last layer, in the order of the matches, on the whole
            canvas with its padding; set by the criterion.
        scores: How class logits are read.
        proposals: Proposals of the encoder of a two-stage detector: one layer, with a number of queries of its own.
            Where groups of queries ask for something, each group has as many proposals as there are cells, one group
            after the other, and `groups` says which; their states, which would be equal, have no channels then.
        image_states: Output of the encoder, averaged over the cells of each image; `None` where a detector has none.
    """

    logits: Float[Tensor, "L B Q C"]
    boxes: Float[Tensor, "L B Q 4"]
    states: Float[Tensor, "L B Q D"]
    groups: Int[Tensor, " Q"] | None = None
    encoded_images: EncodedImages | None = None
    masks: Float[Tensor, "N _ _"] | None = None
    scores: ClassScores = field(default_factory=SoftmaxScores)
    proposals: "Predictions | None" = None
    image_states: Float[Tensor, "B D"] | None = None

    def of_images(self, rows: Sequence[int]) -> "Predictions":
        """Return the predictions for some images of the batch, without what masks are drawn from.

        Args:
            rows: Numbers of the images within the batch.
        """
        chosen = list(rows)
        return replace(
            self,
            logits=self.logits[:, chosen],
            boxes=self.boxes[:, chosen],
            states=self.states[:, chosen],
            encoded_images=None,
            masks=None,
            proposals=None if self.proposals is None else self.proposals.of_images(chosen),
            image_states=None if self.image_states is None else self.image_states[chosen],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches(OnDevice):
    """Pairs of a prediction and the target that it is compared with, over all layers and images at once.

    Attributes:
        layer: Decoder layer of each match.
        image: Image within the batch.
        query: Query within the image.
        target: Target, counted through the concatenated targets of the whole batch.
    """

    layer: Int[Tensor, " N"]
    image: Int[Tensor, " N"]
    query: Int[Tensor, " N"]
    target: Int[Tensor, " N"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Named loss terms, each with its weight, and metrics that are only logged.

    Attributes:
        terms: One value per decoder layer, unweighted; the last is the final layer's.
        weights: Weight of each term.
        metrics: Scalars without gradient.
    """

    terms: dict[str, Float[Tensor, " L"]]
    weights: dict[str, float]
    metrics: dict[str, Float[Tensor, ""]] = field(default_factory=dict)

    @property
    def total(self) -> Float[Tensor, ""]:
        """Weighted sum of all terms over all layers, which the optimiser minimises."""
        parts = [self.weights[name] * term.sum() for name, term in self.terms.items()]
        return torch.stack(parts).sum()


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmentation(OnDevice):
    """The segments of one image, true or predicted: each pixel belongs to one segment or to none.

    Attributes:
        segments: Which segment each pixel of the image on disk belongs to, counted from 1; 0 belongs to none (void).
        labels: Class index of each segment, contiguous from 0, things and stuff in one numbering.
        crowd: Whether a segment stands for many objects that were not separated; `None` where no segment does.
    """

    segments: Int[Tensor, "H W"]
    labels: Int[Tensor, " N"]
    crowd: Bool[Tensor, " N"] | None = None


class Answer(OnDevice):
    """Output of an objective for one image: `Detections` are one kind, an `Embedding` is another."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding(Answer):
    """A vector that describes one whole image.

    Attributes:
        vector: The vector.
    """

    vector: Float[Tensor, " E"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Detections(Answer):
    """Objects or patches that were found in one image.

    Attributes:
        boxes: Absolute xyxy in pixels of the image on disk.
        scores: Confidence in 0..1.
        labels: Class index of each box, contiguous from 0; for a patch query, the number of the patch.
        masks: The pixels of each detection, on the image on disk; masks may overlap.
        segmentation: Segments of the whole image, where a task predicts them.
    """

    boxes: Float[Tensor, "N 4"]
    scores: Float[Tensor, " N"]
    labels: Int[Tensor, " N"]
    masks: Bool[Tensor, "N H W"] | None = None
    segmentation: Segmentation | None = None

    def __len__(self) -> int:
        """Number of detections."""
        return len(self.scores)

    def above(self, score: float) -> "Detections":
        """Keep the detections that are at least this confident.

        Args:
            score: Least score, from 0 to 1.
        """
        return self.only(self.scores >= score)

    def only(self, keep: Bool[Tensor, " N"]) -> "Detections":
        """Keep the chosen detections; the segmentation of the whole image stays.

        Args:
            keep: True for each detection that stays.
        """
        masks = None if self.masks is None else self.masks[keep]
        return replace(self, boxes=self.boxes[keep], scores=self.scores[keep], labels=self.labels[keep], masks=masks)


def concatenate(targets: Sequence[Targets], *, masks: bool = False) -> Targets:
    """Join the targets of a batch, in order: the numbering that `Matches.target` uses.

    Args:
        targets: One entry per image.
        masks: Join masks too, which are large.
    """
    return Targets(
        boxes=torch.cat([t.boxes for t in targets]),
        labels=torch.cat([t.labels for t in targets]),
        embeddings=_join([t.embeddings for t in targets]),
        groups=_join([t.groups for t in targets]),
        masks=_join([t.masks for t in targets]) if masks else None,
    )


def _join(parts: Sequence[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    if present and len(present) != len(parts):
        raise ValueError(f"{len(present)} of {len(parts)} images carry a target field that all or none must carry")
    return torch.cat(present) if present else None
