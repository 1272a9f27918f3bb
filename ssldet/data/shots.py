"""labelled images -> so few of them that each class has a given number of objects: few-shot training sets."""

import logging

import torch
from jaxtyping import Int
from torch import Tensor

from ssldet import chance
from ssldet.data.sources import PartSource
from ssldet.errors import DataError
from ssldet.escapes import printable
from ssldet.source import Source

log = logging.getLogger(__name__)


def take_shots(whole: Source, shots: int, seed: int) -> PartSource:
    """Return few images that show this many objects of each class, where the set has so many.

    Images are looked at in a random order, once for each object that is wanted, and taken if they show a class that
    still lacks one. So the images for fewer shots are among those for more, with one seed. An image is taken whole:
    leaving out its other labels would teach that these objects are background. Classes that lie beside others therefore
    get more objects than asked for.

    Args:
        whole: Labelled images.
        shots: Objects of each class.
        seed: Which images.

    Raises:
        DataError: The images carry no labels, or these can't be known without reading the images.
    """
    order = torch.randperm(len(whole), generator=chance.generator(seed, "shots")).tolist()
    labels = [_labels(whole, index) for index in order]
    found, taken = torch.zeros(len(whole.classes), dtype=torch.int64), dict[int, None]()
    for wanted in range(1, shots + 1):
        for index, shown in zip(order, labels, strict=True):
            if index not in taken and (found[shown] < wanted).any():
                found += shown.bincount(minlength=len(found))
                taken[index] = None
    places = sorted(taken)
    if not places:
        raise DataError("data.shots: the images show no labelled objects to choose by; set it to 0 to take them all")
    scarce = [printable(name) for name, count in zip(whole.classes, found.tolist(), strict=True) if count < shots]
    log.info(
        "%d of %d images taken, with %d to %d objects of each class (shots %d, seed %d)",
        len(places), len(whole), int(found.min()), int(found.max()), shots, seed,
    )  # fmt: skip
    if scarce:
        log.warning("fewer than %d objects in the whole set: %s", shots, ", ".join(scarce))
    return PartSource(whole, places)


def _labels(whole: Source, index: int) -> Int[Tensor, " T"]:
    targets = whole.targets_of(index)
    if targets is None:
        name = whole.name_of(index) or f"image {index}"
        raise DataError(
            f"data.shots: the labels of {name} are not known before it is read; set it to 0, or name coco:…, voc:… or "
            "yolo:…"
        )
    return targets.labels
