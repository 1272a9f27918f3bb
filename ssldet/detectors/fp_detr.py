"""images, Queries -> Predictions: FP-DETR (Wang et al. 2022), a tokenizer and twelve encoder layers, without a decoder.

Known differences between the authors' code and this file, none of which changes an answer:

    topic                their code                                here
    sides of images      must be multiples of 32                   padded inside, with the padding hidden
    queries as values    a fifth level, masked by minus infinity   no fifth level: nobody looks at queries
    last layer           cells are computed and thrown away        queries alone
    projection           convolutions without bias                 with one, which is zero at first and in their files
    pretraining          not published                             `describe_tokens`, without the adaptor
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from ssldet.class_scores import SigmoidScores
from ssldet.detectors.base import Detector, DetectorConfig, problems_of_width
from ssldet.detectors.deformable_detr import FIRST_EXTENT
from ssldet.nn.backbones import IMAGENET_MEAN, IMAGENET_STD
from ssldet.nn.deformable import Levels
from ssldet.nn.deformable_transformer import DeformableEncoder
from ssldet.nn.heads import MLP, OffsetHead
from ssldet.nn.joined_encoder import JoinedEncoder, TaskAdaptor
from ssldet.nn.padding import is_padded, mean_over_cells, resize_padding
from ssldet.nn.position import SinePosition
from ssldet.nn.pyramid import NORM_GROUPS, LevelEmbedding, Pyramid
from ssldet.nn.tokenizer import Tokenizer, pad_to
from ssldet.queries import PlacedQueries
from ssldet.recipe import Within
from ssldet.types import Predictions, Queries


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Cells of images after the first layers, where queries or a class token join them.

    Attributes:
        cells: Cells of all levels in one row.
        position: Where each cell lies, and on which level.
        levels: How the levels lie in the row.
    """

    cells: Float[Tensor, "B K D"]
    position: Float[Tensor, "#B K D"]
    levels: Levels


