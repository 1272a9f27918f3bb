"""a batch -> the training process: small tensors of a worker's batch as bytes, and each tensor in shared memory."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.timing.clock import Ratio, ratio
from ssldet.data.collate import collate
from ssldet.data.sharing import SHARED_FROM, Packing
from ssldet.types import Batch, Sample, Targets

IMAGES, BOXES, SIDE = 32, 100, 320
BATCHES = 10
"""Batches of one round."""


def measure_handing_over(repeats: int) -> Iterator[Ratio]:
    """Yield how many times less the training process works for a batch that a worker hands over.

    Args:
        repeats: Rounds.
    """
    batches = _Same(repeats)
    pack = Packing(_itself, SHARED_FROM)
    packed: DataLoader[Any] = DataLoader(batches, batch_size=None, num_workers=1, collate_fn=pack)
    shared: DataLoader[Batch] = DataLoader(batches, batch_size=None, num_workers=1)
    yield ratio(
        (f"to receive {BATCHES} batches of {IMAGES} images with {BOXES} boxes from a worker", _taking(iter(packed))),
        ("each tensor in shared memory, as PyTorch does", _taking(iter(shared))),
        repeats,
    )


class _Same(Dataset[Batch]):
    """One batch, as often as all rounds, one to warm up included, need it."""

    def __init__(self, repeats: int) -> None:
        self._count = BATCHES * (repeats + 1)
        image = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
        numbers = torch.arange(BOXES)
        samples = [
            Sample(
                image=image,
                targets=Targets(boxes=torch.rand(BOXES, 4), labels=numbers.clone(), groups=numbers.clone()),
                key="",
                original_size=(SIDE, SIDE),
            )
            for _ in range(IMAGES)
        ]
        self._batch = collate(samples)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> Batch:
        return self._batch


def _itself(batch: Any) -> Any:
    return batch


def _taking(batches: Iterator[object]) -> Callable[[], object]:
    def take() -> None:
        for _ in range(BATCHES):
            got = next(batches)
            getattr(got, "unpacked", lambda: None)()

    return take
