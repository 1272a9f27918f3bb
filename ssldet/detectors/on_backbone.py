"""images -> levels of a backbone: what detectors share that look at images through a network of some library."""

from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from ssldet.detectors.base import Detector
from ssldet.nn.backbones import Backbone


class BackboneDetector(Detector):
    """A detector that describes images, and patches alike, by the levels of its backbone.

    Attributes:
        backbone: Normalised images -> levels; the section of that name.
    """

    backbone: Backbone

    def normalise(
        self, pixels: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B c H W"], padding: Bool[Tensor, "B H W"] | None = None
    ) -> Float[Tensor, "B c H W"]:
        """Scale pixels by the backbone's own mean and deviation; padding becomes 0."""
        return self.backbone.normalise(pixels, padding)

    def features(self, images: Float[Tensor, "B c H W"]) -> Float[Tensor, "B E h w"]:
        """Return the backbone's last level for normalised images; patches go the same way."""
        result: Tensor = self.backbone(images)
        return result

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of each level of the backbone."""
        return self.backbone.level_channels

    def levels(self, images: Float[Tensor, "B c H W"]) -> tuple[Float[Tensor, "B _ _ _"], ...]:
        """Return the backbone's levels for normalised images, from fine to coarse."""
        return self.backbone.levels(images)


def network_of(detector: Detector) -> Backbone | None:
    """Return the backbone that a detector is built on; `None` for a detector without one.

    Args:
        detector: Any detector; one with a backbone has it as the submodule of that name.
    """
    backbone = getattr(detector, "backbone", None)
    return backbone if isinstance(backbone, Backbone) else None