class FPDETR(Detector):
    """The fully pre-trained detection transformer.

    The tokenizer is the section `backbone`: it learns at the backbone's rate, as in the authors' code. Patches join the
    content of queries, because their position says where they look; they are described by the first layers, behind
    which queries join.

    Attributes:
        tokenizer: Images -> levels; the section `backbone`.
        projection: Levels -> maps of the transformer's width, and coarser ones.
        level_embedding: Position of the cells of each level -> the same, told apart; part of the section `encoder`.
        encoder: Cells of all levels -> the same after the first layers.
        joined_encoder: Cells, queries -> states after each of the last layers.
        adaptor: Shows queries one another before each of the last layers.
        queries: The learned queries.
        box_head: States -> boxes relative to the points that queries look around, shared by all layers.
        class_head: States -> one logit per class, likewise.
    """

    patches_join: ClassVar[Literal["content", "position"]] = "content"

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        projection: Pyramid,
        position: SinePosition,
        level_embedding: LevelEmbedding,
        encoder: DeformableEncoder,
        joined_encoder: JoinedEncoder,
        adaptor: TaskAdaptor,
        queries: PlacedQueries,
        box_head: MLP,
        class_head: nn.Linear,
    ) -> None:
        """Join the parts.

        Args:
            tokenizer: Images -> levels.
            projection: Levels -> maps of the transformer's width.
            position: Padding -> position encoding.
            level_embedding: Tells the levels apart.
            encoder: The first layers, for cells alone.
            joined_encoder: The last layers, for cells and queries.
            adaptor: Shows queries one another.
            queries: The learned queries.
            box_head: States -> offsets of boxes.
            class_head: States -> logits.
        """
        super().__init__()
        self.tokenizer = tokenizer
        self.projection = projection
        self.position = position
        self.level_embedding = level_embedding
        self.encoder = encoder
        self.joined_encoder = joined_encoder
        self.adaptor = adaptor
        self.queries = queries
        self.box_head = box_head
        self.class_head = class_head
        own = ("projection", "joined_encoder", "adaptor", "queries", "box_head", "class_head")
        self.sections = {
            "backbone": ("tokenizer",),
            "encoder": ("level_embedding", "encoder"),
            **{name: (name,) for name in own},
        }
        self.scores = SigmoidScores()
        self.num_classes = self.scores.num_classes(class_head.out_features)
        self.num_queries = len(queries.embedding)
        self.width = self.feature_channels = level_embedding.weight.shape[1]

    def normalise(
        self, pixels: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"], padding: Bool[Tensor, "B H W"] | None = None
    ) -> Float[Tensor, "B 3 H W"]:
        """Scale pixels by ImageNet's mean and deviation; padding becomes 0."""
        scaled = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
        mean, deviation = (scaled.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        normalised = (scaled - mean) / deviation
        return normalised if padding is None else normalised.masked_fill(padding.unsqueeze(1), 0)

    def features(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B E h w"]:
        """Return the tokenizer's last level after the first layers; patches go the same way."""
        encoded = self.encode(images)
        level = len(self.tokenizer.patches) - 1
        start = sum(height * width for height, width in encoded.levels.shapes[:level])
        height, width = encoded.levels.shapes[level]
        cells = encoded.cells[:, start : start + height * width].transpose(1, 2)
        return cells.reshape(*cells.shape[:2], height, width)

    def default_queries(self, batch_size: int) -> Queries:
        """Return the learned queries, shared by all images."""
        result: Queries = self.queries(batch_size)
        return result

    def forward(
        self,
        images: Float[Tensor, "B 3 H W"],
        padding: Bool[Tensor, "B H W"] | None = None,
        queries: Queries | None = None,
    ) -> Predictions:
        """Detect objects, as `Detector.forward` says."""
        # Not len(images), which would fix the number of images in an exported graph.
        queries = queries or self.default_queries(images.shape[0])
        encoded = self.encode(images, padding)
        with torch.autocast(images.device.type, enabled=False):
            places = self.queries.reference(queries.position.float())
        states = self.describe_tokens(encoded, queries, places.sigmoid(), self.adaptor)
        # In 32 bits whatever the rest runs in: boxes need the digits.
        with torch.autocast(images.device.type, enabled=False):
            states = states.float()
            return Predictions(
                logits=self.class_head(states),
                boxes=(self.box_head(states) + F.pad(places, (0, 2))).sigmoid(),
                states=states,
                groups=queries.groups,
                scores=self.scores,
                image_states=mean_over_cells(encoded.cells, encoded.levels.padding),
            )

    def encode(self, images: Float[Tensor, "B 3 H W"], padding: Bool[Tensor, "B H W"] | None = None) -> Encoded:
        """Cut images into cells, and run the first layers.

        Args:
            images: Normalised images, of any size.
            padding: True where the canvas holds no image; `None` means that all of it does.
        """
        stride = self.tokenizer.stride
        if padding is None and any(side % stride for side in images.shape[2:]):
            padding = torch.zeros_like(images[:, 0], dtype=torch.bool)
        hidden = None
        maps = self.projection(self.tokenizer(pad_to(images, stride)))
        if padding is not None:
            canvas = pad_to(padding.unsqueeze(1).float(), stride, value=1.0).squeeze(1) > 0
            if is_padded(canvas):
                hidden = [resize_padding(canvas, level) for level in maps]
        levels = Levels.of(maps, hidden)
        nowhere = [torch.zeros_like(level[:1, 0], dtype=torch.bool) for level in maps]
        places = self.level_embedding([self.position(hidden_cells) for hidden_cells in hidden or nowhere])
        position = torch.cat([place.flatten(1, 2) for place in places], dim=1)
        return Encoded(cells=self.encoder(levels.join(maps), position, levels), position=position, levels=levels)

    def describe_tokens(
        self,
        encoded: Encoded,
        queries: Queries,
        points: Float[Tensor, "B Q 2"],
        adaptor: TaskAdaptor | None = None,
    ) -> Float[Tensor, "L B Q D"]:
        """Run the last layers with tokens that join the cells; returns their states after every layer.

        Args:
            encoded: Cells after the first layers.
            queries: The tokens: object queries, or a class token.
            points: What each token looks around: normalised x and y.
            adaptor: What shows tokens one another; a class token needs none.
        """
        apart = queries.groups if queries.attend_within_groups else None
        states: Tensor = self.joined_encoder(
            queries.content,
            queries.position,
            points,
            encoded.cells,
            encoded.position,
            encoded.levels,
            adaptor,
            apart,
            queries.equal_groups,
        )
        return states


@dataclass(frozen=True, kw_only=True)
class FPDETRConfig(DetectorConfig):
    """The choices that define an FP-DETR. Defaults are the authors' for FP-DETR-Lite; see also `SMALL` and `BASE`.

    Attributes:
        num_classes: Number of classes; raw COCO ids need 91.
        num_queries: Number of object queries: the most objects that can be found in one image.
        strides: Pixels per cell of each level of the tokenizer, from fine to coarse; each a multiple of the one before.
        tokenizer_width: Channels of the tokenizer's levels.
        extra_levels: How many coarser levels are made, each of half the size of the one before.
        width: Width of the transformer; must be divisible by `heads` and by 32. 32 itself is too narrow, since the
            projection could not normalise a level of one cell.
        heads: Attention heads.
        encoder_layers: Layers for cells alone.
        joined_layers: Layers for cells and queries.
        feedforward: Width inside the feed-forward networks.
        points: Points that one head looks at on one level.
        dropout: Share of branches, hidden units and weights of the adaptor's attention dropped in training.
    """

    cite: ClassVar[str] = "wang2022fpdetr"

    num_classes: Annotated[int, Within(1)] = 80
    num_queries: Annotated[int, Within(1)] = 300
    strides: tuple[int, ...] = (8, 16, 32)
    tokenizer_width: Annotated[int, Within(1)] = 192
    extra_levels: Annotated[int, Within(0)] = 1
    width: Annotated[int, Within(2 * NORM_GROUPS)] = 256
    heads: Annotated[int, Within(1)] = 8
    encoder_layers: Annotated[int, Within(1)] = 6
    joined_layers: Annotated[int, Within(1)] = 6
    feedforward: Annotated[int, Within(1)] = 1024
    points: Annotated[int, Within(1)] = 4
    dropout: Annotated[float, Within(0, 0.9)] = 0.1

    def problems(self) -> list[str]:
        """Return contradictions between fields, one line each."""
        wrong = problems_of_width(self.width, self.heads, NORM_GROUPS, "groups of the projection's norms")
        nested = all(fine > 0 and coarse > fine and coarse % fine == 0 for fine, coarse in pairwise(self.strides))
        if not self.strides or self.strides[0] < 1 or not nested:
            wrong.append(
                f"strides: {list(self.strides)} must name at least one stride, each a multiple of the one before; "
                "choose strides=[8, 16, 32]"
            )
        return wrong

    def build(self) -> FPDETR:
        """Return the detector with fresh weights."""
        count = len(self.strides) + self.extra_levels
        transformer = (self.width, self.heads, self.feedforward, self.dropout)
        class_head = nn.Linear(self.width, self.num_classes + SigmoidScores.extra_rows)
        nn.init.constant_(class_head.bias, SigmoidScores().first_bias())
        return FPDETR(
            tokenizer=Tokenizer(self.strides, self.tokenizer_width),
            projection=Pyramid([self.tokenizer_width] * len(self.strides), self.width, extra=self.extra_levels),
            position=SinePosition(self.width, inset=0.5),
            level_embedding=LevelEmbedding(count, self.width),
            encoder=DeformableEncoder(
                *transformer, layers=self.encoder_layers, levels=count, points=self.points, pre_norm=False
            ),
            joined_encoder=JoinedEncoder(*transformer, layers=self.joined_layers, levels=count, points=self.points),
            adaptor=TaskAdaptor(self.width, self.heads, self.dropout, layers=self.joined_layers),
            queries=PlacedQueries(self.num_queries, self.width),
            box_head=_box_head(self.width),
            class_head=class_head,
        )


LITE = FPDETRConfig()
SMALL = FPDETRConfig(tokenizer_width=384, width=384, feedforward=1536)
BASE = FPDETRConfig(tokenizer_width=384, width=480, heads=10, feedforward=1920)


def _box_head(width: int) -> OffsetHead:
    """Return a head whose boxes lie at their points at first, small, as the authors start it."""
    head = OffsetHead(width)
    head.begin_with_extent(FIRST_EXTENT)
    return head
