"""Sample -> Sample by a transform of the user's own, such as one of `torchvision.transforms.v2`.

The transform gets the image and a dictionary of `boxes`, `labels` and, where there are any, `masks`, as tv_tensors, and
returns both. What it draws is a function of (seed, epoch, image), whichever global generator it draws from. What it
returns is checked, since a wrong box would teach a detector something wrong without a word.
"""

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ssldet import chance
from ssldet.boxes import to_absolute, to_normalised
from ssldet.data.geometry import SLIVER
from ssldet.errors import ConfigError, UnreadableError, suggest
from ssldet.registry import find_or_imported, names
from ssldet.source import Source
from ssldet.types import Sample, Targets

GROUP = "ssldet.augmentations"

TRIED = 20
"""Images of which one must be readable, for a transform to be tried before training."""

Transform = Callable[[Any, dict[str, Any]], tuple[Any, Mapping[str, Any]]]
"""Image and targets as tv_tensors -> the same, changed together."""

_registered: dict[str, Any] = {}


def register_augmentation(name: str, transform: Any) -> None:
    """Make a transform available as `task.augmentation=NAME` in this process.

    Args:
        name: The name; the last transform that gets it counts.
        transform: A transform that takes and returns an image and a dictionary of targets, such as a `Compose` of
            `torchvision.transforms.v2`; or a class or a function without arguments that makes one.

    Raises:
        ConfigError: It is not callable, or the name could be mistaken for an import.
    """
    if not callable(transform):
        raise ConfigError(f"augmentation {name!r}: {type(transform).__name__!r} can't be called; give a transform")
    if not name or ":" in name:
        raise ConfigError(f"augmentation {name!r}: choose a name without ':', which stands for module:Object")
    _registered[name] = transform


def registered() -> dict[str, Any]:
    """Return name -> transform of those that were registered in this process."""
    return dict(_registered)


def adopt(transform: Any) -> str:
    """Register a transform under the name of its class, or a free name like it, and return that name."""
    base, number = getattr(transform, "__name__", type(transform).__name__), 1
    name = base
    while _registered.get(name, transform) is not transform or name in names(GROUP):
        number += 1
        name = f"{base}-{number}"
    register_augmentation(name, transform)
    return name


def transform_named(name: str, built_in: tuple[str, ...]) -> "OwnTransform":
    """Return the transform that a run names.

    Args:
        name: A registered name, or `module:Object` of a module that is imported already: files name transforms too.
        built_in: Names that the task knows by itself, for the message.

    Raises:
        ConfigError: There is no such transform, or making one fails.
    """
    if name in _registered:
        made = _registered[name]
    elif ":" in name or name in names(GROUP):
        made = find_or_imported(GROUP, name)
    else:
        known = [*built_in, *_registered, *names(GROUP)]
        raise ConfigError(
            f"task.augmentation: no {name!r}{suggest(name, known)}; there are {', '.join(known)}, module:Object for a "
            "transform of your own or of torchvision (see: ssldet list augmentations), or ssldet.register_augmentation "
            "before you call ssldet"
        )
    try:
        made = made() if _is_factory(made) else made
    except (Exception, SystemExit) as error:
        raise ConfigError(f"task.augmentation: {name!r} can't be made: {_told(error)}") from error
    if not callable(made):
        raise ConfigError(f"task.augmentation: {name!r} is {type(made).__name__!r}, which can't be called")
    return OwnTransform(name=name, transform=made)


def _is_factory(made: Any) -> bool:
    """Tell what makes a transform from a transform: a class, or a function that takes nothing."""
    if isinstance(made, type):
        return True
    if not inspect.isfunction(made):
        return False
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return not [one for one in inspect.signature(made).parameters.values() if one.kind not in kinds]


