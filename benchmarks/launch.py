"""Plan -> finished runs: start each run as a process of its own until no run is left.

All state is on disk: after a crash, the next start finds there which runs are finished, which continue from their
checkpoint and which have not begun.
"""

import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from benchmarks.data import specifications
from benchmarks.plan import Job, Plan
from benchmarks.work import JobFolder, run_of
from pretext.proposal_task import ProposalTask
from ssldet.detectors.base import backbone_of
from ssldet.errors import ConfigError, StoppedError
from ssldet.recipe import dumps, override

log = logging.getLogger(__name__)

PAUSE = 0.2
"""Seconds between checks of the running processes."""

SEARCHED = ("selective_search", "objectness")
"""Ways to propose regions that take long, and find the same boxes in the same image."""

Start = Callable[[Sequence[str], Mapping[str, str], BinaryIO, BinaryIO], "subprocess.Popen[bytes]"]
"""Command, environment, log file, lock -> a process; tests pass another function."""


def start_process(
    command: Sequence[str], environment: Mapping[str, str], log_file: BinaryIO, lock: BinaryIO
) -> "subprocess.Popen[bytes]":
    """Start a run in a process session of its own, so that only the runner gets a keyboard interrupt and forwards it.

    Args:
        command: Command to run.
        environment: Environment variables.
        log_file: Receives its output.
        lock: Lock file, which stays locked as long as the process lives.
    """
    return subprocess.Popen(  # noqa: S603 - the user's own command
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=log_file,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=[lock.fileno()],
    )


