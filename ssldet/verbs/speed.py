"""Run -> how fast one device takes its steps: measured here, or read from a committed measurement of a named GPU."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ssldet import chance
from ssldet.data.loader import training_batches
from ssldet.defaults import PRETRAIN_LARGE
from ssldet.detectors.base import backbone_of
from ssldet.engine.devices import placement_of, settled, tf32
from ssldet.engine.guard import TotalLoss
from ssldet.engine.optim import gradient_norm
from ssldet.engine.progress import Progress
from ssldet.engine.run import Run
from ssldet.engine.sources import prepared
from ssldet.errors import ConfigError, SsldetError
from ssldet.recipe import override
from ssldet.registry import find
from ssldet.source import Source
from ssldet.task import learning_sections
from ssldet.types import Sample, Skipped, Targets

COMMITTED = "gpu.json"
"""Name of the committed measurement, which `python -m benchmarks gpu` writes."""
MEASURED_RECIPE = PRETRAIN_LARGE
"""The recipe that it measures, with fresh weights, on generated images of 320 pixels."""
MOST_ON_CPU = 4
"""Images of a step that is measured on a CPU; more of them take proportionally long."""
WARM_UP, STEPS = 1, 3
NOISE_SIZE = (480, 640)
"""Height and width of the noise images of a measurement: most of COCO's."""
NOISE_BOXES = 7
"""Boxes of each: COCO's mean."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast one device takes its share of a step.

    Attributes:
        images_per_second: Of one device.
        source: Where the figure is from.
        gigabytes: Most memory of the device that was taken; `None` where nobody measured it.
        memory_source: Where that figure is from.
    """

    images_per_second: float
    source: str
    gigabytes: float | None = None
    memory_source: str = ""


class Noise(Source):
    """Images of noise with boxes, for a measurement that needs no data."""

    def __init__(self, classes: int) -> None:
        """Take the number of classes.

        Args:
            classes: How many there are; zero for a task that reads no labels.
        """
        self._classes = tuple(f"class {number}" for number in range(classes))

    @property
    def classes(self) -> tuple[str, ...]:
        """Numbered names."""
        return self._classes

    @property
    def fingerprint(self) -> str:
        """One for all such sets."""
        return "noise"

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """None."""
        return ()

    def __len__(self) -> int:
        """As many as make an epoch longer than the measurement."""
        return 100_000

    def __getitem__(self, index: int) -> Sample:
        """Draw one image."""
        generator = chance.generator("noise", index)
        height, width = NOISE_SIZE
        image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        sizes = 0.05 + 0.3 * torch.rand(NOISE_BOXES, 2, generator=generator)
        places = sizes / 2 + (1 - sizes) * torch.rand(NOISE_BOXES, 2, generator=generator)
        labels = torch.randint(0, max(1, len(self._classes)), (NOISE_BOXES,), generator=generator)
        targets = Targets(boxes=torch.cat([places, sizes], 1), labels=labels)
        return Sample(image=image, targets=targets, key=str(index), original_size=NOISE_SIZE)


def measure(run: Run, share: int) -> Speed:
    """Take a few steps of a run here, on images of noise, and time them.

    Args:
        run: The configuration.
        share: Images that each device computes at once.

    Raises:
        ConfigError: The task needs more of its images than noise has.
        SetupError: The device is not there.
    """
    run = settled(run)
    kind = placement_of(replace(run, devices=1)).kind
    count = share if kind != "cpu" else min(share, MOST_ON_CPU)
    fixed: dict[str, object] = {
        "data.batch_size": count,
        "optim.accumulate": 1,
        "data.workers": 0,
        "data.unlabelled": (),
    }
    fixed |= {"budget.steps": WARM_UP + STEPS}
    run = override(run, _without_weights(run) | fixed)
    try:
        seconds, gigabytes = _timed(run, torch.device(kind))
    except SsldetError as error:
        raise ConfigError(
            f"a step can't be measured on images of noise: {error}; see --dry-run with your own"
        ) from error
    name = torch.cuda.get_device_name() if kind == "cuda" else f"this machine's {kind.upper()}"
    source = (
        f"measured here: {STEPS} steps of {count} noise images of {NOISE_SIZE[1]} x {NOISE_SIZE[0]}, {name}, "
        f"precision {run.precision}{tf32(kind)}, without reading files"
    )
    return Speed(
        images_per_second=count / seconds, source=source, gigabytes=gigabytes,
        memory_source="" if gigabytes is None else f"the same steps, {count} images at once",
    )  # fmt: skip


