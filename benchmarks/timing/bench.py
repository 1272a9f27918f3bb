"""a device, a folder -> runs on generated images, and steps of training without the files of a run, to be measured."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from downstream.annotations.shapes import write_shapes
from ssldet.engine.guard import TotalLoss, not_finite
from ssldet.engine.optim import gradient_norm
from ssldet.engine.progress import Progress
from ssldet.engine.run import Run
from ssldet.engine.sources import Sources, open_sources, training_batches_of
from ssldet.ranks import any_rank
from ssldet.recipe import override
from ssldet.registry import find
from ssldet.types import Batch


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where and on what is measured.

    Attributes:
        device: Where to compute.
        until: When no other part may begin, by the monotonic clock.
        tiny: Small networks and few steps.
        folder: Of generated images.
        places: Name -> data specification, for the suite of the last part; empty leaves that out.
        out: Folder of the suite's runs and reports.
        jobs: Runs of the suite at a time.
    """

    device: torch.device
    until: float
    tiny: bool
    folder: Path
    places: Mapping[str, str] = field(default_factory=dict)
    out: Path = Path("runs/benchmarks")
    jobs: int = 1

    @property
    def seconds_left(self) -> float:
        """Seconds until no other measurement may begin."""
        return self.until - time.monotonic()

    def images(self, count: int, size: int, seed: int) -> str:
        """Return generated labelled images as a data specification."""
        place = self.folder / f"{count}-{size}-{seed}"
        path = place / "instances.json"
        return f"coco:{path if path.exists() else write_shapes(place, images=count, size=size, seed=seed)}"

    def run(self, name: str, **changes: object) -> Run:
        """Return a recipe of random query patches, with fresh weights and on generated images."""
        recipe: Run = find("ssldet.recipes", f"random_query_patch/{'tiny' if self.tiny else name}")()
        size = 64 if self.tiny else 320
        fixed = {"data.train": (self.images(64 if self.tiny else 512, size, 0),), "detector.backbone.weights": "none"}
        return override(recipe, {**fixed, **changes})


class Trainer:
    """A run that takes steps, without the files of a run."""

    def __init__(
        self, run: Run, device: torch.device, *, sources: Sources | None = None, compiled: bool = False
    ) -> None:
        """Build the objective and the optimiser.

        Args:
            run: The configuration.
            device: Where to compute.
            sources: The images, where they are open already.
            compiled: Compile the objective.
        """
        torch.manual_seed(run.seed)
        self.run, self.device, self.sources = run, device, sources or open_sources(run)
        self.objective = run.task.objective(run.detector.build()).to(device)
        self.objective.detector.train_only(
            [name for name in self.objective.detector.sections if not run.task.rests(name)]
        )
        self.progress = Progress(self.objective, run.optim, run.total_steps(len(self.sources.train)))
        self.loss = TotalLoss(self.objective, run.precision)
        self.compute: Callable[[Batch], Any] = torch.compile(self.loss) if compiled else self.loss
        self.objective.train()

    def batches(self) -> Any:
        """Return the batches of the run on the CPU."""
        return training_batches_of(self.run, self.sources.train, self.progress.step)

    def step(self, batch: Batch) -> None:
        """Take one step, as the engine does.

        Args:
            batch: On the device.
        """
        self.progress.begin_step()
        self.loss.parts.clear()
        self.compute(batch).backward()
        norm = gradient_norm(self.progress.learning)
        if not any_rank(not_finite(self.loss.parts, norm)[None])[0]:
            self.progress.take_step(norm)
        self.progress.step += 1
