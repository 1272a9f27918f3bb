"""Recipe -> what a step of pretraining costs as one thing about it grows: `python -m benchmarks costs`.

One thread of the CPU, ResNet-50, the recipe `random_query_patch/r50` at a small image size. Each point is measured in a
process of its own, because a process never gives its peak of memory back.
"""

import math
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from benchmarks.results import hardware
from benchmarks.timing.apart import Row, rows_apart
from benchmarks.timing.bench import Bench, Trainer
from benchmarks.timing.clock import of_processor, seconds_of, write
from ssldet.errors import SetupError
from ssldet.recipe import override
from ssldet.regular import read_text

BASE = {"batch": 2, "side": 256, "queries": 100, "patches": 10, "layers": 6}
"""What a step has, unless it is what grows: images, their sides in pixels, queries and patches of each, and layers of
the encoder and of the decoder."""
AXES = {
    "batch": (1, 2, 4, 8),
    "side": (128, 192, 256, 384),
    "queries": (100, 300, 600, 900),
    "patches": (1, 5, 10, 20),
    "layers": (1, 2, 4, 6),
}
"""What grows -> its values."""
LIMIT = 600.0
"""Seconds after which the process of a point is killed."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One step to measure.

    Attributes:
        sizes: As `BASE`.
        folder: An existing folder for generated images.
        steps: Steps that count; one more comes before them.
    """

    sizes: Mapping[str, int]
    folder: Path
    steps: int


def measure_costs(out: Path, folder: Path, steps: int, axes: Mapping[str, Sequence[int]] = AXES) -> Iterator[Row]:
    """Measure all points, and write after each.

    Args:
        out: JSON file to write.
        folder: An existing folder for generated images.
        steps: Steps of each point.
        axes: What grows -> its values.

    Yields:
        `axis`, `value`, `seconds` of the processor for a step, and `bytes` by which it raises the process's memory.

    Raises:
        SetupError: A point could not be measured.
    """
    rows: list[Row] = []
    known: dict[tuple[int, ...], Row] = {}
    for axis, values in axes.items():
        for value in values:
            sizes = {**BASE, axis: value}
            key = tuple(sizes.values())
            if key not in known:
                known[key] = next(rows_apart(point, Point(sizes=sizes, folder=folder, steps=steps), _until()))
            if "failed" in known[key]:
                raise SetupError(f"a step with {axis} {value} could not be measured: {known[key]['failed']}")
            rows.append({"axis": axis, "value": value, **known[key]})
            write(out, {**hardware(), "threads": 1, "torch": torch.__version__, "base": BASE}, rows)
            yield rows[-1]


def _until() -> float:
    return time.monotonic() + LIMIT


def point(given: Point) -> Iterator[Row]:
    """Measure one point, in this process.

    Args:
        given: What to measure.

    Yields:
        Its seconds and bytes.
    """
    torch.set_num_threads(1)
    sizes = given.sizes
    bench = Bench(device=torch.device("cpu"), until=math.inf, tiny=False, folder=given.folder)
    changes: dict[str, object] = {
        "data.batch_size": sizes["batch"],
        "data.workers": 0,
        "precision": "32",
        "task.image_sides": (sizes["side"],),
        "task.num_patches": sizes["patches"],
        "detector.num_queries": sizes["queries"],
        "detector.encoder_layers": sizes["layers"],
        "detector.decoder_layers": sizes["layers"],
    }
    trainer = Trainer(override(bench.run("r50"), changes), bench.device)
    batch = next(iter(trainer.batches()))
    before = _bytes_now()
    seconds = [seconds_of(lambda: trainer.step(batch), of_processor) for _ in range(given.steps + 1)]
    # Linux counts in units of 1,024 bytes.
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield {"seconds": float(f"{median(seconds[1:]):.4g}"), "bytes": max(0, peak - before)}


def _bytes_now() -> int:
    pages = int(read_text(Path("/proc/self/statm")).split()[1])
    return pages * resource.getpagesize()
