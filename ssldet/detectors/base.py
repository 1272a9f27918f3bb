"""images, Queries -> Predictions: the interface of detectors, which tasks, engine and export use."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from ssldet.class_scores import ClassScores
from ssldet.errors import ConfigError, suggest
from ssldet.nn.backbones import BackboneConfig
from ssldet.nn.deformable import DeformableAttention
from ssldet.queries import PlacedQueries
from ssldet.types import Predictions, Queries


class Detector(nn.Module, ABC):
    """A detection transformer whose parts have names.

    Attributes:
        sections: Name of each part -> the prefixes of its parameters and buffers in `state_dict()`. Together the
            sections cover the whole state. Freezing and transfer take names of sections, never of parameters. Common
            names are `backbone`, `projection`, `encoder`, `decoder`, `queries`, `box_head`, `class_head` and
            `mask_head`; a detector may have others, which are trained and transferred like the rest.
        scores: How the outputs of the class head are read.
        num_classes: Number of classes, "no object" not counted.
        num_queries: Number of object queries.
        width: Width of the transformer (D).
        feature_channels: Channels of what `features` returns (E).
        patches_join: Which part of a query the feature of a patch is added to, where a task asks for patches.
    """

    patches_join: ClassVar[Literal["content", "position"]] = "position"

    sections: Mapping[str, tuple[str, ...]]
    scores: ClassScores
    num_classes: int
    num_queries: int
    width: int
    feature_channels: int
    _frozen: tuple[str, ...] = ()

    def train_only(self, sections: Iterable[str]) -> None:
        """Train these sections; the others need no gradients and stay in evaluation mode.

        Args:
            sections: Names of sections.

        Raises:
            ConfigError: There is no such section.
        """
        learning = set(sections)
        if unknown := sorted(learning - set(self.sections)):
            known = ", ".join(self.sections)
            raise ConfigError(f"no section {unknown[0]!r}{suggest(unknown[0], self.sections)}; there are {known}")
        for name, parts in self.sections.items():
            for part in parts:
                self.get_submodule(part).requires_grad_(name in learning)
        self._frozen = tuple(part for name, parts in self.sections.items() if name not in learning for part in parts)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Detector":
        """Switch the mode; frozen sections stay in evaluation mode.

        Args:
            mode: True for training, false for evaluation.
        """
        super().train(mode)
        for part in self._frozen:
            self.get_submodule(part).eval()
        return self

    def sampling_layers(self) -> tuple[str, ...]:
        """Return the names of the layers that say where the network looks: offsets of points, and points of queries.

        A small change of theirs moves all that is seen, so that `optim.lr_sampling_factor` gives them a rate of their
        own. A detector that is built of other parts than ours names its own.
        """
        names = {DeformableAttention: "sampling_offsets", PlacedQueries: "reference"}
        return tuple(
            f"{name}.{layer}"
            for name, module in self.named_modules()
            for kind, layer in names.items()
            if isinstance(module, kind)
        )

    @abstractmethod
    def normalise(
        self, pixels: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B c H W"], padding: Bool[Tensor, "B H W"] | None = None
    ) -> Float[Tensor, "B c H W"]:
        """Scale pixels by the mean and deviation that the network expects.

        Args:
            pixels: Bytes from 0 to 255, or floating numbers from 0 to 1.
            padding: True where the canvas holds no image; the result is zero there.
        """

    @abstractmethod
    def features(self, images: Float[Tensor, "B c H W"]) -> Float[Tensor, "B E h w"]:
        """Return the map that describes normalised images, for a backbone its last level; patches go the same way.

        Args:
            images: What `normalise` returned.
        """

    @property
    def in_channels(self) -> int:
        """Channels of the images it takes."""
        return int(getattr(getattr(self, "backbone", None), "in_channels", 3))

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of each map that `levels` returns."""
        return (self.feature_channels,)

    def levels(self, images: Float[Tensor, "B c H W"]) -> tuple[Float[Tensor, "B _ _ _"], ...]:
        """Return the maps that describe normalised images, from fine to coarse; `features` returns the last of them.

        Args:
            images: What `normalise` returned.
        """
        return (self.features(images),)

    def patch_levels(self, images: Float[Tensor, "B c H W"]) -> tuple[Float[Tensor, "B _ _ _"], ...]:
        """Return those of `levels` that describe patches: the last, and finer ones if proposals are compared with them.

        Args:
            images: What `normalise` returned.
        """
        return (self.features(images),)

    def memory(
        self, levels: Sequence[Float[Tensor, "B _ _ _"]], padding: Bool[Tensor, "B H W"] | None = None
    ) -> tuple[Float[Tensor, "B D _ _"], ...]:
        """Return what the encoder makes of images, as maps of the whole canvas, from fine to coarse.

        It needs no queries, and no more of the detector than the sections `projection` and `encoder`. A detector that
        does not tell returns none.

        Args:
            levels: What `levels` returned for the images.
            padding: True where the canvas holds no image; `None` means that all of it does.
        """
        return ()

    @abstractmethod
    def default_queries(self, batch_size: int) -> Queries:
        """Return the detector's own queries, the same for all images: plain detection.

        Args:
            batch_size: Number of images.
        """

    @abstractmethod
    def forward(
        self,
        images: Float[Tensor, "B c H W"],
        padding: Bool[Tensor, "B H W"] | None = None,
        queries: Queries | None = None,
    ) -> Predictions:
        """Detect objects in images.

        Args:
            images: Normalised images.
            padding: True where the canvas holds no image; `None` means that all of it does.
            queries: The queries of the decoder; `None` means the detector's own queries.
        """

    def masks(
        self, predictions: Predictions, image: Int[Tensor, " N"], query: Int[Tensor, " N"]
    ) -> Float[Tensor, "N h w"]:
        """Draw the masks of some predictions of the last layer; each is the same as if all were drawn.

        Args:
            predictions: What `forward` returned.
            image: Image of each mask within the batch.
            query: Query of each mask within its image.

        Returns:
            Logits on the finest level's cells, over the whole canvas with its padding.

        Raises:
            ConfigError: This detector can't draw masks.
        """
        raise ConfigError(
            f"detector: this {type(self).__name__} draws no masks; build it with one that does, such as 'detr' with "
            "detector.masks=true"
        )


