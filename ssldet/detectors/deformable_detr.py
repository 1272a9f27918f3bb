"""images, Queries -> Predictions: Deformable DETR (Zhu et al. 2021), with box refinement and two stages as options."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ssldet.class_scores import SigmoidScores
from ssldet.detectors.base import DetectorConfig, problems_of_width
from ssldet.detectors.on_backbone import BackboneDetector
from ssldet.detectors.proposed import first_cells, for_groups, resemblance
from ssldet.errors import ConfigError
from ssldet.nn.backbones import Backbone, BackboneConfig, build_backbone
from ssldet.nn.deformable import Levels
from ssldet.nn.deformable_transformer import DeformableDecoder, DeformableEncoder
from ssldet.nn.heads import OffsetHead
from ssldet.nn.padding import is_padded, mean_over_cells, resize_padding
from ssldet.nn.position import SinePosition
from ssldet.nn.proposals import Proposals
from ssldet.nn.pyramid import NORM_GROUPS, LevelEmbedding, Pyramid
from ssldet.queries import PlacedQueries
from ssldet.recipe import Within
from ssldet.types import Predictions, Queries

SMALLEST_SHARE = 1e-5
"""What keeps the logit of a point at the edge of an image finite."""
FIRST_EXTENT = -2.0
"""Logit of the width and height of boxes at first: small ones."""


class DeformableDETR(BackboneDetector):
    """The deformable detection transformer, its parts injected.

    Patches join the content of queries: the position says where a query looks, and with proposals these say it.

    Attributes:
        backbone: Images -> levels.
        projection: Levels -> maps of the transformer's width, and coarser ones.
        level_embedding: Position of the cells of each level -> the same, told apart; part of the section `encoder`.
        encoder: Cells of all levels -> encoded cells.
        decoder: Queries, encoded cells -> states and boxes.
        queries: The learned queries; a detector with two stages has none.
        proposals: Encoded cells -> boxes to begin with; only a detector with two stages has them.
        box_head: Heads from states to boxes, relative to the points that a layer looks around: one per decoder layer
            and one for the proposals where boxes are refined, else one for all layers.
        class_head: Heads from states to one logit per class, likewise.
    """

    patches_join: ClassVar[Literal["content", "position"]] = "content"

    def __init__(
        self,
        *,
        backbone: Backbone,
        projection: Pyramid,
        position: SinePosition,
        level_embedding: LevelEmbedding,
        encoder: DeformableEncoder,
        decoder: DeformableDecoder,
        asks: PlacedQueries | Proposals,
        box_head: nn.ModuleList,
        class_head: nn.ModuleList,
        scores: SigmoidScores,
        num_classes: int,
        num_queries: int,
        proposal_overlap: float = 1.0,
    ) -> None:
        """Join the parts.

        Args:
            backbone: Images -> levels.
            projection: Levels -> maps of the transformer's width.
            position: Padding -> position encoding.
            level_embedding: Tells the levels apart.
            encoder: Cells -> encoded cells.
            decoder: Queries, encoded cells -> states and boxes.
            asks: The learned queries, or what makes queries of proposals.
            box_head: One head per decoder layer, and one for proposals, or one for all.
            class_head: Likewise.
            scores: How the outputs of the class heads are read.
            num_classes: Number of classes.
            num_queries: Number of object queries.
            proposal_overlap: Overlap with a better proposal above which queries begin with another one.
        """
        super().__init__()
        self.backbone = backbone
        self.projection = projection
        self.position = position
        self.level_embedding = level_embedding
        self.encoder = encoder
        self.decoder = decoder
        self.queries = asks if isinstance(asks, PlacedQueries) else None
        self.proposals = asks if isinstance(asks, Proposals) else None
        self.box_head = box_head
        self.class_head = class_head
        asking = "queries" if self.proposals is None else "proposals"
        own = ("backbone", "projection", "decoder", asking, "box_head", "class_head")
        self.sections = {name: (name,) for name in own} | {"encoder": ("level_embedding", "encoder")}
        self.scores = scores
        self.num_classes, self.num_queries = num_classes, num_queries
        self.proposal_overlap = proposal_overlap
        self.width = level_embedding.weight.shape[1]
        self.feature_channels = backbone.channels

    def patch_levels(self, images: Float[Tensor, "B c H W"]) -> tuple[Float[Tensor, "B _ _ _"], ...]:
        """Return the last level or, where proposals are compared with patches, all that proposals are made of."""
        return self.backbone.levels(images, 1 if self.proposals is None else self.projection.given)

    def memory(
        self, levels: Sequence[Float[Tensor, "B _ _ _"]], padding: Bool[Tensor, "B H W"] | None = None
    ) -> tuple[Float[Tensor, "B D _ _"], ...]:
        """Return the encoder's output, one map per level of the transformer; see `Detector.memory`."""
        encoded, lie = self._encode(levels, padding)
        rows = torch.split(encoded, [height * width for height, width in lie.shapes], dim=1)
        return tuple(
            row.transpose(1, 2).reshape(len(row), -1, *shape) for row, shape in zip(rows, lie.shapes, strict=True)
        )

    def default_queries(self, batch_size: int) -> Queries:
        """Return the learned queries, shared by all images; zeros, to which proposals are added, in two stages."""
        if self.queries is not None:
            result: Queries = self.queries(batch_size)
            return result
        nothing = self.level_embedding.weight.new_zeros(1, self.num_queries, self.width).expand(batch_size, -1, -1)
        return Queries(content=nothing, position=nothing)

    def forward(
        self,
        images: Float[Tensor, "B c H W"],
        padding: Bool[Tensor, "B H W"] | None = None,
        queries: Queries | None = None,
    ) -> Predictions:
        """Detect; see `Detector.forward`. In two stages, what is known of proposals is added to the queries."""
        # Not len(images), which would fix the number of images in an exported graph.
        queries = queries or self.default_queries(images.shape[0])
        given = self.backbone.levels(images, self.projection.given)
        encoded, levels = self._encode(given, padding)
        content, position, proposed = queries.content, queries.position, None
        if self.proposals is not None:
            proposed, reference = self._propose(given, encoded, levels, queries)
            place_content, place = self.proposals.queries(reference)
            content, position = content + place_content, position + place
        else:
            assert self.queries is not None
            with torch.autocast(images.device.type, enabled=False):
                reference = self.queries.points(position.float())
        apart = queries.groups if queries.attend_within_groups else None
        states, boxes = self.decoder(
            content, position, reference, encoded, levels, self._locate, apart, queries.equal_groups
        )
        with torch.autocast(images.device.type, enabled=False):
            states = states.float()
            logits = torch.stack([self._head(self.class_head, number)(layer) for number, layer in enumerate(states)])
        return Predictions(
            logits=logits,
            boxes=boxes,
            states=states,
            groups=queries.groups,
            scores=self.scores,
            proposals=proposed,
            image_states=mean_over_cells(encoded, levels.padding),
        )

    def _encode(
        self, given: Sequence[Float[Tensor, "B _ _ _"]], padding: Bool[Tensor, "B H W"] | None
    ) -> tuple[Float[Tensor, "B K D"], Levels]:
        """Return the encoded cells of all levels in one row, and how they lie in it."""
        maps = self.projection(given[-self.projection.given :])
        hidden = None
        if padding is not None and is_padded(padding):
            hidden = [resize_padding(padding, level) for level in maps]
        levels = Levels.of(maps, hidden)
        return self.encoder(levels.join(maps), self._positions(maps, hidden), levels), levels

    def _positions(self, maps: list[Tensor], hidden: list[Tensor] | None) -> Tensor:
        """Return the position of every cell of all levels: where it lies, and on which level."""
        nowhere = [torch.zeros_like(level[:1, 0], dtype=torch.bool) for level in maps]
        positions = self.level_embedding([self.position(padding) for padding in hidden or nowhere])
        return torch.cat([position.flatten(1, 2) for position in positions], dim=1)

    def _propose(
        self, given: Sequence[Tensor], encoded: Tensor, levels: Levels, queries: Queries
    ) -> tuple[Predictions, Tensor]:
        """Return what all cells propose, and the box that each query begins with.

        Groups of queries get the best proposals each: what one group begins with does not depend on the others. Where a
        group asks for something, a proposal is the better the more its cell agrees with that: sampling points lie
        around the first boxes, so a query that begins far from what it asks for never sees it.
        """
        assert self.proposals is not None
        states, first = self.proposals(encoded, levels)
        last = len(self.decoder.layers)
        with torch.autocast(encoded.device.type, enabled=False):
            states = states.float()
            logits = self._head(self.class_head, last)(states)
            boxes = (self._head(self.box_head, last)(states) + first).sigmoid()
            proposed = Predictions(
                logits=logits.unsqueeze(0), boxes=boxes.unsqueeze(0), states=states.unsqueeze(0), scores=self.scores
            )
            if queries.asked is not None:
                proposed = for_groups(proposed, queries.asked.float(), self._alike(given, levels, queries))
        # An object is class 0 to the proposals, whatever it is.
        cells = first_cells(proposed.logits[0, ..., 0], boxes, queries, self.proposal_overlap)
        reference = boxes.detach().gather(1, cells.unsqueeze(-1).expand(-1, -1, 4))
        return proposed, reference

    def _alike(self, given: Sequence[Tensor], levels: Levels, queries: Queries) -> Tensor | None:
        """Return how much cells look like what groups ask for, if the finest level that is taken says both."""
        taken = self.projection.given
        if len(queries.looks) < taken:
            return None
        return resemblance(given[-taken].float(), queries.looks[-taken].float(), levels)

    def _locate(self, layer: int, states: Tensor, reference: Tensor) -> Tensor:
        """Turn states into boxes, in 32 bits whatever the rest runs in: boxes need the digits."""
        with torch.autocast(states.device.type, enabled=False):
            offset = self._head(self.box_head, layer)(states.float())
            logit = (reference.clamp(min=SMALLEST_SHARE) / (1 - reference).clamp(min=SMALLEST_SHARE)).log()
            boxes: Tensor = (offset + F.pad(logit, (0, 4 - logit.shape[-1]))).sigmoid()
            return boxes

    def _head(self, heads: nn.ModuleList, layer: int) -> nn.Module:
        """Return the head of a decoder layer; proposals have the number after the last one."""
        return heads[layer if len(heads) > 1 else 0]


