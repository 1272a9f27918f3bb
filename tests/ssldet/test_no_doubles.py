"""A step makes no 64-bit floating-point tensor, which Apple's GPUs lack."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from downstream.annotations.shapes import write_shapes
from ssldet.engine.guard import TotalLoss
from ssldet.engine.optim import gradient_norm
from ssldet.engine.progress import Progress
from ssldet.engine.sources import open_sources, training_batches_of
from ssldet.recipe import override
from ssldet.registry import find


class Doubles(TorchDispatchMode):
    """Notes every operation that gives a 64-bit floating-point tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if any(leaf.dtype == torch.float64 for leaf in leaves):
            self.seen.add(str(func))
        return result


@pytest.mark.parametrize("name", ["random_query_patch/tiny", "random_query_patch/deformable-tiny", "detection/tiny"])
def test_a_step_and_an_answer_have_32_bits_at_most(name: str, tmp_path: Path) -> None:
    labels = write_shapes(tmp_path / "shapes", images=4)
    run = override(
        find("ssldet.recipes", name)(),
        {"data.train": (f"coco:{labels}",), "data.workers": 0, "data.batch_size": 4, "optim.ema": 0.9},
    )
    sources = open_sources(run)
    objective = run.task.objective(run.detector.build())
    progress, loss_of = Progress(objective, run.optim, 9), TotalLoss(objective, run.precision)
    batch = next(iter(training_batches_of(run, sources.train, 0)))
    doubles = Doubles()
    with doubles:
        torch.zeros(2).double()
    assert doubles.seen, "the test would see one"
    doubles.seen.clear()
    with doubles:
        progress.begin_step()
        loss_of(batch).backward()
        progress.take_step(gradient_norm(progress.learning))
        objective.eval()
        objective.answer(batch)
    assert not doubles.seen