@dataclass(frozen=True, kw_only=True)
class DetectorConfig(ABC):
    """The choices that define a detector.

    A configuration with a field `backbone` builds a detector with the submodule `backbone`, which the engine then gives
    its first weights; other detectors have no such field.

    Attributes:
        num_classes: Number of classes, "no object" not counted.
        num_queries: Number of object queries: the most objects that can be found in one image.
    """

    group: ClassVar[str] = "ssldet.detectors"
    cite: ClassVar[str] = ""
    num_classes: int
    num_queries: int

    @abstractmethod
    def build(self) -> Detector:
        """Return the detector with fresh weights (the backbone's as configured)."""


def problems_of_width(width: int, heads: int, shares: int, of_what: str) -> list[str]:
    """Return a message unless the width of a transformer can be divided among its heads, and among other parts of it.

    Args:
        width: Channels of a state.
        heads: Attention heads.
        shares: Number of the other parts.
        of_what: What they are, for the message.
    """
    step = math.lcm(heads, shares)
    if width % step == 0:
        return []
    below = max(step, width // step * step)
    nearest = " or ".join(str(choice) for choice in dict.fromkeys([below, below + step]))
    return [f"width: {width} can't be shared among heads={heads} and the {shares} {of_what}; choose width={nearest}"]


def backbone_of(config: DetectorConfig) -> BackboneConfig | None:
    """Return the configuration of a detector's backbone; `None` for a detector without one.

    Args:
        config: Any detector's; one with a backbone has it in the field `backbone`.
    """
    backbone = getattr(config, "backbone", None)
    return backbone if isinstance(backbone, BackboneConfig) else None
