"""What an accelerator does in the time that it is lent for: `python -m benchmarks gpu`.

The parts come in order of value, each in a process of its own, and end when the time is spent: tests with the marker
`gpu`; steps of pretraining by batch size and precision against the plain way to write them; the same with the real
loader; fine-tuning and inference against transformers' DETR, where that is installed; memory and the largest batch;
and, where images are given, what pretraining brings a detector with a strong backbone (the suite `ours/small` at its
tiny scale). Without an accelerator everything but the tests runs on the CPU, to rehearse.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.comparing import FinishedComparison, compare
from benchmarks.timing.apart import Row, rows_apart
from benchmarks.timing.bench import Bench, Trainer
from benchmarks.timing.clock import fastest, write
from benchmarks.timing.huggingface import PEER, SIZES, Pair, left_out
from benchmarks.timing.plain import PlainStep, PlainUPDETR
from ssldet.errors import ConfigError, SetupError, StoppedError, suggest
from ssldet.patches import patches_of
from ssldet.recipe import override
from ssldet.regular import read_text


def tests(bench: Bench) -> Iterator[Row]:
    """Run the tests that need an accelerator."""
    if bench.device.type != "cuda" or not Path("tests").is_dir() or find_spec("pytest") is None:
        yield {"left_out": "needs an accelerator, pytest and the folder tests"}
        return
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu", "-p", "no:cacheprovider"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own
    yield {"exit_code": ended.returncode, "said": ended.stdout.splitlines()[-5:]}


def _tf32(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


FORMS = {
    32: ("plain fp32", "fp32", "tf32", "bf16"),
    128: ("plain fp32", "tf32", "bf16", "bf16 channels last"),
    256: ("tf32", "bf16 channels last"),
}
"""Images per batch -> ways to take a step. "plain fp32" is `PlainUPDETR`, whose patches come without jitter."""


def steps(bench: Bench) -> Iterator[Row]:
    """Time a step of pretraining by batch size and precision; the first batch size comes in all forms."""
    forms = {4: ("plain fp32", "fp32", "bf16"), 8: ("fp32", "bf16 channels last")} if bench.tiny else FORMS
    for batch_size, named in forms.items():
        trainers = Trainers(bench, batch_size)
        for form in named:
            if bench.seconds_left <= 0:
                return
            _tf32("fp32" not in form)
            try:
                step = trainers.step_of(form)
                seconds = fastest({"step": step}, 3 if bench.tiny else 6)["step"]
            except torch.cuda.OutOfMemoryError:
                yield {"batch": batch_size, "form": form, "failed": "out of memory"}
                torch.cuda.empty_cache()
                continue
            row = {"batch": batch_size, "form": form, "images_per_second": round(batch_size / seconds, 1)}
            yield row | {"step_ms": round(1000 * seconds, 1)}
    _tf32(False)


class Trainers:
    """One batch on the device, and the ways to take a step with it."""

    def __init__(self, bench: Bench, batch_size: int) -> None:
        self.bench = bench
        self.run = bench.run("r50", **{"data.batch_size": batch_size, "data.workers": 0})
        trainer = Trainer(self.run, bench.device)
        self.sources, self.batch = trainer.sources, next(iter(trainer.batches())).to(bench.device)

    def step_of(self, form: str) -> Callable[[], object]:
        """Return a function that takes one step."""
        if form.startswith("plain"):
            return self._plain()
        run = override(self.run, {"precision": "bf16" if form.startswith("bf16") else "32"})
        trainer = Trainer(run, self.bench.device, sources=self.sources, compiled="compiled" in form)
        if "channels last" in form:
            trainer.objective.detector.to(memory_format=torch.channels_last)
        return lambda: trainer.step(self.batch)

    def _plain(self) -> Callable[[], object]:
        small = {"width": 64, "heads": 4, "feedforward": 128, "layers": 2, "queries": 10} if self.bench.tiny else {}
        step, objective = (
            PlainStep(PlainUPDETR(**small), self.bench.device),
            Trainer(self.run, self.bench.device).objective,
        )
        images = objective.detector.normalise(self.batch.images, self.batch.padding)
        pixels = patches_of(self.batch).pixels
        patches = objective.detector.normalise(pixels.flatten(0, 1)).view(*pixels.shape[:2], 3, *pixels.shape[-2:])
        boxes = torch.stack([one.boxes for one in self.batch.targets])
        return lambda: step(images, self.batch.padding, patches, boxes)


def loading(bench: Bench) -> Iterator[Row]:
    """Train with the real loader: images per second, and the share of time spent waiting for them."""
    batch_size, workers, count = (4, 0, 3) if bench.tiny else (128, 12, 20)
    changes = {"data.batch_size": batch_size, "precision": "bf16", "data.workers": workers, "budget.steps": count + 4}
    trainer = Trainer(bench.run("r50", **changes), bench.device)
    batches = trainer.batches()
    begun = waited = 0.0
    for number, batch in enumerate(batches):
        if number == 4:  # the first ones warm up
            begun, waited = time.perf_counter(), batches.waited
        trainer.step(batch.to(bench.device, non_blocking=True))
    passed = time.perf_counter() - begun
    yield {
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
    batch_size = 128
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
    """Compare a step of fine-tuning and inference with transformers' DETR: the same weights, pixels and labels."""
    if missing := left_out():
        yield {"left_out": missing}
        return
    pair = Pair(bench, [(96, 128), (88, 120)] if bench.tiny else [*SIZES] * 4)
    for work, ways in (("fine-tuning step", pair.steps), ("inference", pair.answers)):
        times = fastest({whose: way() for whose, way in ways.items()}, 2 if bench.tiny else 10)
        yield {"work": work, "against": PEER, "ratio": round(times["theirs"] / times["ours"], 3)}