def committed(run: Run, share: int) -> Speed | None:
    """Return what was measured on a GPU and committed; `None` where nothing is there or the run is of another kind.

    Args:
        run: The configuration.
        share: Images that each device computes at once.
    """
    place = _committed_file()
    if place is None or not _is_measured_recipe(run):
        return None
    document = json.loads(place.read_text(encoding="utf-8"))
    form = {"32": "fp32"}.get(run.precision, "bf16")
    rows = [row for row in document["results"] if "failed" not in row]
    steps = [row for row in rows if row["part"] == "steps" and row.get("form") == form]
    if not steps:
        return None
    nearest = min(steps, key=lambda row: abs(row["batch"] - share))
    device = document["machine"]["device"]
    source = (
        f"committed measurement ({COMMITTED}): {form}, {nearest['batch']} images at once on one {device}, generated "
        "images of 320 pixels, without reading files"
    )
    memory = [row for row in rows if row["part"] == "memory" and "gigabytes" in row and row["batch"] >= share]
    least: Mapping[str, Any] = min(memory, key=lambda row: row["batch"], default={})
    return Speed(
        images_per_second=nearest["images_per_second"],
        source=source,
        gigabytes=least.get("gigabytes"),
        memory_source=f"the same file: bf16, {least['batch']} images at once" if least else "",
    )


def _committed_file() -> Any:
    """Return the file of the measurement: a wheel carries it inside the package, a checkout where it was written."""
    places: Sequence[Any] = (
        files("ssldet") / COMMITTED,
        Path(__file__).parents[2] / "benchmarks" / "results" / COMMITTED,
    )
    return next((place for place in places if place.is_file()), None)


def _is_measured_recipe(run: Run) -> bool:
    """Tell whether a run computes what the measured recipe does, step for step."""
    measured: Run = find("ssldet.recipes", MEASURED_RECIPE)()
    shapes = [override(one, _without_weights(one)).detector for one in (run, measured)]
    return type(run.task) is type(measured.task) and shapes[0] == shapes[1]


def _without_weights(run: Run) -> dict[str, object]:
    return {} if backbone_of(run.detector) is None else {"detector.backbone.weights": "none"}


def _timed(run: Run, device: torch.device) -> tuple[float, float | None]:
    """Return the shortest time of a step in seconds, and the gigabytes of a GPU that were taken at most."""
    source = prepared(run.task, Noise(run.detector.num_classes if run.task.needs.labels else 0))
    objective = run.task.objective(run.detector.build()).to(device)
    objective.detector.train_only(learning_sections(run.task, objective.detector))
    loss, progress = TotalLoss(objective, run.precision), Progress(objective, run.optim, run.total_steps(len(source)))
    objective.train()
    batches = training_batches(
        source, run.task.views(), seed=run.seed, batch_size=run.data.batch_size, total_steps=WARM_UP + STEPS
    )
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = list(islice(_steps(batches, loss, progress, device), WARM_UP + STEPS))
    gigabytes = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None
    return min(times[WARM_UP:]), gigabytes


def _steps(batches: Any, loss: TotalLoss, progress: Progress, device: torch.device) -> Iterator[float]:
    for batch in batches:
        here = batch.to(device)
        _wait(device)
        begun = time.perf_counter()
        progress.begin_step()
        loss.parts.clear()
        loss(here).backward()
        progress.take_step(gradient_norm(progress.learning))
        progress.step += 1
        _wait(device)
        yield time.perf_counter() - begun


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
