"""detection recipes -> seconds and peak memory of one optimiser step, at the same image size, side by side.

Each recipe is measured in a process of its own, because a process never gives its peak back. The batch is fixed, so
that reading images has no part in it. `python -m benchmarks.steps` prints the table.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ssldet.chance import generator
from ssldet.data.collate import collate
from ssldet.data.images import ImageRules
from ssldet.data.sources import open_source
from ssldet.engine.assemble import assemble
from ssldet.engine.optim import gradient_norm
from ssldet.engine.progress import Progress
from ssldet.engine.run import Run
from ssldet.engine.sources import prepared
from ssldet.recipe import override
from ssldet.registry import find
from ssldet.task import learning_sections

RECIPES = ("detection/tiny", "detection/deformable-tiny")
"""What is measured unless recipes are named."""


def measure(recipe: str, size: int, batch: int, repeats: int) -> dict[str, Any]:
    """Return seconds and bytes of one optimiser step of a detection recipe, in this process.

    Args:
        recipe: Name of the recipe.
        size: Side in pixels of the generated images, which are not resized.
        batch: Number of images.
        repeats: Number of measured steps; one more comes before them.

    Returns:
        `parameters`: number of trainable parameters. `seconds`: of the shortest step, because other programs only
        lengthen one. `bytes`: by how much the peak of the process's memory grew from before the detector was built.
    """
    changes: dict[str, object] = {"task.scales": (size,), "task.eval_scale": size, "task.max_size": 2 * size}
    run: Run = override(find("ssldet.recipes", recipe)(), changes | {"task.crop": 0.0})
    with tempfile.TemporaryDirectory() as folder:
        made = find("ssldet.datasets", "shapes")(Path(folder), images=batch, size=size)
        source = prepared(run.task, open_source((f"coco:{made}:{Path(folder) / 'images'}",), ImageRules()))
        views = run.task.views(training=True)
        problems = collate([views(source[index], generator("step", index)) for index in range(batch)])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        objective = assemble(run, source)
    objective.detector.train_only(learning_sections(run.task, objective.detector))
    objective.train()
    progress = Progress(objective, run.optim, repeats + 1)
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        progress.begin_step()
        objective(problems).total.backward()
        progress.take_step(gradient_norm(progress.learning))
        times.append(time.perf_counter() - began)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    # Linux counts in units of 1,024 bytes.
    parameters = sum(parameter.numel() for parameter in progress.learning)
    return {"parameters": parameters, "seconds": min(times[1:]), "bytes": 1024 * grown}


def table(measured: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """Return one row per recipe, with ratios to the first.

    Args:
        measured: Recipe -> what `measure` returned.
        title: Conditions of the measurement.
    """
    shown = Table(title=title)
    for column in ("recipe", "M parameters", "s per step", "ratio", "peak MB", "ratio"):
        shown.add_column(column, justify="left" if column == "recipe" else "right")
    first = next(iter(measured.values()))
    for recipe, found in measured.items():
        shown.add_row(
            recipe,
            f"{found['parameters'] / 1e6:.2f}",
            f"{found['seconds']:.3f}",
            f"{found['seconds'] / first['seconds']:.2f}",
            f"{found['bytes'] / 1e6:.0f}",
            f"{found['bytes'] / first['bytes']:.2f}",
        )
    return shown


def main() -> None:
    """Measure each recipe in a process of its own, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__)
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--one", action="store_true", help="measure one recipe in this process, and print JSON")
    chosen = parser.parse_args()
    conditions = ["--size", str(chosen.size), "--batch", str(chosen.batch), "--repeats", str(chosen.repeats)]
    if chosen.one:
        found = measure(chosen.recipes[0], chosen.size, chosen.batch, chosen.repeats)
        sys.stdout.write(json.dumps(found) + "\n")
        return
    measured = {}
    for recipe in chosen.recipes:
        command = [sys.executable, "-m", "benchmarks.steps", recipe, *conditions, "--one"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - this program itself
        measured[recipe] = json.loads(done.stdout)
    title = f"{chosen.batch} images of {chosen.size} x {chosen.size} pixels, threads: {torch.get_num_threads()}"
    Console().print(table(measured, title))


if __name__ == "__main__":
    main()
