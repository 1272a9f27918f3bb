"""What an accelerator does in the time that it is lent for: `python -m benchmarks gpu`.

The parts come in order of value, and none begins after the time is spent: tests with the marker `gpu`; steps of
pretraining by batch size and precision, with the real loader beside; memory and the largest batch; fine-tuning and
inference against transformers' DETR, where that is installed; matching within own groups against global matching.
Without an accelerator everything but the tests runs on the CPU, to rehearse.
"""

import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing.clock import fastest, write
from downstream.annotations.shapes import write_shapes
from ssldet.engine.evaluate import at_rest, evaluate
from ssldet.engine.guard import TotalLoss, not_finite
from ssldet.engine.optim import gradient_norm
from ssldet.engine.progress import Progress
from ssldet.engine.run import Run
from ssldet.engine.sources import Sources, open_sources, training_batches_of
from ssldet.errors import SetupError
from ssldet.ranks import any_rank
from ssldet.recipe import override
from ssldet.registry import find
from ssldet.types import Batch

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where and on what is measured.

    Attributes:
        device: Where to compute.
        until: When no other part may begin, by the monotonic clock.
        tiny: Small networks and few steps.
        folder: Of generated images.
    """

    device: torch.device
    until: float
    tiny: bool
    folder: Path

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


def measure(out: Path, *, minutes: float, device: str, tiny: bool) -> Iterator[Row]:
    """Measure part after part, and write after each row.

    Args:
        out: JSON file to write.
        minutes: Time to spend; a part that has begun is ended.
        device: Where to compute.
        tiny: Small networks and few steps.

    Yields:
        One row for each measurement; a part that fails gives a row that says why, and the next one begins.

    Raises:
        SetupError: There is no such device.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise SetupError("device: torch sees no CUDA device; rehearse with --device cpu --tiny")
    place = torch.device(device)
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else place.type
    machine, rows = {"device": name, "torch": torch.__version__, "tiny": tiny}, list[Row]()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(device=place, until=time.monotonic() + 60 * minutes, tiny=tiny, folder=Path(folder))
        for part in (tests, steps, memory, against_transformers, matching):
            if bench.seconds_left <= 0:
                return
            try:
                for row in part(bench):
                    rows.append({"part": part.__name__, **row, "seconds_left": round(bench.seconds_left)})
                    write(out, machine, rows)
                    yield rows[-1]
            except Exception as error:  # an accelerator may fail in any way, and the other parts are still worth it
                rows.append({"part": part.__name__, "failed": f"{type(error).__name__}: {str(error)[:300]}"})
                write(out, machine, rows)
                yield rows[-1]


def tests(bench: Bench) -> Iterator[Row]:
    """Run the tests that need an accelerator."""
    if bench.device.type != "cuda" or not Path("tests").is_dir() or find_spec("pytest") is None:
        yield {"left_out": "needs an accelerator, pytest and the folder tests"}
        return
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests", "-p", "no:cacheprovider"]
    limit = max(30.0, bench.seconds_left / 3)
    ended = subprocess.run(  # noqa: S603 - our own
        command, capture_output=True, text=True, timeout=limit, check=False
    )
    yield {"exit_code": ended.returncode, "said": ended.stdout.splitlines()[-5:]}