@dataclass(frozen=True, kw_only=True)
class DeformableDETRConfig(DetectorConfig):
    """The choices that define a Deformable DETR. Defaults are its authors'; refinement and two stages are options.

    Attributes:
        backbone: Which network looks at the image.
        num_classes: Number of classes; raw COCO ids need 91.
        num_queries: Number of object queries: the most objects that can be found in one image.
        width: Width of the transformer; must be divisible by `heads` and by 32. 32 itself is too narrow, since the
            projection could not normalise a level of one cell.
        heads: Attention heads.
        encoder_layers: Depth of the encoder.
        decoder_layers: Depth of the decoder.
        feedforward: Width inside the feed-forward networks.
        dropout: Share of branches, hidden units and weights of the self-attention dropped in training.
        pre_norm: Normalise before each branch; released weights were trained without it.
        backbone_levels: How many levels of the backbone are taken, counted from the coarsest.
        extra_levels: How many coarser levels are made, each of half the size of the one before.
        encoder_points: Points that one head of the encoder looks at on one level.
        decoder_points: Points that one head of the decoder looks at on one level.
        refine_boxes: Let each decoder layer look around, and correct, the boxes of the layer before.
        two_stage: Begin with the best boxes that encoded cells propose instead of learned queries; needs
            `refine_boxes`.
        proposal_overlap: Intersection over union with a better proposal above which a proposal is passed over as long
            as there are others, so that queries begin apart and don't all find the same object; 1 takes the best of all
            cells, as the authors do. Needs `two_stage`.
    """

    cite: ClassVar[str] = "zhu2021deformable"

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    num_classes: Annotated[int, Within(1, 100_000)] = 91
    num_queries: Annotated[int, Within(1, 100_000)] = 300
    width: Annotated[int, Within(2 * NORM_GROUPS, 4096)] = 256
    heads: Annotated[int, Within(1, 4096)] = 8
    encoder_layers: Annotated[int, Within(0, 100)] = 6
    decoder_layers: Annotated[int, Within(1, 100)] = 6
    feedforward: Annotated[int, Within(1, 65_536)] = 1024
    dropout: Annotated[float, Within(0, 0.9)] = 0.1
    pre_norm: bool = False
    backbone_levels: Annotated[int, Within(1, 16)] = 3
    extra_levels: Annotated[int, Within(0, 16)] = 1
    encoder_points: Annotated[int, Within(1, 256)] = 4
    decoder_points: Annotated[int, Within(1, 256)] = 4
    refine_boxes: bool = False
    two_stage: bool = False
    proposal_overlap: Annotated[float, Within(0, 1)] = 1.0

    def problems(self) -> list[str]:
        """Say what no single field can know."""
        wrong = problems_of_width(self.width, self.heads, NORM_GROUPS, "groups of the projection's norms")
        if self.two_stage and not self.refine_boxes:
            wrong.append("two_stage: boxes that cells propose are there to be refined; choose refine_boxes=true too")
        if self.proposal_overlap < 1 and not self.two_stage:
            wrong.append("proposal_overlap: only a detector with two stages has proposals; choose two_stage=true too")
        return wrong

    def build(self) -> DeformableDETR:
        """Return the detector with fresh weights.

        Raises:
            ConfigError: The backbone has fewer levels than `backbone_levels`.
        """
        backbone = build_backbone(self.backbone)
        if len(backbone.level_channels) < self.backbone_levels:
            raise ConfigError(
                f"detector.backbone_levels: {self.backbone_levels} levels are wanted, and backbone "
                f"{self.backbone.name!r} has {len(backbone.level_channels)}; choose "
                f"detector.backbone_levels={len(backbone.level_channels)} and more detector.extra_levels"
            )
        count = self.backbone_levels + self.extra_levels
        scores = SigmoidScores()
        transformer = (self.width, self.heads, self.feedforward, self.dropout)
        return DeformableDETR(
            backbone=backbone,
            projection=Pyramid(backbone.level_channels[-self.backbone_levels :], self.width, extra=self.extra_levels),
            position=SinePosition(self.width, inset=0.5),
            level_embedding=LevelEmbedding(count, self.width),
            encoder=DeformableEncoder(
                *transformer,
                layers=self.encoder_layers,
                levels=count,
                points=self.encoder_points,
                pre_norm=self.pre_norm,
            ),
            decoder=DeformableDecoder(
                *transformer,
                layers=self.decoder_layers,
                levels=count,
                points=self.decoder_points,
                pre_norm=self.pre_norm,
                refine=self.refine_boxes,
            ),
            asks=Proposals(self.width) if self.two_stage else PlacedQueries(self.num_queries, self.width),
            box_head=self._box_heads(),
            class_head=self._class_heads(scores),
            scores=scores,
            num_classes=self.num_classes,
            num_queries=self.num_queries,
            proposal_overlap=self.proposal_overlap,
        )

    def _box_heads(self) -> nn.ModuleList:
        """Return heads whose boxes lie at their reference points at first: equal ones, as the authors start them."""
        head = OffsetHead(self.width)
        heads = [copy.deepcopy(head) for _ in range(self._heads)]
        if not self.two_stage:
            # Points have no extent; the first layer gives them one, and refinement keeps it.
            heads[0].begin_with_extent(FIRST_EXTENT)
        return nn.ModuleList(heads)

    def _class_heads(self, scores: SigmoidScores) -> nn.ModuleList:
        head = nn.Linear(self.width, self.num_classes + scores.extra_rows)
        nn.init.constant_(head.bias, scores.first_bias())
        return nn.ModuleList(copy.deepcopy(head) for _ in range(self._heads))

    @property
    def _heads(self) -> int:
        """Number of heads of a kind."""
        return self.decoder_layers + self.two_stage if self.refine_boxes else 1
