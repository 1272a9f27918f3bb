"""name, shape -> tensor: weights and inputs that recorder and tests rebuild alike, so that none are stored.

A number is a pure function of the name of its tensor: a uniform draw from a generator that is seeded with the BLAKE2b
hash of the name, then scaled by the rule of `weight`. Uniform draws are exact bits of the Mersenne Twister; normal ones
would differ between vector units.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Case:
    """A small model of one of the two reference projects, and what it is shown.

    `draw` names the boxes; it is chosen such that no match hangs on rounding.
    """

    project: str
    backbone: str = "resnet18"
    dilation: bool = False
    pre_norm: bool = False
    width: int = 32
    heads: int = 4
    ffn: int = 64
    encoder_layers: int = 2
    decoder_layers: int = 3
    queries: int = 12
    classes: int = 5
    patches: int = 3
    sizes: tuple[tuple[int, int], ...] = ((96, 128), (70, 100), (64, 64))
    original_sizes: tuple[tuple[int, int], ...] = ((480, 640), (333, 500), (201, 200))
    objects: tuple[int, ...] = (4, 0, 2)
    patch_size: int = 64
    draw: str = "a"


CASES = {
    "detr-post-norm": Case(project="detr", draw="b"),
    "detr-pre-norm": Case(project="detr", pre_norm=True),
    "detr-dc5": Case(project="detr", backbone="resnet50", dilation=True, decoder_layers=2),
    "updetr-post-norm": Case(project="updetr", classes=2, objects=(3, 3, 3), draw="b"),
    "updetr-pre-norm": Case(project="updetr", classes=2, objects=(3, 3, 3), pre_norm=True),
}


def uniform(name: str, *shape: int) -> Tensor:
    """Return numbers in -1..1 that depend on nothing but the name and the shape."""
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


GAINS = {"in_proj_weight": 2.5, "class_embed": 3.0, "bbox_embed": 1.5, "q_linear": 4.0, "k_linear": 4.0}


def weight(name: str, shape: torch.Size) -> Tensor:
    """Return a weight that keeps activations near one and predictions apart.

    Matrices and kernels are scaled by their fan-in and by `GAINS`, query embeddings by 4; scales of norms and running
    variances lie around 1, everything else of one axis around 0.
    """
    draw = uniform(name, *shape)
    if name.startswith("query_embed"):
        return draw * 4
    if len(shape) > 1:
        gain = next((gain for part, gain in GAINS.items() if part in name), 1.0)
        return draw * gain * (3 / shape[1:].numel()) ** 0.5
    around = 1.0 if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1) else 0.0
    return around + draw / 4


def weights(shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Return a whole state in the reference's naming."""
    return {name: weight(name, shape) for name, shape in shapes.items()}


def images(case: Case) -> list[Tensor]:
    """Return normalised images of unequal sizes, made of even blocks of 16 pixels."""
    pictures = []
    for number, (height, width) in enumerate(case.sizes):
        blocks = uniform(f"image {number}", 3, height // 16 + 1, width // 16 + 1) * 2
        whole = blocks.repeat_interleave(16, 1).repeat_interleave(16, 2)
        pictures.append(whole[:, :height, :width].contiguous())
    return pictures


def canvas(case: Case) -> tuple[Tensor, Tensor]:
    """Return the images on one canvas, and where the canvas holds none."""
    height, width = (max(side) for side in zip(*case.sizes, strict=True))
    pixels = torch.zeros(len(case.sizes), 3, height, width)
    padding = torch.ones(len(case.sizes), height, width, dtype=torch.bool)
    for place, padded, image in zip(pixels, padding, images(case), strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
        padded[: image.shape[1], : image.shape[2]] = False
    return pixels, padding


def patches(case: Case) -> Tensor:
    """Return normalised query patches, made of even blocks of 16 pixels."""
    blocks = uniform("patches", len(case.sizes), case.patches, 3, case.patch_size // 16, case.patch_size // 16) * 2
    return blocks.repeat_interleave(16, 3).repeat_interleave(16, 4)


def boxes(case: Case) -> list[Tensor]:
    """Return the boxes of each image, normalised cxcywh."""
    found = []
    for number, count in enumerate(case.objects):
        draw = uniform(f"boxes {case.draw} {number}", count, 4)
        found.append(torch.cat([0.5 + 0.25 * draw[:, :2], 0.3 + 0.2 * draw[:, 2:]], 1))
    return found


def labels(case: Case) -> list[Tensor]:
    """Return the class of each box; the label of a query patch is always 1."""
    if case.project == "updetr":
        return [torch.ones(count, dtype=torch.long) for count in case.objects]
    return [torch.arange(count) % case.classes for count in case.objects]


def kept(case: Case) -> Tensor:
    """Return which queries keep the feature of their patch, `Q B`; about one in four loses it."""
    return uniform("kept", case.queries, len(case.sizes)) > -0.5
