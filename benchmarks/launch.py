"""Plan -> finished runs: each as a process of its own, again and again until nothing is left to do.

Nothing is kept in memory that matters: whatever dies, the next start finds on disk what is finished, what goes on from
its checkpoint and what has not begun.
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
from benchmarks.work import Workplace, run_of
from ssldet.engine.folder import verb_of
from ssldet.errors import ConfigError, StoppedError
from ssldet.recipe import dumps, override

log = logging.getLogger(__name__)

PAUSE = 0.2
"""Seconds between looks at the running processes."""

Start = Callable[[Sequence[str], Mapping[str, str], BinaryIO, BinaryIO], "subprocess.Popen[bytes]"]
"""Command, environment, log, lock -> a process; tests put another in its place."""


def start_process(
    command: Sequence[str], environment: Mapping[str, str], log_file: BinaryIO, lock: BinaryIO
) -> "subprocess.Popen[bytes]":
    """Start a run in a session of its own, so that a keyboard interrupt reaches the runner alone, which passes it on.

    Args:
        command: What to run.
        environment: Its environment.
        log_file: Takes what it says.
        lock: Stays locked as long as it lives.
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
    """Carries out plans.

    Attributes:
        out: Folder of the whole comparison.
        jobs: Processes at a time.
        launcher: Template of the command, see `command_of`; empty starts processes directly.
        seconds: Time to spend; none is unlimited.
        start: Starts a process.
    """

    out: Path
    jobs: int = 1
    launcher: str = ""
    seconds: float | None = None
    start: Start = start_process
    _active: dict[str, tuple[Workplace, "subprocess.Popen[bytes]", float]] = field(default_factory=dict)
    _failed: set[str] = field(default_factory=set)
    _told: set[str] = field(default_factory=set)
    _stopping: str = ""

    def carry_out(self, plan_again: Callable[[], Plan]) -> Plan:
        """Run until everything that can be done is done.

        Args:
            plan_again: Returns the plan as it is with what has been measured so far.

        Returns:
            The last plan.

        Raises:
            StoppedError: By a signal or because the time is spent; everything is saved.
        """
        began, plan, look = time.monotonic(), plan_again(), True
        with self._signals():
            while True:
                if self._reap():
                    plan, look = plan_again(), True
                if self.seconds is not None and time.monotonic() - began > self.seconds:
                    self._stop("the time of --budget is spent")
                if self._stopping and not self._active:
                    raise StoppedError(f"{self._stopping}; all is saved, run the same command again to go on")
                # There is something to start when a run has ended, and something may be while others work here too.
                look = look and not self._stopping and self._launch(plan)
                if not self._active and not look and not self._stopping:
                    return plan
                time.sleep(PAUSE)

    def _launch(self, plan: Plan) -> bool:
        """Start what can be started; returns whether anything waits for somebody else."""
        places = {address: Workplace(self.out, job) for address, job in plan.jobs.items()}
        standings = {address: place.standing() for address, place in places.items() if address not in self._active}
        elsewhere = False
        for address, place in places.items():
            if len(self._active) >= self.jobs:
                break
            done = standings.get(address, "started") == "finished"
            ready = all(standings.get(need) == "finished" for need in place.job.needs)
            if done or not ready or address in self._active or address in self._failed:
                continue
            elsewhere |= not self._begin(place)
        return elsewhere

    def _begin(self, place: Workplace) -> bool:
        """Start or go on with one run; returns False where somebody else is at work on it."""
        address, before = place.job.address, place.owner()
        lock = place.claim()
        if lock is None:
            if address not in self._told:
                log.info("%s  %s: %s is at work on it; waiting", address, place.job.title, before or "another process")
                self._told.add(address)
            return False
        if place.standing() == "finished":
            # It ended between the look and the claim.
            place.release()
            return True
        if before:
            log.info("%s: %s died here; going on from what it saved", address, before)
        try:
            process = self._process(place, lock)
        except BaseException:
            place.release()
            raise
        place.sign(process.pid)
        log.info("%s  started: %s", address, place.job.title)
        self._active[address] = (place, process, time.monotonic())
        return True

    def _process(self, place: Workplace, lock: BinaryIO) -> "subprocess.Popen[bytes]":
        command = self._prepare(place)
        place.write_note(failed="", command=shlex.join(command))
        try:
            with place.log.open("ab") as log_file:
                return self.start(command, self._environment(place.job), log_file, lock)
        except OSError as error:
            raise ConfigError(f"--launcher: {command[0]} can't be started ({error.strerror})") from error

    def _prepare(self, place: Workplace) -> list[str]:
        """Write the recipe and return the command."""
        job, verb = place.job, verb_of(place.job.run)
        if place.run.checkpoints.is_dir() and any(place.run.checkpoints.glob("*.ckpt")):
            return command_of([verb, "--resume", str(place.run.path)], self.launcher, job.address)
        train = specifications(job.train, self.out / "data")
        val = specifications(job.val, self.out / "data") if job.val is not None else ()
        changes: dict[str, object] = {"data.train": train, "data.val": val}
        if job.backbone is not None:
            changes["detector.backbone.weights"] = str(run_of(self.out, job.backbone).weights.resolve())
        place.recipe.write_text(dumps(override(job.run, changes), job.title), encoding="utf-8")
        words = [verb, "--recipe", str(place.recipe), "--out", str(place.run.path)]
        if verb == "finetune":
            start = "scratch" if job.start is None else str(run_of(self.out, job.start).path)
            words = [verb, start, *words[1:], "--data", *train, *(["--val", *val] if val else [])]
        return command_of(words, self.launcher, job.address)

    @staticmethod
    def _environment(job: Job) -> dict[str, str]:
        threads = {} if job.threads is None else {"OMP_NUM_THREADS": str(job.threads)}
        return dict(os.environ) | threads

    def _reap(self) -> bool:
        """Note what became of processes that ended; returns whether there were any."""
        ended = [address for address, (_, process, _) in self._active.items() if process.poll() is not None]
        for address in ended:
            place, process, began = self._active.pop(address)
            seconds = round(time.monotonic() - began, 1)
            standing, code = place.standing(), process.returncode
            launches = [*place.note().get("launches", []), {"seconds": seconds, "exit": code}]
            if standing == "finished":
                place.write_note(launches=launches)
                place.tidy()
                log.info("%s  finished in %.0f s: %s", address, seconds, place.job.title)
            elif self._stopping or code == StoppedError.exit_code:
                # By us, perhaps before it could take any step; or by a scheduler, and then it goes on at once.
                place.write_note(launches=launches)
                log.info("%s  stopped: %s", address, place.job.title)
            else:
                reason = place.last_words() or f"ended with exit code {code}"
                place.write_note(launches=launches, failed=reason)
                self._failed.add(address)
                log.warning("%s  failed (exit code %d): %s\n    %s", address, code, place.job.title, reason)
            place.release()
        return bool(ended)

    def _stop(self, why: str) -> None:
        """Ask every run to save and end, once."""
        if self._stopping:
            return
        self._stopping = why
        for _, process, _ in self._active.values():
            # The whole session: a launcher may have processes of its own.
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
    """Return what to run.

    Args:
        words: Words after `ssldet`.
        launcher: A command in which the word `{command}` stands for the whole command, `{arguments}` for what follows
            `python -m ssldet`, and `{name}` for the address; without either of the first two the command is appended.
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
