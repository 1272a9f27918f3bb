"""a trained model -> what answers batches of images on a device, in the precision of its training."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from ssldet.engine.evaluate import answers
from ssldet.importing.base import Opened
from ssldet.patches import PatchObjective
from ssldet.types import Answer, Batch, OnePatch
from ssldet.verbs.opening import pick_device


def asking(
    opened: Opened, patches: Sequence[OnePatch] | None = None, device: str = "auto"
) -> Callable[[Iterable[Batch]], Iterator[tuple[Batch, list[Any]]]]:
    """Return what yields every batch with the answer to each of its images, both on the CPU.

    Args:
        opened: The model.
        patches: What to look for instead, with a model that was taught that.
        device: Where to compute: `auto`, `cpu` or `cuda`.
    """
    place = pick_device(device)
    objective = opened.objective.to(place).eval()
    answer: Callable[[Batch], Sequence[Answer]] = objective.answer
    if patches is not None and isinstance(objective, PatchObjective):
        answer = partial(objective.localise, patches=patches)
    return partial(answers, objective, device=place, precision=opened.precision, answer=answer)