@dataclass(frozen=True, kw_only=True)
class OwnTransform:
    """Apply a transform and check what it returns.

    Attributes:
        name: What errors call it.
        transform: The transform.
    """

    name: str
    transform: Transform

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Change image, boxes and masks together.

        Raises:
            ConfigError: The transform fails or returns nonsense; names it and the image.
        """
        from torchvision import tv_tensors  # here, because torchvision takes as long to import as torch

        size = (int(sample.image.shape[1]), int(sample.image.shape[2]))
        boxes = to_absolute(sample.targets.boxes, size)
        given: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "labels": sample.targets.labels.clone(),
        }
        if sample.targets.masks is not None:
            given["masks"] = tv_tensors.Mask(sample.targets.masks.clone())
        try:
            with chance.lent(generator):
                answer = self.transform(tv_tensors.Image(sample.image.clone()), given)
        except (Exception, SystemExit) as error:
            raise self._refusal(sample, f"fails: {_told(error)}") from error
        try:
            image, targets = _read(answer, sample.image, with_masks=sample.targets.masks is not None)
        except ValueError as error:
            raise self._refusal(sample, f"returns {error}") from error
        return replace(sample, image=image, targets=targets)

    def try_on(self, source: Source) -> None:
        """Change the first image that can be read: a transform that never works is said before anything is written.

        Args:
            source: The images.

        Raises:
            ConfigError: It fails or returns nonsense.
        """
        for index in range(min(len(source), TRIED)):
            with suppress(UnreadableError):
                self(source[index], chance.generator("try", index))
                return

    def _refusal(self, sample: Sample, what: str) -> ConfigError:
        return ConfigError(
            f"task.augmentation: {self.name!r} {what} (image {sample.key}); mend it, or train without it, by --set "
            "task.augmentation=none"
        )


def _read(answer: Any, given: Tensor, *, with_masks: bool) -> tuple[Tensor, Targets]:
    """Return pixels and targets from what a transform returned, without the boxes that have vanished.

    Raises:
        ValueError: It is nonsense; the text goes on after "returns".
    """
    if not (isinstance(answer, tuple | list) and len(answer) == 2 and isinstance(answer[1], Mapping)):
        raise ValueError(f"{type(answer).__name__!r}; it must return an image and a dictionary of targets")
    image, targets = _pixels(answer[0], given), answer[1]
    size = (int(image.shape[1]), int(image.shape[2]))
    boxes, labels = _corners(targets.get("boxes"), size), targets.get("labels")
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.ndim != 1 or (labels < 0).any():
        raise ValueError("labels that are not the numbers of classes")
    if len(boxes) != len(labels):
        raise ValueError(f"{len(boxes)} boxes and {len(labels)} labels; remove both, as SanitizeBoundingBoxes does")
    masks = _masks(targets.get("masks"), (len(boxes), *size)) if with_masks else None
    height, width = size
    boxes = torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))
    remains = ((boxes[:, 2:] - boxes[:, :2]) > SLIVER).all(1)
    if masks is not None:
        remains &= masks.flatten(1).any(1)
        masks = masks[remains]
    kept = to_normalised(boxes[remains], size)
    return image, Targets(boxes=kept, labels=labels[remains].as_subclass(Tensor), masks=masks)


def _pixels(image: Any, given: Tensor) -> Tensor:
    """Return bytes from a tensor of bytes, or of numbers from 0 to 1; numbers where the given image has them."""
    channels = given.shape[0]
    if not isinstance(image, Tensor) or image.ndim != 3 or image.shape[0] != channels or not image.numel():
        shape = f" of shape {tuple(image.shape)}" if isinstance(image, Tensor) else ""
        wanted = f"a tensor of {channels} x height x width is needed"
        raise ValueError(f"{type(image).__name__!r}{shape} as the image; {wanted}")
    pixels = image.as_subclass(Tensor)
    if pixels.dtype == torch.uint8:
        return pixels
    if not pixels.is_floating_point():
        raise ValueError(f"an image of {pixels.dtype}; give bytes, or numbers from 0 to 1")
    low, high = (float(end) for end in pixels.aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"an image with numbers from {low:g} to {high:g}; they must be from 0 to 1, not normalised")
    return pixels if given.is_floating_point() else (pixels * 255).round().to(torch.uint8)


def _corners(boxes: Any, size: tuple[int, int]) -> Tensor:
    """Return absolute corners; a plain tensor is taken for such."""
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import functional

    if not isinstance(boxes, Tensor) or boxes.ndim != 2 or boxes.shape[1] != 4:
        shape = f" of shape {tuple(boxes.shape)}" if isinstance(boxes, Tensor) else ""
        raise ValueError(f"{type(boxes).__name__!r}{shape} as boxes; four numbers each are needed")
    if isinstance(boxes, tv_tensors.BoundingBoxes):
        if boxes.canvas_size != size:
            raise ValueError(f"boxes on a canvas of {boxes.canvas_size} and an image of {size}, height and width")
        boxes = functional.convert_bounding_box_format(boxes, new_format=tv_tensors.BoundingBoxFormat.XYXY)
    corners: Tensor = boxes.as_subclass(Tensor).float()
    if not corners.isfinite().all():
        raise ValueError("boxes that are not finite")
    return corners


def _masks(masks: Any, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(masks, Tensor) or tuple(masks.shape) != shape:
        found = tuple(masks.shape) if isinstance(masks, Tensor) else type(masks).__name__
        raise ValueError(f"masks of {found}; with these boxes and this image they must be {shape}")
    return masks.as_subclass(Tensor).bool()


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