def _tf32(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def steps(bench: Bench) -> Iterator[Row]:
    """Time a step of pretraining by batch size and precision; the first batch size comes in all precisions."""
    sizes = (4, 8) if bench.tiny else (32, 64, 128, 256)
    on_gpu = bench.device.type == "cuda"
    forms = ("fp32", *(("tf32",) if on_gpu else ()), "bf16", *(("bf16 compiled",) if on_gpu else ()))
    for batch_size in sizes:
        for form in forms:
            if bench.seconds_left <= 0:
                return
            _tf32(form != "fp32")
            precision = "bf16" if form.startswith("bf16") else "32"
            run = bench.run("r50", **{"data.batch_size": batch_size, "precision": precision, "data.workers": 0})
            try:
                trainer = Trainer(run, bench.device, compiled="compiled" in form)
                batch = next(iter(trainer.batches())).to(bench.device)
                seconds = fastest({"step": lambda: trainer.step(batch)}, 3 if bench.tiny else 8)["step"]  # noqa: B023
            except torch.cuda.OutOfMemoryError:
                yield {"batch": batch_size, "form": form, "failed": "out of memory"}
                torch.cuda.empty_cache()
                continue
            row = {"batch": batch_size, "form": form, "images_per_second": round(batch_size / seconds, 1)}
            yield row | {"step_ms": round(1000 * seconds, 1)}
        yield _with_loader(bench, batch_size)
    _tf32(False)


def _with_loader(bench: Bench, batch_size: int) -> Row:
    """Train with the real loader, and return the images per second and the share of time spent waiting for them."""
    workers, count = (0, 3) if bench.tiny else (12, 20)
    changes = {"data.batch_size": batch_size, "precision": "bf16", "data.workers": workers, "budget.steps": count + 4}
    trainer = Trainer(bench.run("r50", **changes), bench.device)
    batches = trainer.batches()
    begun = waited = 0.0
    for number, batch in enumerate(batches):
        if number == 4:  # the first ones warm up
            begun, waited = time.perf_counter(), batches.waited
        trainer.step(batch.to(bench.device, non_blocking=True))
    passed = time.perf_counter() - begun
    return {
        "batch": batch_size,
        "form": "bf16 with loader",
        "images_per_second": round(batch_size * count / passed, 1),
        "data_wait": round((batches.waited - waited) / passed, 3),
        "workers": workers,
    }


def memory(bench: Bench) -> Iterator[Row]:
    """Find the largest batch by doubling, with the memory that each takes."""
    if bench.device.type != "cuda":
        yield {"left_out": "needs an accelerator"}
        return
    batch_size = 32
    while bench.seconds_left > 0 and batch_size <= 4096:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            run = bench.run("r50", **{"data.batch_size": batch_size, "precision": "bf16", "data.workers": 0})
            trainer = Trainer(run, bench.device)
            trainer.step(next(iter(trainer.batches())).to(bench.device))
        except torch.cuda.OutOfMemoryError:
            yield {"batch": batch_size, "failed": "out of memory"}
            return
        yield {"batch": batch_size, "gigabytes": round(torch.cuda.max_memory_allocated() / 1e9, 2)}
        batch_size *= 2


def against_transformers(bench: Bench) -> Iterator[Row]:
    """Compare a step of fine-tuning and inference with transformers' DETR of the same size."""
    if find_spec("transformers") is None:
        yield {"left_out": "transformers is not installed"}
        return
    transformers: Any = import_module("transformers")
    batch_size, side, queries = (2, 96, 10) if bench.tiny else (8, 640, 100)
    name = f"detection/{'tiny' if bench.tiny else 'r50'}"
    train = bench.images(16, side, 1)
    changes = {"data.train": (train,), "data.batch_size": batch_size, "data.workers": 0, "budget.steps": 10}
    shape = {"detector.name": "detr", "detector.backbone.name": "resnet50", "detector.backbone.weights": "none"}
    width = {"detector.width": 256, "detector.heads": 8, "detector.feedforward": 2048, "detector.num_queries": queries}
    layers = {"detector.encoder_layers": 6, "detector.decoder_layers": 6, "task.freeze_backbone": False}
    run = override(find("ssldet.recipes", name)(), {**changes, **shape, **width, **layers, "detector.num_classes": 3})
    trainer = Trainer(run, bench.device)
    batch = next(iter(trainer.batches())).to(bench.device)
    config = transformers.DetrConfig(use_timm_backbone=True, backbone="resnet50", num_queries=queries, num_labels=3)
    config.use_pretrained_backbone = False
    theirs = transformers.DetrForObjectDetection(config).to(bench.device).train()
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-4)
    images = trainer.objective.detector.normalise(batch.images, batch.padding)
    labels = [{"class_labels": one.labels, "boxes": one.boxes} for one in batch.targets]
    mask = (~batch.padding).long()

    def their_step() -> None:
        optimizer.zero_grad()
        theirs(pixel_values=images, pixel_mask=mask, labels=labels).loss.backward()
        optimizer.step()

    yield _compared("fine-tuning step", lambda: trainer.step(batch), their_step, bench)
    theirs.eval()

    def their_answer() -> None:
        theirs(pixel_values=images, pixel_mask=mask)

    with at_rest(trainer.objective, bench.device, run.precision):
        yield _compared("inference", lambda: trainer.objective.answer(batch), their_answer, bench)


def _compared(work: str, ours: Callable[[], object], theirs: Callable[[], object], bench: Bench) -> Row:
    times = fastest({"ours": ours, "theirs": theirs}, 2 if bench.tiny else 10)
    return {"work": work, "against": "transformers' DETR", "ratio": round(times["theirs"] / times["ours"], 3)}


def matching(bench: Bench) -> Iterator[Row]:
    """Train with matching within own groups and with global matching, and measure how well patches are found."""
    total, every = (4, 2) if bench.tiny else (2000, 250)
    side, count = (64, 32) if bench.tiny else (224, 3000)
    changes: dict[str, object] = {
        "data.train": (bench.images(count, side, 0),),
        "data.val": (bench.images(8 if bench.tiny else 200, side, 1),),
        "task.image_sides": (side,),
        "task.eval_side": side,
        "task.longest_side": 2 * side,
        "data.batch_size": 8 if bench.tiny else 32,
        "data.workers": 0 if bench.tiny else 6,
        "budget.steps": total,
    }
    runs = {scope: bench.run("tiny", **changes, **{"task.matching": scope}) for scope in ("own_group", "global")}
    sources = open_sources(next(iter(runs.values())))
    trainers = {scope: Trainer(run, bench.device, sources=sources) for scope, run in runs.items()}
    streams = {scope: iter(trainer.batches()) for scope, trainer in trainers.items()}
    for done in range(every, total + 1, every):
        for scope, trainer in trainers.items():
            for _ in range(every):
                trainer.step(next(streams[scope]).to(bench.device, non_blocking=True))
            assert sources.val is not None
            results = evaluate(trainer.run, trainer.objective, sources.val, bench.device) or {}
            headline = results.get(trainer.run.task.headline, math.nan)
            yield {"matching": scope, "steps": done, trainer.run.task.headline: round(float(headline), 4)}
        if bench.seconds_left <= 0:
            return
