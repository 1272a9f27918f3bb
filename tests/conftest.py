"""What every test may ask for. Imports nothing of ours at the top, so that the shape checks see each module."""

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_chance() -> None:
    torch.manual_seed(0)


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded CPU generator."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images; the test skips, saying so, where it is absent."""
    folder = Path(os.environ.get("SSLDET_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real images: {folder.name} is absent (set SSLDET_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def cases() -> Path:
    """The folder of small inputs that went wrong in other projects; the test skips, saying so, where it is absent."""
    folder = Path(os.environ.get("SSLDET_TEST_CASES", Path(__file__).parents[2] / "shared" / "cases"))
    if not folder.is_dir():
        pytest.skip(f"no cases: {folder.name} is absent (set SSLDET_TEST_CASES)")
    return folder


class Child:
    """A forked copy of this process that does one thing; torch is warm already, so a start costs nothing."""

    def __init__(self, work: Callable[[], object]) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            signal.alarm(60)
            try:
                work()
            except BaseException as error:
                if not hasattr(error, "exit_code"):
                    traceback.print_exc()
                os._exit(getattr(error, "exit_code", 1))
            os._exit(0)

    def wait(self) -> int:
        """Return the exit code, negative for a signal."""
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)

    def ended(self) -> bool:
        """Whether it is over; `wait` may still be called."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal."""
        os.kill(self.pid, number)


@pytest.fixture
def fork() -> type[Child]:
    """`fork(work)` runs `work()` in another process."""
    return Child


@pytest.fixture
def two_ranks(fork: type[Child]) -> Callable[[Callable[[], object]], list[Any]]:
    """`two_ranks(work)` runs `work()` in two processes with the environment of torchrun."""

    def start(work: Callable[[], object]) -> list[Child]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]

        def as_rank(number: int) -> None:
            os.environ |= {
                **{name: str(number) for name in ("RANK", "LOCAL_RANK")},
                **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "2"),
                "GROUP_RANK": "0",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "TORCHELASTIC_RUN_ID": "test",
            }
            work()

        return [fork(lambda number=number: as_rank(number)) for number in (0, 1)]

    return start


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how much was not tested for want of detectron2, which no package index has."""
    reasons = [report.longrepr[2] for report in terminalreporter.stats.get("skipped", []) if report.longrepr]
    if lacking := [reason for reason in reasons if "detectron2 is not installed" in reason]:
        terminalreporter.write_line(f"detectron2 is not installed: {len(lacking)} test files skipped that need it")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Escape half characters in what a test logged and printed: reports travel between processes as UTF-8."""
    report = yield
    report.sections = [(title, text.encode("utf-8", "backslashreplace").decode()) for title, text in report.sections]
    return report
