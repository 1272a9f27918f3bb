"""images, Queries -> Predictions: a detector that cuts images into patches in place of a CNN, with sigmoid scores."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from ssldet.class_scores import SigmoidScores
from ssldet.detectors.base import Detector, DetectorConfig
from ssldet.nn.heads import BoxHead
from ssldet.nn.position import SinePosition
from ssldet.nn.transformer import Decoder, Encoder
from ssldet.queries import LearnedQueries
from ssldet.recipe import Within
from ssldet.types import Predictions, Queries


class PatchTransformer(Detector):
    """A transformer over square patches of pixels; the section `patchify` is its own invention."""

    def __init__(self, config: "PatchTransformerConfig") -> None:
        """Build the parts."""
        super().__init__()
        self.scores = SigmoidScores()
        self.stride = config.stride
        self.patchify = nn.Conv2d(3, config.width, kernel_size=config.stride, stride=config.stride)
        self.position = SinePosition(config.width)
        self.encoder = Encoder(config.width, 2, 2 * config.width, 0.0, layers=1, pre_norm=True)
        self.decoder = Decoder(config.width, 2, 2 * config.width, 0.0, layers=2, pre_norm=True)
        self.queries = LearnedQueries(config.num_queries, config.width)
        self.box_head = BoxHead(config.width)
        self.class_head = nn.Linear(config.width, config.num_classes + self.scores.extra_rows)
        nn.init.constant_(self.class_head.bias, self.scores.first_bias())
        names = ("patchify", "encoder", "decoder", "queries", "box_head", "class_head")
        self.sections = {name: (name,) for name in names}
        self.num_classes, self.num_queries = config.num_classes, config.num_queries
        self.width = self.feature_channels = config.width

    def normalise(
        self, pixels: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"], padding: Bool[Tensor, "B H W"] | None = None
    ) -> Float[Tensor, "B 3 H W"]:
        """Bring pixels to -1..1; padding becomes 0."""
        scaled = (pixels / 255 if pixels.dtype == torch.uint8 else pixels) * 2 - 1
        return scaled if padding is None else scaled.masked_fill(padding[:, None], 0)

    def features(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B E h w"]:
        """Return the embeddings of the patches; images are padded to whole patches here."""
        height, width = (-side % self.stride for side in images.shape[2:])
        result: Tensor = self.patchify(F.pad(images, (0, width, 0, height)))
        return result

    def default_queries(self, batch_size: int) -> Queries:
        """Return the learned queries."""
        result: Queries = self.queries(batch_size)
        return result

    def forward(
        self,
        images: Float[Tensor, "B 3 H W"],
        padding: Bool[Tensor, "B H W"] | None = None,
        queries: Queries | None = None,
    ) -> Predictions:
        """Detect."""
        queries = queries or self.default_queries(len(images))
        features = self.features(images)
        hidden = torch.zeros_like(features[:, 0], dtype=torch.bool)
        if padding is not None:
            hidden = padding[:, :: self.stride, :: self.stride]
        position = self.position(hidden).flatten(1, 2)
        encoded = self.encoder(features.flatten(2).transpose(1, 2), position, hidden.flatten(1))
        apart = queries.groups if queries.attend_within_groups else None
        states = self.decoder(queries.content, queries.position, encoded, position, hidden.flatten(1), apart)
        with torch.autocast(states.device.type, enabled=False):
            states = states.float()
            return Predictions(
                logits=self.class_head(states),
                boxes=self.box_head(states),
                states=states,
                groups=queries.groups,
                scores=self.scores,
            )


@dataclass(frozen=True, kw_only=True)
class PatchTransformerConfig(DetectorConfig):
    """The choices that define a detector of patches.

    Attributes:
        num_classes: Number of classes.
        num_queries: Number of object queries.
        width: Width of the transformer, a multiple of 4.
        stride: Side of a patch in pixels.
    """

    cite: ClassVar[str] = ""

    num_classes: Annotated[int, Within(1)] = 1
    num_queries: Annotated[int, Within(1)] = 6
    width: Annotated[int, Within(4)] = 32
    stride: Annotated[int, Within(1)] = 8

    def build(self) -> PatchTransformer:
        """Return the detector with fresh weights."""
        return PatchTransformer(self)
