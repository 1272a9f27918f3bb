"""Job <-> folder: the files of a run, the lock on it, its state and its results.

`OUT/runs/ADDRESS/` holds `recipe.toml` as it was launched, `job.json` with every launch, `log.txt` with the output, and
`run/`, an ordinary run folder.
"""

import json
import os
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

from benchmarks.plan import Job
from ssldet.disk import Disk, write_whole
from ssldet.engine.folder import RunFolder
from ssldet.jsonlines import read_lines
from ssldet.locks import FolderLock
from ssldet.recipe import fingerprint
from ssldet.regular import read_text

JobState = Literal["waiting", "started", "finished", "failed"]


class JobFolder:
    """The folder of one job."""

    def __init__(self, out: Path, job: Job) -> None:
        """Set the paths without reading or writing anything.

        Args:
            out: Folder of the whole comparison.
            job: The job.
        """
        self.job = job
        self.path = out / "runs" / job.address
        self.run = run_of(out, job.address)
        self.log = self.path / "log.txt"
        self.recipe = self.path / "recipe.toml"
        self._lock = FolderLock(self.path, inherited=True)

    def state(self) -> JobState:
        """Return the state of the job; an interrupted run counts as started."""
        status = self.run.status().get("status")
        if status == "finished" and self.run.weights.is_file():
            return "finished"
        if self.note().get("failed"):
            return "failed"
        return "waiting" if status is None else "started"

    def note(self) -> dict[str, Any]:
        """Return the contents of `job.json`; an empty dictionary if there is no such file."""
        try:
            return dict(json.loads(read_text(self.path / "job.json")))
        except (OSError, ValueError):
            return {}

    def write_note(self, **facts: Any) -> None:
        """Change some entries of `job.json`."""
        document = {"address": self.job.address, "title": self.job.title} | self.note() | facts
        write_whole(self.path / "job.json", (json.dumps(document, indent=2) + "\n").encode(), Disk())

    def claim(self) -> BinaryIO | None:
        """Lock the job, unless another process has locked it.

        The lock is held by the operating system on an open file that the launched process inherits: it lasts as long as
        the runner or the run is alive, and is released when both have ended, even by a crash.

        Returns:
            The open file to pass to the process; `None` if another runner, or a run that outlived its runner, has
            locked the job.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        return self._lock.file if self._lock.take() else None

    def owner(self) -> str:
        """Return the process that holds or held the lock; an empty string if it released the lock itself."""
        return self._lock.owner()

    def sign(self, process: int) -> None:
        """Write the owner of the lock into the folder.

        Args:
            process: The run's process.
        """
        self._lock.sign(f"process {process} of runner {os.getpid()} on {socket.gethostname()}")

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()

    def remove_checkpoints(self) -> None:
        """Remove the checkpoints of a finished run, which are most of its size."""
        shutil.rmtree(self.run.checkpoints, ignore_errors=True)

    def failure_reason(self) -> str:
        """Return why the last launch failed, according to its log."""
        try:
            lines = read_text(self.log, errors="replace").splitlines()
        except OSError:
            return ""
        messages = [line for line in lines if line.startswith(("error:", "stopped:"))] or lines
        return next((line for line in reversed(messages) if line.strip()), "")

    def size(self) -> int:
        """Return the size of the folder in bytes."""
        return sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())

    def record(self) -> dict[str, Any]:
        """Return everything about the job as plain values, without paths on this machine."""
        status, note = self.run.status(), self.note()
        lines = read_lines(self.run.path / "metrics.jsonl")
        state = self.state()
        return {
            "title": self.job.title,
            "purpose": vars(self.job.purpose),
            "task": type(self.job.run.task).__name__,
            "cite": self.job.run.task.cite,
            "kind": kind_of(self.job),
            "status": state,
            "reason": str(note.get("failed") or "") if state == "failed" else "",
            "planned_steps": self.job.steps,
            "batch": self.job.run.data.batch_size,
            "needs": list(self.job.needs),
            "train": self.job.train.name,
            "steps": status.get("steps", 0),
            "seconds": status.get("seconds"),
            "bytes": self.size() if self.path.is_dir() else 0,
            "device": status.get("device", ""),
            "versions": status.get("versions", {}),
            "images": status.get("images"),
            "results": status.get("results", {}) if state == "finished" else {},
            "curve": [numbers_of(line) for line in lines if line.get("kind") == "eval"],
            "losses": thinned([(line["step"], line["loss"]) for line in lines if "loss" in line and "step" in line]),
        }


def run_of(out: Path, address: str) -> RunFolder:
    """Return the run folder of an address.

    Args:
        out: Folder of the whole comparison.
        address: Address of a job.
    """
    return RunFolder(out / "runs" / address / "run")


def results_of(out: Path, address: str) -> dict[str, Any]:
    """Return the results of a run; an empty dictionary while it has not finished."""
    status = run_of(out, address).status()
    return dict(status.get("results", {})) if status.get("status") == "finished" else {}


def kind_of(job: Job) -> str:
    """Return a name that is common to runs with the same cost per step: same task, network, batch and data."""
    run = job.run
    return f"{type(run.task).__name__}-{run.data.batch_size}-{fingerprint(run.detector)[:6]}-{job.train.name}"


def numbers_of(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line of the metrics file, without nested groups."""
    return {name: value for name, value in line.items() if isinstance(value, int | float) and name != "kind"}


def thinned(points: list[tuple[float, float]], most: int = 60) -> list[tuple[float, float]]:
    """Return at most `most` points, evenly chosen, including the last one."""
    if len(points) <= most:
        return points
    return [points[round(number * (len(points) - 1) / (most - 1))] for number in range(most)]
