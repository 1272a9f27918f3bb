"""images, proposed boxes -> a transformer to train: what all pretext tasks on region proposals share."""

from dataclasses import dataclass, field
from typing import Annotated

from pretext.proposals import Proposals
from ssldet.data.geometry import problems_of_short_sides
from ssldet.data.photometric import Jitter
from ssldet.recipe import Within
from ssldet.source import Source
from ssldet.task import PretextTask

SIDES = (320, 336, 352, 368, 384, 400, 416, 432, 448, 464, 480)
"""Short sides of UP-DETR."""


@dataclass(frozen=True, kw_only=True)
class ProposalTask(PretextTask):
    """A task that has a detector find proposed regions, and describes them by its backbone, which usually rests.

    Attributes:
        proposals: Where regions come from and which are taken.
        scales: Short sides in pixels, one of which is drawn for each training image.
        max_size: Limit of the long side in pixels, which takes precedence over the short side.
        eval_scale: Short side outside training.
        flip: Probability that a training image is mirrored.
        jitter: Photometric change of the pixels of a region before they are described.
        freeze_backbone: Do not train the backbone, which describes the regions.
        class_weight: Weight of the class, in the loss and in the matching.
        box_l1_weight: Weight of the L1 distance of boxes, likewise.
        box_giou_weight: Weight of the generalised overlap, likewise.
    """

    proposals: Proposals = field(default_factory=Proposals)
    scales: tuple[int, ...] = SIDES
    max_size: Annotated[int, Within(8)] = 600
    eval_scale: Annotated[int, Within(8)] = 480
    flip: Annotated[float, Within(0, 1)] = 0.5
    jitter: Jitter = field(default_factory=Jitter)
    freeze_backbone: bool = True
    class_weight: Annotated[float, Within(0)] = 1.0
    box_l1_weight: Annotated[float, Within(0)] = 5.0
    box_giou_weight: Annotated[float, Within(0)] = 2.0

    def rests(self, section: str) -> bool:
        """Return whether a section is a mask head, or the backbone if that is frozen."""
        return section == "mask_head" or (section == "backbone" and self.freeze_backbone)

    def stays_behind(self, section: str) -> bool:
        """Return whether a section is a mask head, or the class head, whose classes differ from task to task."""
        return section in {"class_head", "mask_head"}

    def prepare(self, source: Source, *, training: bool = True) -> Source:
        """Return the images with the boxes of a file, if the proposals come from one."""
        return self.proposals.within(source)

    def problems(self) -> list[str]:
        """Return what is wrong between fields."""
        return problems_of_short_sides("scales", self.scales)
