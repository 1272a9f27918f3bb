"""Path <-> run folder: what a run leaves on disk, who may write there, and how to read it again.

run.toml        the resolved configuration; runs again      lineage.json    the stages before this one
run.json        status, versions, timings, results; nothing about this machine but its devices
metrics.jsonl   one JSON object a line          train.log          what was said
quarantine.jsonl  files that can't be used      captures/          batches whose loss was not finite
checkpoints/    to go on with                   weights/           to hand over: the last and the best
findings.json, examples/   what the last evaluation found, missed and falsely detected
previews/       pictures                        report.html        all of it on one page
"""

import json
import logging
import os
import shlex
import socket
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from uuid import uuid4

from ssldet.blind_scores import finite as finite_number
from ssldet.disk import Disk, write_whole
from ssldet.documents import parse_json
from ssldet.engine.run import Run
from ssldet.engine.steps import Checkpoints
from ssldet.engine.writing import Patience
from ssldet.errors import ConfigError, SetupError, refused
from ssldet.jsonlines import each_line, finite, read_apart, read_lines
from ssldet.locks import NAME as LOCK
from ssldet.locks import FolderLock
from ssldet.ranks import rank
from ssldet.recipe import dumps, fingerprint, load
from ssldet.regular import NotRegularError, open_regular, read_text

log = logging.getLogger(__name__)

SCHEMA = 1
"""Version of this layout."""

_LEFT_BEHIND = (
    "run.toml",
    "metrics.jsonl",
    "metrics.damaged.txt",
    "train.log",
    "transfer.json",
    "lineage.json",
    "findings.json",
    "quarantine.jsonl",
)
"""What a run that never took a step may have written."""


_DAMAGED = "metrics.damaged.txt"
"""Lines of the metrics file that could not be read when the run was resumed."""


