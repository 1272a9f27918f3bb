"""A step waits for the device twice: for the costs of the matching, and to decide whether the step counts."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.overrides import TorchFunctionMode

from downstream.annotations.shapes import write_shapes
from ssldet.engine.guard import TotalLoss, not_finite
from ssldet.engine.optim import gradient_norm
from ssldet.engine.progress import Progress
from ssldet.engine.sources import open_sources, training_batches_of
from ssldet.ranks import any_rank
from ssldet.recipe import override
from ssldet.registry import find

WAITS = {
    "__bool__", "__float__", "__index__", "__int__", "allclose", "argwhere", "bincount", "cpu", "equal", "is_nonzero",
    "item", "masked_select", "nonzero", "numpy", "tolist", "unique", "unique_consecutive",
}  # fmt: skip
"""Functions whose result the host needs, or whose shape depends on what is in a tensor."""


class Waits(TorchFunctionMode):
    """Counts calls that would wait for an accelerator; on a CPU they look the same."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.__name__
        if name == "to" and any(
            isinstance(given, str) and given == "cpu" for given in (*args[1:], *(kwargs or {}).values())
        ):
            name = "cpu"
        if name in {"__getitem__", "__setitem__"} and _selects(args[1]):
            name = "masked_select"
        if name in WAITS:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


def _selects(index: Any) -> bool:
    places = index if isinstance(index, tuple) else (index,)
    return any(isinstance(place, Tensor) and place.dtype == torch.bool for place in places)


@pytest.mark.parametrize("name", ["random_query_patch/tiny", "detection/tiny"])
def test_a_step_waits_for_costs_and_for_the_finite_check_only(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = write_shapes(tmp_path / "shapes", images=4)
    for number, noise in enumerate(np.random.default_rng(0).integers(0, 255, (4, 70, 80, 3), dtype=np.uint8)):
        Image.fromarray(noise).save(tmp_path / f"{number}.png")
    run = find("ssldet.recipes", name)()
    data = f"coco:{labels}" if run.task.needs.labels and "detection" in name else str(tmp_path)
    run = override(run, {"data.train": (data,), "data.workers": 0, "data.batch_size": 4})
    sources = open_sources(run)
    objective = run.task.objective(run.detector.build())
    progress, loss_of = Progress(objective, run.optim, 9), TotalLoss(objective, run.precision)
    batch = next(iter(training_batches_of(run, sources.train, 0)))
    # On an accelerator, padding is not looked at.
    monkeypatch.setattr("ssldet.detectors.detr.is_padded", lambda padding: True)
    waits = Waits()
    with waits:
        progress.begin_step()
        loss_of(batch).backward()
        norm = gradient_norm(progress.learning)
        any_rank(not_finite(loss_of.parts, norm)[None])
    ids_of_queries = 1 if name.startswith("random") else 0
    assert waits.seen["tolist"] == 1
    assert waits.seen["cpu"] == waits.seen["numpy"] == 1 + ids_of_queries
    assert waits.seen.total() == 1 + 2 * (1 + ids_of_queries)
