"""Measure how fast each form of deformable sampling is, relative to one `grid_sample` per level.

`python -m benchmarks.deformable` measures four levels of 300 by 400 pixels, eight heads and four points, on the CPU or,
if there is one, on a GPU.
"""

import argparse
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ssldet.nn.deformable import Levels, sample_by_bags, sample_by_gather, sample_by_grid

SHAPES = ((38, 50), (19, 25), (10, 13), (5, 7))
WIDTH, HEADS, POINTS = 256, 8, 4
QUERIES = (1_000, 5_000, 20_000)
FORMS = {"bags": sample_by_bags, "gather": sample_by_gather}
Form = Callable[[Tensor, Tensor, Tensor, Levels], Tensor]


def seconds(form: Form, given: tuple[Tensor, Tensor, Tensor, Levels], *, backward: bool, repeats: int = 3) -> float:
    """Return the shortest duration of several calls in seconds.

    Args:
        form: The function to measure.
        given: Its arguments.
        backward: Also compute gradients.
        repeats: Number of calls.
    """
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        with torch.set_grad_enabled(backward):
            answer = form(*given)
        if backward:
            torch.autograd.grad(answer, given[:3], torch.ones_like(answer))
        if answer.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])  # the first call warms up


def measure(queries: int, device: str) -> dict[str, float]:
    """Return how many times faster each form is than one `grid_sample` per level.

    Args:
        queries: Number of queries.
        device: Device to measure on.
    """
    maps = [torch.randn(1, WIDTH, *shape, device=device) for shape in SHAPES]
    levels = Levels.of(maps, None)
    places = torch.rand(1, queries, HEADS, len(SHAPES), POINTS, 2, device=device) * levels.sizes.view(-1, 1, 2) - 0.5
    shares = torch.rand(places.shape[:-1], device=device)
    values = levels.join(maps).contiguous()
    given = (values.requires_grad_(), places.requires_grad_(), shares.requires_grad_(), levels)
    ratios = {}
    for name, backward in (("forward", False), ("with backward", True)):
        base = seconds(sample_by_grid, given, backward=backward)
        for form, function in FORMS.items():
            ratios[f"{form}, {name}"] = base / seconds(function, given, backward=backward)
    return ratios


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.deformable", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    device = parser.parse_args().device
    table = Table(title=f"times faster than one grid_sample per level ({device}, {torch.get_num_threads()} threads)")
    table.add_column("queries", justify="right")
    for number, queries in enumerate(QUERIES):
        ratios = measure(queries, device)
        if number == 0:
            for name in ratios:
                table.add_column(name, justify="right")
        table.add_row(f"{queries:,}", *(f"{ratio:.2f}" for ratio in ratios.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
