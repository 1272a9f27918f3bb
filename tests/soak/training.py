"""seconds -> a training run of that length, and what it uses of memory, open files and disk while it goes."""

import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from downstream.annotations.shapes import write_shapes
from tests.faults.world import SMALL

WARM_UP, WARM_UP_STEPS = 0.3, 5000
"""Share of the time, and steps, that are left out: caches fill, and the allocator finds its size."""
START = (
    "import sys; names = [sys.intern(f'name {number}') for number in range(1_000_000)]; del names; "
    "from ssldet.cli import main; main(sys.argv[1:])"
)
"""Starts the program with a large table of interned strings. Each new `Path` puts its parts there for as long as it
lives, and when the places are used up, Python rebuilds the table: measured on a loop of paths, a process then holds
3.7 MiB more, later 7.3 MiB more, and nothing more in the four million paths after that. Such a step, at a moment of
chance, would look like a slope."""
MEMORY_SLOPE = 4.0
"""MiB per hour that the memory of the main process and its workers may grow, plus what its scatter explains."""
OPEN_FILES = 4
"""Open files by which the second half after warming up may exceed the first, by their lower quartiles: batches on their
way from workers are open files too, for moments."""
BYTES_PER_STEP = 1000.0
"""Bytes per step by which the run folder may grow: a line of metrics and one of the log."""
LOOK = 2.0
"""Seconds between two looks."""
HELD = ("Anonymous:", "Swap:", "Pss_Shmem:")
"""What Linux calls the memory that a process holds."""
WORKERS = 2
"""Processes that read for the training, all the time; those of an evaluation come and go."""


@dataclass
class Use:
    """What a run used, one entry per look.

    Attributes:
        seconds: Since the start.
        memory: MiB that the main process and its workers hold, see `held_by`.
        files: Open files of the main process.
        disk: Bytes of the run folder.
        steps: Steps done.
        problems: Limits that were broken.
    """

    seconds: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    disk: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    summary: str = ""

    def __str__(self) -> str:
        return "\n".join([self.summary, *self.problems])

    def judge(self, code: int) -> None:
        """Compare with the limits."""
        first = max(int(len(self.seconds) * WARM_UP), sum(step < WARM_UP_STEPS for step in self.steps))
        hours, memory = np.array(self.seconds[first:]) / 3600, np.array(self.memory[first:])
        if code != 75:
            self.problems.append(f"the run ended by exit code {code}, not 75")
        if len(hours) < 10:
            self.problems.append(f"only {len(hours)} looks after warming up; let it run longer")
            return
        (slope, _), covariance = np.polyfit(hours, memory, 1, cov=True)
        doubt = 3 * float(np.sqrt(covariance[0, 0]))
        files = round(np.subtract(*(np.quantile(half, 0.25) for half in np.array_split(self.files[first:], 2)[::-1])))
        steps = self.steps[-1] - self.steps[first]
        growth = (self.disk[-1] - self.disk[first]) / max(1, steps)
        self.summary = (
            f"training: {self.seconds[-1]:.0f} s, {self.steps[-1]} steps; memory {memory[-1]:.0f} MiB, slope "
            f"{slope:+.2f} ± {doubt:.2f} MiB/h (limit {MEMORY_SLOPE}); open files {self.files[-1]}, {files:+d} (limit "
            f"{OPEN_FILES}); disk {growth:.0f} bytes per step (limit {BYTES_PER_STEP:.0f})"
        )
        if slope - doubt > MEMORY_SLOPE:
            self.problems.append(f"memory grows by {slope:.2f} ± {doubt:.2f} MiB per hour")
        if files > OPEN_FILES:
            self.problems.append(f"open files grew by {files}")
        if growth > BYTES_PER_STEP:
            self.problems.append(f"the run folder grows by {growth:.0f} bytes per step")


def train_for(seconds: float, place: Path) -> Use:
    """Pretrain with two workers until the time is up, then stop the run by SIGTERM.

    Args:
        seconds: How long.
        place: Folder to work in.
    """
    write_shapes(place / "made", images=64, seed=1, size=64)
    out = place / "run"
    words = ["pretrain", f"{place}/made/images", "--val", f"{place}/made/images", "--recipe", "random_query_patch/tiny"]
    words += ["--out", str(out), "--steps", "10000000", "--set", *SMALL[:6], "detector.num_queries=10", "device=cpu"]
    words += ["data.batch_size=8", f"data.workers={WORKERS}", "checkpoint.every_steps=50"]
    words += ["evaluate_every=200", "log_every=10"]
    said, use, begun = place / "said", Use(), time.monotonic()
    # Not a fork of this process, whose memory the figures would hold as well.
    with said.open("w") as err, subprocess.Popen([sys.executable, "-c", START, *words], stderr=err) as command:
        while time.monotonic() - begun < seconds and command.poll() is None:
            time.sleep(LOOK)
            look(command.pid, out, use, time.monotonic() - begun)
        command.send_signal(signal.SIGTERM)
    use.judge(command.returncode)
    if command.returncode != 75:
        sys.stderr.write(said.read_text()[-2000:])
    return use


def look(pid: int, out: Path, use: Use, seconds: float) -> None:
    """Take down what a run uses now; nothing if it has not begun or is ending."""
    try:
        metrics = (out / "metrics.jsonl").read_text().splitlines()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        memory = sum(map(held_by, (pid, *map(int, children[:WORKERS]))))
        files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        disk = sum(path.stat().st_size for path in out.rglob("*") if path.is_file() and "checkpoints" not in path.parts)
        steps = metrics[-1].split('"step": ')[1].split(",")[0]
    except (OSError, IndexError):
        return
    use.seconds.append(seconds)
    use.memory.append(memory)
    use.files.append(files)
    use.disk.append(disk)
    use.steps.append(int(steps))


def held_by(pid: int) -> float:
    """Return the MiB that a process holds: pages of no file, in memory or swapped out, and its part of shared memory.

    A page that a worker shares with the process that it was forked from counts in each of them. Counting only what a
    process shares with none would show growth without a leak: whichever of them writes to such a page first, if only to
    a count of references in it, gets a copy of its own, until all that are ever written to are copied. What counts here
    bounds those copies, since none is made of a page that is not held.
    """
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(HELD)) / 1024