class RunFolder:
    """A run on disk; reading needs no lock, training holds it.

    Attributes:
        path: The folder.
        checkpoints: Where training goes on from.
        weights: The file that is handed over: the weights of the last step.
        previews: Pictures drawn on the way.
        captures: What is known about steps that were left out.
    """

    def __init__(self, path: str | Path) -> None:
        """Point at a run; nothing is read or written."""
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.weights = self.path / "weights" / "model.safetensors"
        self.previews = self.path / "previews"
        self.captures = self.path / "captures"
        self._lock = FolderLock(self.path)
        self._patience, self._unsaved = Patience("run.json", self.path), dict[str, Any]()

    @classmethod
    def create(cls, path: str | Path, run: Run, command: str = "") -> "RunFolder":
        """Start a run folder and hold its lock.

        Args:
            path: A folder that does not exist, is empty, or holds a run that never came to its first checkpoint.
            run: Written as `run.toml`.
            command: What the user typed; written on top of it.

        Raises:
            ConfigError: Something is there already.
            SetupError: It can't be made, or another process is at work in it.
        """
        folder = cls(path)
        if rank() != 0:
            return folder
        folder.require_unused(run)
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SetupError(f"{folder.path}: can't be made ({error.strerror}); choose another --out") from error
        folder.lock()
        try:
            # Again, because another process may have begun and ended here since.
            folder.require_unused(run)
        except ConfigError:
            folder.release()
            raise
        # What shows that the folder is ours goes last: after a kill in between it can still be used.
        for name in (*_LEFT_BEHIND, "run.json"):
            (folder.path / name).unlink(missing_ok=True)
        folder.sweep()
        folder.update(schema=SCHEMA, id=uuid4().hex, status="created", steps=0, seed=run.seed, versions=_versions())
        folder.write_run(run, command)
        return folder

    def best_weights(self, step: int) -> Path:
        """Return the file of the weights that measured best at a step."""
        return self.weights.with_name(f"best-{step:06d}.safetensors")

    def best_steps(self) -> list[int]:
        """Return the steps whose weights are kept because they measured best when they were written, in order."""
        found = self.weights.parent.glob("best-*.safetensors")
        return sorted(int(name) for name in (path.stem.removeprefix("best-") for path in found) if name.isdecimal())

    @property
    def held(self) -> bool:
        """Whether this process may write here."""
        return self._lock.file is not None

    def lock(self) -> None:
        """Let no other process write here; the system itself releases the lock of a process that died.

        Raises:
            ConfigError: There is no such folder.
            SetupError: Another process holds it; says which, and what to do.
        """
        if rank() != 0:
            return
        if not self.path.is_dir():
            raise ConfigError(f"{self.path}: no such run")
        if not self._lock.take():
            owner = self._lock.owner() or "another process"
            raise SetupError(f"{self.path}: {owner} is at work here; stop it, or choose another --out")
        self._lock.sign(f"process {os.getpid()} on {socket.gethostname()}")

    def release(self) -> None:
        """Give the lock back."""
        self._lock.release()

    def sweep(self) -> None:
        """Delete what a killed process left half written; the caller must hold the lock."""
        Checkpoints(self.checkpoints).sweep()
        for place in (self.path, self.weights.parent):
            for stage in place.glob("*.tmp-*"):
                stage.unlink(missing_ok=True)

    def run(self) -> Run:
        """Read the configuration.

        Raises:
            ConfigError: This is not a run folder, or its configuration can't be read.
        """
        if not (self.path / "run.toml").exists():
            raise ConfigError(f"{self.path}: not a run folder; it has no run.toml")
        return load(Run, self.path / "run.toml")

    def status(self) -> dict[str, Any]:
        """Read `run.json`; empty where there is none."""
        return self._read_json("run.json")

    @property
    def id(self) -> str:
        """What tells this run from another one of the same configuration; empty for a run of an earlier version."""
        return str(self.status().get("id", ""))

    @property
    def best(self) -> dict[str, Any] | None:
        """The best evaluation whose weights are kept, as `run.json` states it; `None` without one, or a damaged one."""
        best = self.status().get("best")
        if (
            not isinstance(best, dict)
            or finite_number(best.get("value")) is None
            or not isinstance(best.get("step"), int)
        ):
            return None
        return best if {"measure", "file"} <= best.keys() else None

    def lineage(self) -> list[dict[str, Any]]:
        """Read the earlier stages that the run started from; empty where it started from nothing."""
        stages = self._read_json("lineage.json").get("stages", [])
        return [stage for stage in stages if isinstance(stage, dict)] if isinstance(stages, list) else []

    def metrics(self) -> list[dict[str, Any]]:
        """Read the metrics file; a line torn by a kill is left out."""
        return read_lines(self.path / "metrics.jsonl")

    def each_metric(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of the metrics file one after the other; see `metrics`."""
        return each_line(self.path / "metrics.jsonl")

    def update(self, **facts: Any) -> None:
        """Change some entries of `run.json`."""
        self.write_json("run.json", self.status() | self._unsaved | facts)
        self._unsaved = {}

    def note(self, **facts: Any) -> None:
        """Change some entries of `run.json` while training; what can't be written follows with the next change.

        Raises:
            SetupError: Writing failed for the third time in a row.
        """
        self._unsaved |= facts
        self._patience.attempt(self.update)

    def conclude(self, **facts: Any) -> None:
        """Change some entries of `run.json` when the run has failed; this never fails itself."""
        try:
            self.update(**facts)
        except SetupError as error:  # something else than a file stands there
            log.error("%s; how the run ended is not written there", error)
        except OSError as error:
            # The new file has no room, but the old one has the place of its own bytes.
            text = json.dumps(finite(self.status() | self._unsaved | facts), indent=2) + "\n"
            try:
                with open_regular(self.path / "run.json", "r+b") as file:
                    file.write(text.encode())
                    file.truncate()
            except OSError:
                log.error("%s: run.json can't be written (%s), its status is an old one", self.path, error.strerror)

    def write_run(self, run: Run, command: str = "") -> None:
        """Write the configuration.

        Args:
            run: The configuration, resolved.
            command: What the user typed.
        """
        again = f"ssldet {run.task.verb} --recipe THIS_FILE"
        comment = f"Written by ssldet {_versions()['ssldet']}; run it again with: {again}"
        self._write("run.toml", dumps(run, f"{comment}\n{command}".strip()))
        if rank() == 0:
            self.update(fingerprint=fingerprint(run), resume=self.resume_command(run))

    def resume_command(self, run: Run) -> str:
        """Return what to type to go on."""
        return f"ssldet {run.task.verb} --resume {shlex.quote(str(self.path))}"

    def write_json(self, name: str, document: Mapping[str, Any]) -> None:
        """Write a JSON file, whole or not at all."""
        self._write(name, json.dumps(finite(document), indent=2) + "\n")

    def cut_metrics(self, step: int) -> None:
        """Drop what was measured after a step, so that going on from there repeats no line.

        Lines that can't be read are said, and kept in `metrics.damaged.txt`.
        """
        lines, damaged = read_apart(self.path / "metrics.jsonl")
        if damaged:
            numbers = ", ".join(map(str, list(damaged)[:5])) + (", …" if len(damaged) > 5 else "")
            log.warning(
                "metrics.jsonl: %d lines can't be read (line %s); they are left out, and kept in %s",
                len(damaged),
                numbers,
                _DAMAGED,
            )
            before = read_text(self.path / _DAMAGED, errors="replace") if (self.path / _DAMAGED).exists() else ""
            self._write(_DAMAGED, before + "".join(f"{line}\n" for line in damaged.values()))
        kept = [line for line in lines if not isinstance(line.get("step"), int) or line["step"] <= step]
        if kept or (self.path / "metrics.jsonl").exists():
            self._write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    def _is_ours(self) -> bool:
        """Tell whether `run.json` is one of ours; other programs have files of this name."""
        status = self.status()
        versions = status.get("versions")
        return "schema" in status and "status" in status and isinstance(versions, dict) and "ssldet" in versions

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            document = parse_json(read_text(self.path / name))
        except NotRegularError as error:
            raise refused(error) from error
        except (OSError, ValueError):
            return {}
        return document if isinstance(document, dict) else {}

    def _write(self, name: str, text: str) -> None:
        if rank() == 0:
            write_whole(self.path / name, text.encode(), Disk())

    def require_unused(self, run: Run) -> None:
        """Let a run start here only if no other one did.

        Args:
            run: The run.

        Raises:
            ConfigError: Something is there already.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path}: is a file; choose another --out")
        above = next(place for place in self.path.absolute().parents if place.exists())
        if not above.is_dir():
            raise ConfigError(f"{self.path}: {above} is a file; choose another --out")
        names = {entry.name for entry in self.path.iterdir()} if self.path.is_dir() else set()
        if Checkpoints(self.checkpoints).steps() or self.weights.exists():
            go_on = self.resume_command(run)
            raise ConfigError(f"{self.path}: holds a run already; choose another --out, or go on with: {go_on}")
        foreign = {name for name in names if name != LOCK and ".tmp-" not in name}
        if foreign and not self._is_ours():
            raise ConfigError(f"{self.path}: is not empty and not a run; choose another --out")


def _versions() -> dict[str, str]:
    found = {}
    for package in ("ssldet", "torch", "torchvision", "timm", "pytorch-lightning"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
