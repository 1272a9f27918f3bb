"""command line -> exit code and what it printed, in a forked copy of this process, which has torch loaded already."""

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.util import get_temp_dir
from pathlib import Path

from downstream.metrics import average_precision, coco_engines
from tests.processes import running_of

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGALRM, signal.SIGCHLD)
SECONDS = 240
"""Longest life of a process; generous, because other processes may take most of the machine."""

_groups: set[int] = set()
"""Process groups of the verbs, each a verb and its workers; those of which nothing is left are taken out."""


def nothing() -> None:
    """No fault."""


@dataclass
class Command:
    """A verb that runs in another process.

    Attributes:
        pid: The process.
        out: File of its standard output.
        err: File of its standard error.
    """

    pid: int
    out: Path
    err: Path

    def wait(self) -> int:
        """Return the exit code, negative for a signal."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def ended(self, *, wait: bool = False) -> bool:
        """Whether it is over, perhaps after waiting for that; `wait` may still be called."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | (0 if wait else os.WNOHANG)) is not None

    def seconds(self) -> float:
        """Return the time that processors have spent on it; unlike that of the clock, no other process changes it."""
        return time.clock_gettime((~self.pid << 3) | 2)  # the clock of a process, as Linux numbers it

    def killed_after(self, seconds: float) -> int:
        """Kill it when processors have spent a time on it, unless it has ended, and return its exit code."""
        while not self.ended():
            if self.seconds() >= seconds:
                os.kill(self.pid, signal.SIGKILL)
                break
            time.sleep(0.002)
        return self.wait()


def start(words: Sequence[str], place: Path, fault: Callable[[], object] = nothing) -> Command:
    """Start a verb.

    Args:
        words: Of the command line.
        place: Folder for what it prints.
        fault: Called in the new process before the verb.
    """
    place.mkdir(parents=True, exist_ok=True)
    command = Command(0, place / "out", place / "err")
    sys.stdout.flush()
    sys.stderr.flush()
    command.pid = os.fork()
    if command.pid == 0:
        os.setpgid(0, 0)
        os._exit(_child(words, command, fault))
    _groups.add(command.pid)
    return command


@contextmanager
def tidy() -> Iterator[None]:
    """Require that workers end by themselves, those of killed verbs too, and let no temporary files outlive this."""
    get_temp_dir()  # made here, verbs inherit it; those that are killed could not remove one of their own
    try:
        yield
    finally:
        end = time.monotonic() + SECONDS
        while (left := _survivors()) and time.monotonic() < end:
            time.sleep(0.1)
        for number in left:
            os.kill(number, signal.SIGKILL)
    assert not left, f"processes {left} of verbs that have ended were still there"


def _survivors() -> list[int]:
    """Return the processes of all groups that still run."""
    found = running_of(_groups)
    _groups.intersection_update(found.values())
    return list(found)


def _child(words: Sequence[str], command: Command, fault: Callable[[], object]) -> int:
    try:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.alarm(SECONDS)
        if "hotcoco" in sys.modules:
            # Its threads did not come along; whoever waits for them waits for ever. The slow engine gives the same.
            average_precision.fastest = lambda: coco_engines.by_pycocotools  # type: ignore[assignment]
        for number, path in ((1, command.out), (2, command.err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        from ssldet import cli

        fault()
        cli.main(words)
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        os.write(2, traceback.format_exc().encode())
        return 99
    return 0


def without_privileges() -> None:
    """Give up what lets root write where it is forbidden."""
    if os.geteuid() == 0:
        header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None).capset(header, data) == 0
