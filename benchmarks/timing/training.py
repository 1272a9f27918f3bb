"""Steps of training against plain PyTorch, the engine against a bare loop, and checkpoints against waiting for them."""

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import count
from pathlib import Path

import torch

from benchmarks.timing.bench import Bench, Trainer
from benchmarks.timing.clock import Ratio, compared, in_turns, of_processor, of_wall, seconds_of
from benchmarks.timing.floors import beside_a_product, beside_memory, flops_of
from benchmarks.timing.gpu import Trainers
from benchmarks.timing.turns import Worker, in_workers
from ssldet.engine.fit import fit
from ssldet.engine.folder import RunFolder
from ssldet.engine.keeper import Keeper
from ssldet.engine.run import Run
from ssldet.recipe import override

MAP = "task.patch_source=feature_map"
STEPS: dict[str, tuple[dict[str, object], str]] = {
    "as published": ({}, "ours jitters the patches, the plain one does not"),
    MAP: ({"task.patch_source": "feature_map"}, "another task: patches know what lies around them, without jitter"),
    "precision=bf16": ({"precision": "bf16"}, "on a processor that multiplies in bf16"),
}
"""Choice -> changes of the recipe, and a note; all are measured against the plain way in 32 bits."""


def _bench(folder: Path, *, tiny: bool = False) -> Bench:
    return Bench(device=torch.device("cpu"), until=math.inf, tiny=tiny, folder=folder)


def measure_steps(folder: Path, repeats: int) -> Iterator[Ratio]:
    """Yield how many times faster a step of pretraining is than one in plain PyTorch, each in a process of its own.

    Args:
        folder: An existing folder for generated images.
        repeats: Rounds.
    """
    bench = _bench(folder)
    trainers = Trainers(bench, 2)
    work, size = flops_of(trainers.step_of("fp32")), tuple(trainers.batch.images.shape[-2:])
    workers = [Worker(prepare=partial(_step, trainers, changes)) for changes, _ in STEPS.values()]
    rounds = in_workers([*workers, Worker(prepare=partial(trainers.step_of, "plain fp32"))], repeats, warming=1)
    for place, (choice, (_, note)) in enumerate(STEPS.items()):
        row = compared(
            f"pretraining step, ResNet-50, 6 + 6 layers, 100 queries, 10 patches, 2 images of {size[0]} x {size[1]}, "
            f"{choice}",
            "plain PyTorch",
            [(some[place], some[-1]) for some in rounds],
            note,
        )
        yield row if place else beside_a_product(row, work)


def _step(trainers: Trainers, changes: dict[str, object]) -> Callable[[], object]:
    run = override(trainers.run, {"precision": "32", **changes})
    trainer = Trainer(run, trainers.bench.device, sources=trainers.sources)
    return lambda: trainer.step(trainers.batch)


def measure_engine(folder: Path, repeats: int, steps: int = 40) -> Iterator[Ratio]:
    """Yield how the engine compares with a bare loop that reads the same batches and takes the same steps.

    Args:
        folder: An existing folder for generated images and runs.
        repeats: Rounds.
        steps: Steps that are timed; what the engine does before the first one and after the last is not.
    """
    bench = _bench(folder, tiny=True)
    base = bench.run("r50", **{"checkpoint.every_steps": 10_000, "health": 0, "precision": "32", "data.held_out": 0.0})
    places = (folder / f"engine-{number}" for number in count())

    def engine(total: int) -> None:
        fit(override(base, {"budget.steps": total}), RunFolder(next(places)))

    def bare(total: int) -> None:
        _bare(override(base, {"budget.steps": total}), bench)

    few = 5
    ways = [partial(way, total) for way in (engine, bare) for total in (few, few + steps)]
    rounds = in_turns(ways, repeats, of_processor)
    yield compared(
        f"{steps} steps of random_query_patch/tiny by the engine",
        "a bare loop with the same loader",
        [(long - short, bare_long - bare_short) for short, long, bare_short, bare_long in rounds],
        "it also checks each step, and writes lines of metrics",
    )


def _bare(run: Run, bench: Bench) -> None:
    trainer = Trainer(run, bench.device)
    optimizer = trainer.progress.optimizer
    for batch in trainer.batches():
        optimizer.zero_grad()
        trainer.objective(batch).total.backward()
        torch.nn.utils.clip_grad_norm_(trainer.progress.learning, trainer.run.optim.clip)
        optimizer.step()


def measure_checkpoint(folder: Path, repeats: int) -> Iterator[Ratio]:
    """Yield how much longer training would stop for a checkpoint if it waited until that is on the disk.

    Args:
        folder: An existing folder for generated images and a run.
        repeats: Checkpoints.
    """
    bench = _bench(folder)
    trainers = Trainers(bench, 2)
    trainer = Trainer(trainers.run, bench.device, sources=trainers.sources)
    trainer.step(trainers.batch)
    runs = RunFolder.create(folder / "checkpoints", trainers.run)
    rounds = []
    with closing(Keeper(trainers.run, runs, trainers.sources.train)) as keeper:
        keeper.begin(trainer.progress, None)
        for _ in range(repeats):
            trainer.progress.step += 1
            begun = seconds_of(lambda: keeper.save(trainer.progress), of_wall)
            rounds.append((begun, begun + seconds_of(keeper.wait, of_wall)))
    runs.release()
    state = trainer.progress.state_bytes()
    row = compared(
        f"to begin a checkpoint of {state / 1e6:.0f} MB between two steps",
        "waiting until it is written and read back",
        rounds,
        "seconds that pass",
    )
    yield beside_memory(row, 2 * state)
