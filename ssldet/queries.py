"""learned embeddings, patch features -> Queries: the queries of the decoder, and their groups."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ssldet import chance
from ssldet.errors import ConfigError
from ssldet.types import Queries


class LearnedQueries(nn.Module):
    """Query embeddings of plain detection, the same for every image.

    Attributes:
        embedding: One row per query.
    """

    embedding: Float[nn.Parameter, "Q D"]

    def __init__(self, num_queries: int, width: int, scale: float = 1.0) -> None:
        """Draw the embeddings.

        Args:
            num_queries: Number of queries.
            width: Width of the transformer.
            scale: Standard deviation of the first values; DETR has 1.
        """
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(num_queries, width) * scale)

    def forward(self, batch_size: int) -> Queries:
        """Return the queries, the same for every image.

        Args:
            batch_size: Number of images.
        """
        position = self.embedding.expand(batch_size, -1, -1)
        return Queries(content=torch.zeros_like(position), position=position)


class PlacedQueries(nn.Module):
    """Queries of Deformable DETR: each has a content, a position, and a point that the position stands for.

    Attributes:
        embedding: One row per query: its position, then its content.
        reference: Position -> logits of the point that a query looks around.
    """

    embedding: Float[nn.Parameter, "Q _"]

    def __init__(self, num_queries: int, width: int) -> None:
        """Draw the weights.

        Args:
            num_queries: Number of queries.
            width: Width of the transformer.
        """
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(num_queries, 2 * width))
        self.reference = nn.Linear(width, 2)
        nn.init.xavier_uniform_(self.reference.weight)
        nn.init.zeros_(self.reference.bias)

    def forward(self, batch_size: int) -> Queries:
        """Return the queries, the same for every image.

        Args:
            batch_size: Number of images.
        """
        position, content = self.embedding.expand(batch_size, -1, -1).chunk(2, dim=-1)
        return Queries(content=content, position=position)

    def points(self, position: Float[Tensor, "B Q D"]) -> Float[Tensor, "B Q 2"]:
        """Return what each query looks around: normalised x and y.

        Args:
            position: Position of each query.
        """
        point: Tensor = self.reference(position)
        return point.sigmoid()


class PatchQueries(nn.Module):
    """Queries that ask "where is this patch?" (UP-DETR, sections 3.1 and 3.2).

    Each patch feature is projected, handed to equally many consecutive queries, hidden from some of them in training,
    and added to the position of the detector's own query, or to its content; the other part stays as it is.

    Attributes:
        projection: Patch feature -> width of the transformer.
    """

    def __init__(
        self,
        feature_channels: int,
        width: int,
        *,
        num_patches: int,
        masking: Literal["query", "patch"] = "query",
        mask_ratio: float = 0.1,
        shuffle: bool = False,
        grouped_attention: bool = True,
        normalise: bool = False,
    ) -> None:
        """Create the projection.

        Args:
            feature_channels: Channels of a patch feature.
            width: Width of the transformer.
            num_patches: Patches of one image in training; at other times there may be fewer.
            masking: Mask single queries, as the released UP-DETR does, or whole patches.
            mask_ratio: Probability that a patch feature is masked; the others are not rescaled.
            shuffle: Assign the embeddings to the queries in a new random order at every training call, the same for all
                images.
            grouped_attention: Let queries of one patch attend to one another only.
            normalise: Bring projected features to zero mean and unit variance, without parameters.
        """
        super().__init__()
        self.projection = nn.Linear(feature_channels, width)
        self.num_patches = num_patches
        self.masking, self.mask_ratio, self.shuffle = masking, mask_ratio, shuffle
        self.grouped_attention, self.normalise = grouped_attention, normalise

    def forward(
        self,
        features: Float[Tensor, "B P E"],
        own: Queries,
        joins: Literal["content", "position"] = "position",
        looks: tuple[Float[Tensor, "B P _"], ...] = (),
    ) -> Queries:
        """Return queries that ask for the patches of each image.

        Args:
            features: One vector per patch.
            own: The detector's own queries for one image, to be shared among `num_patches` patches. Fewer patches
                (outside training) take the first of them, so that a patch is asked for as it was in training.
            joins: The part of a query to which features are added, as in `Detector.patches_join`.
            looks: Further vectors per patch, which the queries carry as they are; zeros for a hidden patch.

        Raises:
            ConfigError: Queries can't be shared equally, or there are too many patches.
        """
        batch, patches, _ = features.shape
        content, position = own.content, own.position
        groups = group_ids(position.shape[1], self.num_patches)
        if patches > self.num_patches or (self.training and patches != self.num_patches):
            allowed = "exactly" if self.training else "at most"
            raise ConfigError(
                f"PatchQueries got {patches} patches per image but was built with num_patches={self.num_patches} and "
                f"takes {allowed} that many{' in training' if self.training else ''}; build it with "
                f"num_patches={patches}"
            )
        each = position.shape[1] // self.num_patches
        if self.training and self.shuffle:
            order = chance.permutation(position.shape[1], position.device)
            content, position = content[:, order], position[:, order]
        projected: Tensor = self.projection(features)
        if self.normalise:
            projected = F.layer_norm(projected, projected.shape[-1:])
        if self.training and self.mask_ratio and self.masking == "patch":
            shown = self._shown(projected)
            projected, looks = projected * shown, tuple(part * shown for part in looks)
        asked = projected.repeat_interleave(each, dim=1)
        if self.training and self.mask_ratio and self.masking == "query":
            asked = asked * self._shown(asked)
        content, position = (part[:, : patches * each].expand(batch, -1, -1) for part in (content, position))
        return Queries(
            content=asked + content if joins == "content" else content,
            position=asked + position if joins == "position" else position,
            groups=groups[: patches * each],
            attend_within_groups=self.grouped_attention,
            equal_groups=patches,
            asked=projected,
            looks=looks,
        )

    def _shown(self, rows: Float[Tensor, "B N D"]) -> Bool[Tensor, "B N 1"]:
        """Draw which rows are shown."""
        return (chance.uniform(*rows.shape[:2], device=rows.device) >= self.mask_ratio).unsqueeze(-1)


def ranks_within_groups(groups: Int[Tensor, " Q"]) -> Int[Tensor, " Q"]:
    """Return how many queries of its own group come before each query.

    Args:
        groups: Group of each query.
    """
    return (groups[:, None] == groups[None, :]).tril(-1).sum(1)


def group_ids(num_queries: int, num_groups: int) -> Int[Tensor, " Q"]:
    """Return the group of each query when all groups get equally many consecutive ones: 0 0 0 1 1 1 2 2 2.

    The result lies on the CPU, where the decoder can look at it without waiting for a device.

    Args:
        num_queries: Number of queries.
        num_groups: Number of groups.

    Raises:
        ConfigError: The queries can't be shared equally.
    """
    if num_groups < 1 or num_queries < num_groups or num_queries % num_groups:
        raise ConfigError(unequal_shares(num_queries, num_groups))
    return torch.arange(num_groups).repeat_interleave(num_queries // num_groups)


def problems_of_shares(num_queries: int, num_patches: int) -> list[str]:
    """Return a message for the field `num_patches` unless queries can be shared equally among patches.

    Args:
        num_queries: Number of queries.
        num_patches: Number of patches.
    """
    return [f"num_patches: {unequal_shares(num_queries, num_patches)}"] if num_queries % num_patches else []


def unequal_shares(num_queries: int, num_patches: int) -> str:
    """Return the line that says why these queries can't be shared, and what can.

    Args:
        num_queries: Number of queries.
        num_patches: Number of patches.
    """
    divisors = [number for number in range(1, num_queries + 1) if num_queries % number == 0]
    below = max((number for number in divisors if number < num_patches), default=divisors[0])
    above = min((number for number in divisors if number > num_patches), default=divisors[-1])
    patches = " or ".join(dict.fromkeys([str(below), str(above)]))
    each = max(1, num_queries // max(1, num_patches))
    queries = " or ".join(str(max(1, num_patches) * factor) for factor in (each, each + 1))
    return (
        f"{num_queries} queries can't be shared equally among {num_patches} patches "
        f"({num_queries} / {num_patches}); choose {patches} patches, or {queries} queries"
    )
