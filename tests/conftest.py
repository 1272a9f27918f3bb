"""What every test may ask for. Imports nothing of ours at the top, so that the shape checks see each module."""

import os
from pathlib import Path

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
