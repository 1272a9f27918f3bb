"""names that `task.augmentation` takes -> what each of them does to a labelled image, in a line."""

import inspect
import re
import warnings
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch

from ssldet import chance
from ssldet.data.own_transform import GROUP, OwnTransform, registered
from ssldet.errors import ConfigError
from ssldet.registry import names, summary
from ssldet.types import Sample, Targets

BUILT_IN: Mapping[str, str] = MappingProxyType(
    {
        "detr": "Mirror, resize to one of task.scales, and crop in half of the cases, as DETR does.",
        "scale_jitter": "Mirror, scale by any factor in task.jitter_scale, stretch, cut to task.max_size, recolour.",
        "none": "Change nothing: every image is as in evaluation, without mosaic and mixup too.",
    }
)
"""Augmentations that need no registration -> what they do."""
LIBRARY = "torchvision.transforms.v2"
"""Where ready transforms are; `LIBRARY:Name` names one with its own defaults."""
LINK = re.compile(r'`"?([^<`"]+?)"? <[^>]*>`_')
"""A link in a docstring: its title and its address."""
TRIES = 8
"""How often a transform of the library is tried; one that never changes anything is not worth a name."""


def augmentations() -> dict[str, str]:
    """Return each name that can be given, with what it stands for.

    They are the built-in ones, those of installed packages, those registered in this process, and those of
    `torchvision.transforms.v2` that need no arguments and were seen to change an image with its boxes.
    """
    ours = {name: summary(GROUP, name) for name in names(GROUP)}
    return {**BUILT_IN, **ours, **{name: _line(made) for name, made in registered().items()}, **dict(_of_library())}


def _of_library() -> Iterator[tuple[str, str]]:
    from torchvision.transforms import v2  # here, because torchvision takes as long to import as torch

    for name, kind in sorted(vars(v2).items()):
        if inspect.isclass(kind) and issubclass(kind, v2.Transform) and _changes(name, kind):
            yield f"{LIBRARY}:{name}", _line(kind)


def _changes(name: str, kind: type) -> bool:
    """Tell whether a transform can be made without arguments, keeps boxes and labels, and changes an image."""
    sample = _sample()
    with warnings.catch_warnings(action="ignore"):
        try:
            transform = OwnTransform(name=name, transform=kind())
            seen = [transform(sample, chance.generator("augmentations", number)).image for number in range(TRIES)]
        except (ConfigError, TypeError, ValueError):
            return False
    return any(image.shape != sample.image.shape or not torch.equal(image, sample.image) for image in seen)


def _sample() -> Sample:
    """Return an image of faint noise, which changes of contrast show on, with two objects."""
    noise = torch.randint(100, 140, (3, 48, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.2, 0.3, 0.2, 0.2]])
    return Sample(
        image=noise, targets=Targets(boxes=boxes, labels=torch.tensor([0, 1])), key="", original_size=(48, 64)
    )


def _line(thing: Any) -> str:
    """Return the first sentence of a docstring, as far as its first paragraph reaches, with links as their titles."""
    paragraph = LINK.sub(r"\1", " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split()))
    return paragraph.partition(". ")[0].rstrip(".") + "." if paragraph else ""