CLOSING = 60.0
"""Seconds in which the runs of a suite save and its report is written, before the part is killed."""


def transfer(bench: Bench) -> Iterator[Row]:
    """Compare what pretraining on the images and on generated scenes brings the recipes named small."""
    if "images" not in bench.places:
        yield {"left_out": "needs --data images=… train=… val=…"}
        return
    # Beside the runs, which go on in a later call.
    scenes = replace(bench, folder=bench.out / "data").images(1000, 320, 1)
    places = {**bench.places, "images": f"{bench.places['images']},{scenes}"}
    done: FinishedComparison | None = None
    try:
        budget = bench.seconds_left - min(CLOSING, bench.seconds_left / 2)
        found = compare("ours/small", data=places, out=bench.out, jobs=bench.jobs, budget=budget)
        done = found if isinstance(found, FinishedComparison) else None
    except StoppedError as stopped:
        yield {"stopped": str(stopped)}
    yield {"finished": done is not None, "report": str(bench.out)}


PARTS: dict[str, tuple[Callable[[Bench], Iterator[Row]], float]] = {
    "tests": (tests, 0.2),
    "steps": (steps, 0.4),
    "loading": (loading, 0.2),
    "against_transformers": (against_transformers, 0.15),
    "memory": (memory, 0.15),
    "transfer": (transfer, 1.0),
}
"""Name -> part and the share of the whole time after which it is killed."""


def measure(
    out: Path,
    bench: Bench,
    only: Sequence[str] = (),
    parts: Mapping[str, tuple[Callable[[Bench], Iterator[Row]], float]] = PARTS,
) -> Iterator[Row]:
    """Measure part after part, each in a process of its own, and write after each row.

    Args:
        out: JSON file to write; rows of parts that are not measured now stay in it.
        bench: Where and on what is measured.
        only: Names of parts; empty measures all.
        parts: As `PARTS`; functions that another process can import.

    Yields:
        One row for each measurement; a part that fails or takes too long gives a row that says why, and the next one
        begins.

    Raises:
        ConfigError: There is no such part.
        SetupError: There is no such device.
    """
    if wrong := [f"--only: no part {name!r}{suggest(name, list(parts))}" for name in only if name not in parts]:
        raise ConfigError(wrong)
    if bench.device.type == "cuda" and not torch.cuda.is_available():
        raise SetupError("device: torch sees no CUDA device; rehearse with --device cpu --tiny")
    name = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else bench.device.type
    machine = {"device": name, "torch": torch.__version__, "tiny": bench.tiny}
    whole, rows = bench.seconds_left, _kept(out, machine, only)
    for name, (part, share) in parts.items():
        if bench.seconds_left <= 0:
            return
        if only and name not in only:
            continue
        until = min(bench.until, time.monotonic() + share * whole)
        for row in rows_apart(part, bench, until):
            rows.append({"part": name, **row, "seconds_left": round(bench.seconds_left)})
            write(out, machine, rows)
            yield rows[-1]


def _kept(out: Path, machine: Mapping[str, object], only: Sequence[str]) -> list[Row]:
    """Return the rows of a file that stay when some parts are measured anew.

    Raises:
        ConfigError: The file holds what another machine measured.
    """
    if not out.exists():
        return []
    before = json.loads(read_text(out))
    if any(before["machine"][what] != machine[what] for what in ("device", "tiny")) or (
        only and before["machine"] != machine
    ):
        told = ", ".join(f"{what} {value}" for what, value in before["machine"].items())
        raise ConfigError(f"--out {out}: holds measurements of another machine ({told}); name another file")
    return [row for row in before["results"] if row["part"] not in only] if only else []
