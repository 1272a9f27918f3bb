"""command line -> exit code and what it printed, in a forked copy of this process, which has torch loaded already."""

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGALRM, signal.SIGCHLD)
SECONDS = 60
"""Longest life of a process."""


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

    def ended(self) -> bool:
        """Whether it is over; `wait` may still be called."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None

    def killed_after(self, seconds: float) -> int:
        """Kill it after a time unless it has ended, and return its exit code."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.ended():
            time.sleep(0.002)
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
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
        os._exit(_child(words, command, fault))
    return command


def _child(words: Sequence[str], command: Command, fault: Callable[[], object]) -> int:
    try:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.alarm(SECONDS)
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
