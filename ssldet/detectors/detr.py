"""images, Queries -> Predictions: DETR (Carion et al. 2020), and the configuration that builds it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ssldet.class_scores import SoftmaxScores
from ssldet.detectors.base import DetectorConfig, problems_of_width
from ssldet.detectors.on_backbone import BackboneDetector
from ssldet.errors import ConfigError
from ssldet.nn.backbones import Backbone, BackboneConfig, build_backbone
from ssldet.nn.heads import BoxHead
from ssldet.nn.masks import AttentionMaps, MaskHead
from ssldet.nn.padding import is_padded, mean_over_cells, resize_padding
from ssldet.nn.position import SinePosition
from ssldet.nn.transformer import Decoder, Encoder
from ssldet.queries import LearnedQueries
from ssldet.recipe import Within
from ssldet.types import EncodedImages, Predictions, Queries

SECTIONS = ("backbone", "projection", "encoder", "decoder", "queries", "box_head", "class_head")
"""Sections of every DETR, each an attribute of that name."""


class _Seen(NamedTuple):
    """The cells of some images before and after the encoder, where they lie, and which of them hold no image."""

    cells: Float[Tensor, "B K D"]
    encoded: Float[Tensor, "B K D"]
    position: Float[Tensor, "_ K D"]
    padding: Bool[Tensor, "B K"] | None


def _as_map(cells: Float[Tensor, "B K D"], features: Float[Tensor, "B E h w"]) -> Float[Tensor, "B D h w"]:
    row: Any = cells.transpose(1, 2)  # torch says no types of what follows
    result: Tensor = row.unflatten(2, features.shape[-2:])
    return result


class DETR(BackboneDetector):
    """The detection transformer, composed of the parts it is given. Every section is the attribute of that name.

    The section `mask_head` consists of `mask_attention` and `mask_head`; a detector without masks has neither.

    Attributes:
        backbone: Images -> features.
        projection: Features -> cells of the transformer's width.
        encoder: Cells -> encoded cells.
        decoder: Queries, encoded cells -> states.
        queries: The learned queries.
        box_head: States -> boxes, shared by all decoder layers.
        class_head: States -> logits, shared by all decoder layers; the last class is "no object".
        mask_attention: Last states, encoded cells -> attention maps.
        mask_head: Attention maps, cells, finer levels -> masks.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        projection: nn.Conv2d,
        position: SinePosition,
        encoder: Encoder,
        decoder: Decoder,
        queries: LearnedQueries,
        box_head: BoxHead,
        class_head: nn.Linear,
        normalise_features: bool = False,
        position_at_input: bool = False,
        mask_attention: AttentionMaps | None = None,
        mask_head: MaskHead | None = None,
    ) -> None:
        """Compose the detector.

        Args:
            backbone: Images -> features.
            projection: Convolution of size 1: features -> cells of the transformer's width.
            position: Padding -> position encoding.
            encoder: Cells -> encoded cells.
            decoder: Queries, encoded cells -> states.
            queries: The learned queries.
            box_head: States -> boxes.
            class_head: States -> logits; the last class is "no object".
            normalise_features: Bring each projected cell to zero mean and unit variance, without parameters.
            position_at_input: Add the position encoding to the encoder's input too.
            mask_attention: Last states, encoded cells -> attention maps; given where `mask_head` is.
            mask_head: Attention maps, cells, finer levels -> masks; `None` for a detector without masks.
        """
        super().__init__()
        self.backbone = backbone
        self.projection = projection
        self.position = position
        self.encoder = encoder
        self.decoder = decoder
        self.queries = queries
        self.box_head = box_head
        self.class_head = class_head
        self.normalise_features = normalise_features
        self.position_at_input = position_at_input
        self.mask_attention = mask_attention
        self.mask_head = mask_head
        self.sections = {name: (name,) for name in SECTIONS}
        if mask_head is not None:
            self.sections["mask_head"] = ("mask_attention", "mask_head")
        self.scores = SoftmaxScores()
        self.num_classes = self.scores.num_classes(class_head.out_features)
        self.num_queries, self.width = queries.embedding.shape
        self.feature_channels = backbone.channels

    def memory(
        self, levels: Sequence[Float[Tensor, "B _ _ _"]], padding: Bool[Tensor, "B H W"] | None = None
    ) -> tuple[Float[Tensor, "B D _ _"], ...]:
        """Return the encoder's output as one map; see `Detector.memory`."""
        return (_as_map(self._encode(levels[-1], padding).encoded, levels[-1]),)

    def default_queries(self, batch_size: int) -> Queries:
        """Return the learned queries, shared by all images."""
        result: Queries = self.queries(batch_size)
        return result

    def forward(
        self,
        images: Float[Tensor, "B c H W"],
        padding: Bool[Tensor, "B H W"] | None = None,
        queries: Queries | None = None,
    ) -> Predictions:
        """Detect objects, as `Detector.forward` says."""
        # Not len(images), which would fix the number of images in an exported graph.
        queries = queries or self.default_queries(images.shape[0])
        *finer, features = [self.features(images)] if self.mask_head is None else self.backbone.levels(images)
        seen = self._encode(features, padding)
        apart = queries.groups if queries.attend_within_groups else None
        states = self.decoder(
            queries.content,
            queries.position,
            seen.encoded,
            seen.position,
            seen.padding,
            apart,
            queries.equal_groups,
        )
        kept = None
        if self.mask_head is not None:
            projected = _as_map(seen.cells, features)
            kept = EncodedImages(
                cells=projected, encoded=seen.encoded, padding=seen.padding, finer=finer, canvas=padding
            )
        found = self._apply_heads(states, queries, kept)
        return replace(found, image_states=mean_over_cells(seen.encoded, seen.padding))

    def _encode(self, features: Float[Tensor, "B E h w"], padding: Bool[Tensor, "B H W"] | None) -> _Seen:
        hidden = resize_padding(padding, features) if padding is not None and is_padded(padding) else None
        cells = self.projection(features).flatten(2).transpose(1, 2)
        if self.normalise_features:
            cells = F.layer_norm(cells, cells.shape[-1:])
        nowhere_hidden = torch.zeros_like(features[:1, 0], dtype=torch.bool)
        position = self.position(nowhere_hidden if hidden is None else hidden).flatten(1, 2)
        hidden_cells = None if hidden is None else hidden.flatten(1)
        encoded = self.encoder(cells + position if self.position_at_input else cells, position, hidden_cells)
        return _Seen(cells=cells, encoded=encoded, position=position, padding=hidden_cells)

    def masks(
        self, predictions: Predictions, image: Int[Tensor, " N"], query: Int[Tensor, " N"]
    ) -> Float[Tensor, "N h w"]:
        """Draw the masks of some predictions of the last layer, as `Detector.masks` says."""
        kept = predictions.encoded_images
        if kept is None or self.mask_attention is None or self.mask_head is None:
            return super().masks(predictions, image, query)
        # All maps are cheap, compared with the head; gathering the cells of each mask would not be.
        maps: Tensor = self.mask_attention(predictions.states[-1], kept.encoded, kept.padding)
        chosen = maps[image, query].reshape(image.shape[0], maps.shape[2], *kept.cells.shape[-2:])
        result: Tensor = self.mask_head(kept.cells, chosen, image, kept.finer)
        return result

    def _apply_heads(self, states: Tensor, queries: Queries, kept: EncodedImages | None) -> Predictions:
        """Apply the heads to all layers at once, in 32 bits even in mixed precision, because boxes need the digits."""
        with torch.autocast(states.device.type, enabled=False):
            states = states.float()
            return Predictions(
                logits=self.class_head(states),
                boxes=self.box_head(states),
                states=states,
                groups=queries.groups,
                encoded_images=kept,
                scores=self.scores,
            )


