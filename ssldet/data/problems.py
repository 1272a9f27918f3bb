"""What tasks add to images -> gathered, sliced, compared and drawn, as the annotations of their fields say."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from functools import cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor

from ssldet.types import Batch, Gather, Problem, Sample

LISTED = frozenset({Gather.LIST, Gather.ORIGINAL})
"""Kinds of fields that gather into a list with one entry per image."""


def gathers(problem: Problem) -> dict[str, Gather]:
    """Return how each field of a problem gathers.

    Args:
        problem: Of one image or of several.

    Raises:
        TypeError: The annotation of a field does not say so.
    """
    kind: Any = type(problem)
    return _said_by(kind)


@cache
def _said_by(kind: Any) -> dict[str, Gather]:
    hints = get_type_hints(kind, include_extras=True)
    found = {}
    for field in fields(kind):
        hint = hints[field.name]
        said = (
            [word for word in get_args(hint)[1:] if isinstance(word, Gather)] if get_origin(hint) is Annotated else []
        )
        if not said:
            choices = ", ".join(f"Gather.{choice.name}" for choice in Gather)
            raise TypeError(
                f"{kind.__name__}.{field.name} does not say how it gathers; annotate it as Annotated[TYPE, …] with one "
                f"of {choices}"
            )
        found[field.name] = said[0]
    return found


def gather(samples: Sequence[Sample], collate: Callable[[Sequence[Sample]], Batch]) -> Problem | None:
    """Return the problems of some samples as one.

    Args:
        samples: All of them carry a problem of one kind, or none does.
        collate: Gathers samples that are part of a problem.

    Raises:
        ValueError: Problems differ in kind, or tensors in shape.
    """
    first = samples[0].problem
    kinds = {type(sample.problem).__name__ for sample in samples}
    if len(kinds) > 1:
        raise ValueError(f"the samples of one batch carry different problems: {', '.join(sorted(kinds))}")
    if first is None:
        return None
    keys = [sample.key for sample in samples]
    gathered: dict[str, Any] = {}
    for name, how in gathers(first).items():
        values = [getattr(sample.problem, name) for sample in samples]
        if how is Gather.SAMPLE:
            gathered[name] = collate(values)
        else:
            field = f"{type(first).__name__}.{name}"
            gathered[name] = values if how in LISTED else _stack(field, keys, values)
    return replace(first, **gathered)


def take(problem: Problem, rows: Sequence[int], take_batch: Callable[[Batch, Sequence[int]], Batch]) -> Problem:
    """Return the problem of some images of a batch.

    Args:
        problem: Gathered.
        rows: Places of the images in the batch.
        take_batch: Does the same to a batch that is part of the problem.
    """

    def choose(value: Any, how: Gather) -> Any:
        if value is None:
            return None
        if how is Gather.SAMPLE:
            return take_batch(value, rows)
        if how in LISTED:
            return [value[row] for row in rows]
        return tuple(choose(one, how) for one in value) if isinstance(value, tuple) else value[list(rows)]

    chosen = {name: choose(getattr(problem, name), how) for name, how in gathers(problem).items()}
    return replace(problem, **chosen)


def batches(problem: Problem) -> list[Batch]:
    """Return the batches that are part of a problem, such as that of second views.

    Args:
        problem: Gathered.
    """
    return [getattr(problem, name) for name, how in gathers(problem).items() if how is Gather.SAMPLE]


def change_batches(problem: Problem, change: Callable[[Batch], Batch]) -> Problem:
    """Return a problem with each batch that is part of it changed, in the order of `batches`.

    Args:
        problem: Gathered.
        change: What to do to a batch.
    """
    parts = [name for name, how in gathers(problem).items() if how is Gather.SAMPLE]
    return replace(problem, **{name: change(getattr(problem, name)) for name in parts})


def same(one: Sample, other: Sample) -> bool:
    """Return whether two samples have equal pixels, boxes, labels, masks and problems."""
    pairs = [
        (one.image, other.image),
        (one.targets.boxes, other.targets.boxes),
        (one.targets.labels, other.targets.labels),
    ]
    if type(one.problem) is not type(other.problem) or not all(torch.equal(here, there) for here, there in pairs):
        return False
    if not _equal(one.targets.masks, other.targets.masks):
        return False
    if one.problem is None:
        return True
    return all(_equal(getattr(one.problem, name), getattr(other.problem, name)) for name in gathers(one.problem))


def without_pixels(batch: Batch) -> Batch:
    """Return a batch without its pixels: scoring needs to know what is true, and not how it looks."""
    problem = batch.problem
    if problem is not None:
        emptied: dict[str, Any] = {}
        for name, how in gathers(problem).items():
            value = getattr(problem, name)
            if how is Gather.PIXELS and value is not None:
                emptied[name] = tuple(one[..., :0, :0] for one in _each(value))
                emptied[name] = emptied[name] if isinstance(value, tuple) else emptied[name][0]
            elif how is Gather.SAMPLE:
                emptied[name] = without_pixels(value)
            elif how is Gather.ORIGINAL:
                emptied[name] = [one and replace(one, image=one.image[:, :0, :0]) for one in value]
        problem = replace(problem, **emptied)
    targets = [replace(one, masks=None) for one in batch.targets]
    return replace(
        batch, images=batch.images[:, :, :0, :0], padding=batch.padding[:, :0, :0], targets=targets, problem=problem
    )


def pictures(batch: Batch, number: int) -> Tensor:
    """Return what a task shows beside one image of a batch, enlarged to the size of the largest; empty for nothing.

    Args:
        batch: Images with their problems.
        number: Place of the image.
    """
    shown = list(_shown(batch, number))
    if not shown:
        return torch.zeros(0, 3, 0, 0, dtype=torch.uint8)
    height, width = (max(images.shape[axis] for images in shown) for axis in (2, 3))
    return torch.cat([F.interpolate(images, (height, width), mode="bilinear") for images in shown])


def _shown(batch: Batch, number: int) -> Iterator[Tensor]:
    problem = batch.problem
    for name, how in gathers(problem).items() if problem is not None else ():
        value = getattr(problem, name)
        if how is Gather.SAMPLE:
            height, width = value.sizes[number].tolist()
            yield value.images[number : number + 1, :, :height, :width]
            yield from _shown(value, number)
        elif how is Gather.PIXELS and value is not None:
            for images in _each(value):
                yield _without_empty_end(images[number].flatten(0, -4))


def _without_empty_end(squares: Tensor) -> Tensor:
    """Return the squares up to the last that shows anything: images with fewer than others are filled up with zeros."""
    filled = squares.flatten(1).any(1).nonzero()
    return squares[: int(filled[-1]) + 1 if len(filled) else 0]


def _each(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return bool(torch.equal(one, other))
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, Sample) and isinstance(other, Sample):
        return same(one, other)
    return bool(one == other)


def _stack(name: str, keys: Sequence[str], parts: Sequence[Any]) -> Any:
    shapes = [_shape(part) for part in parts]
    for key, shape in zip(keys, shapes, strict=True):
        if shape != shapes[0]:
            raise ValueError(
                f"{name} of one batch must have one shape, but {keys[0]!r} has {shapes[0]} and {key!r} has {shape}; "
                "the views of the task must give every image the same number and size"
            )
    if parts[0] is None:
        return None
    if isinstance(parts[0], tuple):
        return tuple(torch.stack(column) for column in zip(*parts, strict=True))
    return torch.stack(list(parts))


def _shape(part: Tensor | tuple[Tensor, ...] | None) -> Any:
    if part is None:
        return None
    return tuple(map(_shape, part)) if isinstance(part, tuple) else tuple(part.shape)
