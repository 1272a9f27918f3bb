"""stripes:COUNT -> Stripes: drawn images with one box each, read in shards that keep together."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from ssldet import chance
from ssldet.boxes import to_normalised
from ssldet.data.images import ImageRules
from ssldet.source import Source
from ssldet.types import Sample, Skipped, Targets

SHARD = 4
"""Images that are read one after the other, as a tar file would be."""


def open_stripes(rest: str, rules: ImageRules, *, masks: bool = False) -> "Stripes":
    """Open drawn images.

    Args:
        rest: Their number.
        rules: Has no meaning here.
        masks: Has no meaning here.
    """
    return Stripes(count=int(rest))


@dataclass(frozen=True)
class Stripes(Source):
    """Images with one striped rectangle.

    Attributes:
        count: Their number.
    """

    count: int

    @property
    def classes(self) -> tuple[str, ...]:
        """Which way the stripes run."""
        return ("across", "down")

    @property
    def fingerprint(self) -> str:
        """The number says it all."""
        return f"stripes-{self.count}"

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Nothing."""
        return ()

    def __len__(self) -> int:
        """Number of images."""
        return self.count

    def __getitem__(self, index: int) -> Sample:
        """Draw one image."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        generator = chance.generator("stripes", index)
        height, width = (int(side) for side in torch.randint(40, 60, (2,), generator=generator))
        image = torch.full((3, height, width), 90, dtype=torch.uint8)
        left, top = (int(side) for side in torch.randint(2, 15, (2,), generator=generator))
        label = index % 2
        spot = image[:, top : top + 20, left : left + 22]
        (spot[:, ::2] if label == 0 else spot[:, :, ::2]).fill_(230)
        box = torch.tensor([[left, top, left + 22, top + 20]]).float()
        targets = Targets(boxes=to_normalised(box, (height, width)), labels=torch.tensor([label]))
        return Sample(image=image, targets=targets, key=f"stripe {index}", original_size=(height, width))

    def order(self, seed: int, epoch: int) -> Int[Tensor, " N"]:
        """Return shards in drawn order, the images of a shard side by side."""
        shards = torch.arange(self.count).split(SHARD)
        drawn = torch.randperm(len(shards), generator=chance.generator(seed, "shards", epoch))
        return torch.cat([shards[int(number)] for number in drawn])