@dataclass(frozen=True, kw_only=True)
class DETRConfig(DetectorConfig):
    """The choices that define a DETR. The defaults fit the weights of the released UP-DETR.

    Attributes:
        backbone: The network that computes features of the image.
        num_classes: Number of classes, "no object" not counted; raw COCO ids need 91.
        num_queries: Number of object queries: the most objects that can be found in one image.
        width: Width of the transformer; must be divisible by `heads` and by 4.
        heads: Attention heads.
        encoder_layers: Depth of the encoder.
        decoder_layers: Depth of the decoder.
        feedforward: Width inside the feed-forward networks.
        dropout: Share of attention weights, branches and hidden units dropped in training.
        pre_norm: Normalise before each branch, as UP-DETR does; false for the weights that DETR's authors released.
        normalise_features: Bring each projected cell to zero mean and unit variance, without parameters. Helps small
            models whose backbone has odd scales; released weights were trained without it.
        query_scale: Standard deviation of fresh query embeddings. 0.3 helps small models tell patches apart.
        position_at_input: Add the position encoding to the encoder's input too, and so to its values. Helps small
            models; released weights were trained without it.
        masks: Add mask heads, the section `mask_head`, which only tasks with masks train. Needs a backbone with finer
            levels.
        mask_attention: Whether each attention map behind a mask sums to one, or, as in the panoptic weights that DETR's
            authors released, all maps of a query together.
    """

    cite: ClassVar[str] = "carion2020detr"

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    num_classes: Annotated[int, Within(1, 100_000)] = 91
    num_queries: Annotated[int, Within(1, 100_000)] = 100
    width: Annotated[int, Within(4, 4096)] = 256
    heads: Annotated[int, Within(1, 4096)] = 8
    encoder_layers: Annotated[int, Within(0, 100)] = 6
    decoder_layers: Annotated[int, Within(1, 100)] = 6
    feedforward: Annotated[int, Within(1, 65_536)] = 2048
    dropout: Annotated[float, Within(0, 0.9)] = 0.1
    pre_norm: bool = True
    normalise_features: bool = False
    query_scale: Annotated[float, Within(0)] = 1.0
    position_at_input: bool = False
    masks: bool = False
    mask_attention: Literal["per_head", "joint"] = "per_head"

    def problems(self) -> list[str]:
        """Return contradictions between fields, one line each."""
        return problems_of_width(self.width, self.heads, 4, "parts of the position encoding")

    def build(self) -> DETR:
        """Return the detector with fresh weights.

        Raises:
            ConfigError: Masks are asked for, and the backbone has no level that is finer than its last.
        """
        backbone = build_backbone(self.backbone)
        if self.masks and backbone.level_strides[0] >= backbone.stride:
            raise ConfigError(
                f"detector.masks: masks are drawn on levels finer than the last, and backbone {self.backbone.name!r} "
                "has none; choose detector.masks=false or a convolutional network, such as 'resnet50'"
            )
        return DETR(
            backbone=backbone,
            projection=nn.Conv2d(backbone.channels, self.width, kernel_size=1),
            position=SinePosition(self.width),
            encoder=Encoder(
                self.width,
                self.heads,
                self.feedforward,
                self.dropout,
                layers=self.encoder_layers,
                pre_norm=self.pre_norm,
            ),
            decoder=Decoder(
                self.width,
                self.heads,
                self.feedforward,
                self.dropout,
                layers=self.decoder_layers,
                pre_norm=self.pre_norm,
            ),
            queries=LearnedQueries(self.num_queries, self.width, self.query_scale),
            box_head=BoxHead(self.width),
            class_head=nn.Linear(self.width, self.num_classes + SoftmaxScores.extra_rows),
            normalise_features=self.normalise_features,
            position_at_input=self.position_at_input,
            # Last, so that everything else starts the same with and without masks.
            mask_attention=AttentionMaps(self.width, self.heads, self.mask_attention) if self.masks else None,
            mask_head=MaskHead(self.width, self.heads, backbone.level_channels[:-1]) if self.masks else None,
        )