@dataclass(kw_only=True)
class Runner:
    """Makes the runs of a plan.

    Attributes:
        out: Folder of the whole comparison.
        jobs: Number of processes at a time.
        launcher: Template of the command, as for `command_of`; an empty string starts processes directly.
        seconds: Seconds to spend; `None` means no limit.
        start: Starts a process.
    """

    out: Path
    jobs: int = 1
    launcher: str = ""
    seconds: float | None = None
    start: Start = start_process
    _active: dict[str, tuple[JobFolder, "subprocess.Popen[bytes]", float]] = field(default_factory=dict)
    _failed: set[str] = field(default_factory=set)
    _announced: set[str] = field(default_factory=set)
    _stopping: str = ""

    def carry_out(self, plan_again: Callable[[], Plan]) -> Plan:
        """Start runs until no run is left that can be made.

        Args:
            plan_again: Returns the plan, given what has been measured so far.

        Returns:
            The last plan.

        Raises:
            StoppedError: A signal came or the time is spent; everything is saved.
        """
        began, plan, look = time.monotonic(), plan_again(), True
        with self._signals():
            while True:
                if self._record_ended():
                    plan, look = plan_again(), True
                if self.seconds is not None and time.monotonic() - began > self.seconds:
                    self._stop("the time of --budget is spent")
                if self._stopping and not self._active:
                    raise StoppedError(f"{self._stopping}; all is saved, run the same command again to go on")
                # Try to start runs after a run has ended, and repeatedly while another runner holds one.
                look = look and not self._stopping and self._launch(plan)
                if not self._active and not look and not self._stopping:
                    return plan
                time.sleep(PAUSE)

    def _launch(self, plan: Plan) -> bool:
        """Start the runs that can be started; return whether a run is locked by another process."""
        folders = {address: JobFolder(self.out, job) for address, job in plan.jobs.items()}
        states = {address: folder.state() for address, folder in folders.items() if address not in self._active}
        locked = False
        for address, folder in folders.items():
            if self._stopping or len(self._active) >= self.jobs:
                break
            done = states.get(address, "started") == "finished"
            ready = all(states.get(need) == "finished" for need in folder.job.needs)
            if done or not ready or address in self._active or address in self._failed:
                continue
            locked |= not self._begin(folder)
        return locked

    def _begin(self, folder: JobFolder) -> bool:
        """Start or continue one run; return `False` if another process has locked it."""
        address, before = folder.job.address, folder.owner()
        lock = folder.claim()
        if lock is None:
            if address not in self._announced:
                log.info("%s  %s: %s is at work on it; waiting", address, folder.job.title, before or "another process")
                self._announced.add(address)
            return False
        if folder.state() == "finished":
            # The run ended after its state was read and before it was locked.
            folder.release()
            return True
        if before:
            log.info("%s: %s died here; going on from what it saved", address, before)
        try:
            process = self._process(folder, lock)
        except BaseException:
            folder.release()
            raise
        folder.sign(process.pid)
        log.info("%s  started: %s", address, folder.job.title)
        self._active[address] = (folder, process, time.monotonic())
        if self._stopping:
            # The signal came while this one was being started.
            os.killpg(process.pid, signal.SIGTERM)
        return True

    def _process(self, folder: JobFolder, lock: BinaryIO) -> "subprocess.Popen[bytes]":
        command = self._prepare(folder)
        folder.write_note(failed="", command=shlex.join(command))
        try:
            with folder.log.open("ab") as log_file:
                return self.start(command, self._environment(folder.job), log_file, lock)
        except OSError as error:
            raise ConfigError(f"--launcher: {command[0]} can't be started ({error.strerror})") from error

    def _prepare(self, folder: JobFolder) -> list[str]:
        """Write the recipe of a run and return its command."""
        job, verb = folder.job, folder.job.run.task.verb
        train = specifications(job.train, self.out / "data")
        val = specifications(job.val, self.out / "data") if job.val is not None else ()
        named = [*(["--data"] if verb == "finetune" else []), *train, *(["--val", *val] if val else [])]
        if job.unlabelled is not None:
            named += ["--unlabelled", *specifications(job.unlabelled, self.out / "data")]
        if folder.run.checkpoints.is_dir() and any(folder.run.checkpoints.glob("*.ckpt")):
            # The images may lie elsewhere by now.
            return command_of([verb, "--resume", str(folder.run.path), *named], self.launcher, job.address)
        changes: dict[str, object] = {"data.train": train, "data.val": val}
        if job.backbone is not None:
            changes["detector.backbone.weights"] = str(run_of(self.out, job.backbone).weights.resolve())
        if isinstance(job.run.task, ProposalTask) and job.run.task.proposals.method in SEARCHED:
            # Seeds and tasks look at the same images; where boxes are kept has no influence on them.
            changes["task.proposals.cache"] = str(self.out.resolve() / "proposals")
        folder.recipe.write_text(dumps(override(job.run, changes), job.title), encoding="utf-8")
        words = ["--recipe", str(folder.recipe), "--out", str(folder.run.path)]
        start = None if job.start is None else str(run_of(self.out, job.start).path)
        if job.exchange:
            network = backbone_of(job.run.detector)
            assert network is not None
            words += ["--backbone", network.name, "--set", f"detector.backbone.weights={network.weights or 'none'}"]
        if verb == "finetune":
            words = [start or "scratch", *words, *named]
        elif start is not None:
            # Images and measures stand in the recipe, as for any pretraining; the detector is that of the start.
            words += ["--start", start]
        words = [verb, *words]
        return command_of(words, self.launcher, job.address)

    @staticmethod
    def _environment(job: Job) -> dict[str, str]:
        threads = {} if job.threads is None else {"OMP_NUM_THREADS": str(job.threads)}
        return dict(os.environ) | threads

    def _record_ended(self) -> bool:
        """Record the processes that have ended; return whether there were any."""
        ended = [address for address, (_, process, _) in self._active.items() if process.poll() is not None]
        for address in ended:
            folder, process, began = self._active.pop(address)
            seconds = round(time.monotonic() - began, 1)
            state, code = folder.state(), process.returncode
            launches = [*folder.note().get("launches", []), {"seconds": seconds, "exit": code}]
            if state == "finished":
                folder.write_note(launches=launches)
                folder.remove_checkpoints()
                log.info("%s  finished in %.0f s: %s", address, seconds, folder.job.title)
            elif self._stopping or code == StoppedError.exit_code:
                # Stopped by us, perhaps before its first step, or by a scheduler; then it is started again at once.
                folder.write_note(launches=launches)
                log.info("%s  stopped: %s", address, folder.job.title)
            else:
                reason = folder.failure_reason() or f"ended with exit code {code}"
                folder.write_note(launches=launches, failed=reason)
                self._failed.add(address)
                log.warning("%s  failed (exit code %d): %s\n    %s", address, code, folder.job.title, reason)
            folder.release()
        return bool(ended)

    def _stop(self, why: str) -> None:
        """Ask every run to save and end, at the first call only."""
        if self._stopping:
            return
        self._stopping = why
        for _, process, _ in self._active.values():
            # To the whole process group: a launcher may have child processes.
            os.killpg(process.pid, signal.SIGTERM)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(number: int, _: object) -> None:
            self._stop(f"stopped by {signal.Signals(number).name}")

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def command_of(words: Sequence[str], launcher: str, name: str) -> list[str]:
    """Return the command of a run.

    Args:
        words: Arguments of `ssldet`.
        launcher: A command in which the word `{command}` stands for the whole command, `{arguments}` for the arguments
            of `python -m ssldet`, and `{name}` for the address; without the first and the second, the command is
            appended.
            It must wait for the run and return its exit code.
        name: Address of the job.

    Raises:
        ConfigError: The launcher's quotes don't match.
    """
    whole = [sys.executable, "-m", "ssldet", *words]
    try:
        template = shlex.split(launcher)
    except ValueError as error:
        raise ConfigError(f"--launcher: {launcher!r} can't be split into words ({error})") from error
    if not {"{command}", "{arguments}"} & set(template):
        template.append("{command}")
    several = {"{command}": whole, "{arguments}": list(words)}
    return [part for word in template for part in several.get(word, [word.replace("{name}", name)])]
