"""What a person sees while a run goes."""

import io
import logging
from pathlib import Path

import pytest

from ssldet.engine.log import Display, Meter, logged_to, summary

LINE = {
    "kind": "train",
    "step": 1,
    "loss": 3.41,
    "loss/box": 0.61,
    "metric/iou": 0.57,
    "lr": 1e-4,
    "images_per_second": 612.0,
    "data_wait": 0.02,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_is_for_people() -> None:
    assert summary(LINE) == "loss 3.41 (box 0.61 iou 0.57)  lr 0.0001  612 images/s  waiting for data 2%"
    assert summary({"kind": "eval", "step": 2, "AP": 41.25, "APl": -1.0, "per_class": {"cat": 1.0}}) == "AP 41.25"


def test_without_a_terminal_there_is_a_plain_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("ssldet.engine.log.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    display = Display("Task", 100)
    for step in range(1, 101):
        display.show(LINE | {"step": step})
        now[0] += 1.0
    display.show({"kind": "eval", "step": 100, "AP": 1.5})
    display.close()
    said = stream.getvalue().splitlines()
    assert [int(line.split("step ")[1].split("/")[0]) for line in said] == [*range(1, 100, 5), 100, 100]
    assert said[1].endswith("eta 0:01:34")
    assert said[-1] == "Task  step 100/100  AP 1.5"
    assert "\r" not in stream.getvalue()


def test_a_notebook_shows_one_line_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    monkeypatch.setattr("sys.stderr", stream)
    display = Display("Task", 100)
    for step in range(1, 51):
        display.show(LINE | {"step": step})
    display.show({"kind": "eval", "step": 50, "AP": 1.5})
    display.show(LINE | {"step": 51})
    display.close()
    evaluated, last, rest = stream.getvalue().split("\n")
    assert evaluated.count("\r") == 51
    assert evaluated.rpartition("\r")[2].strip() == "Task  step 50/100  AP 1.5"
    assert last.startswith("\rTask  step 51/100")
    assert rest == ""


def test_on_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    display = Display("Task", 4)
    display.show(LINE)
    display.show({"kind": "eval", "step": 2, "AP": 1.5})
    display.close()
    assert "step 2  AP 1.5" in stream.getvalue()
    assert "\x1b[" in stream.getvalue()


def test_a_narrow_terminal_shows_bar_step_and_eta(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("COLUMNS", "80")
    display = Display("RandomQueryPatch", 30_000)
    display.show(LINE | {"step": 100})
    display.show(LINE | {f"loss/term{number}": 0.5 for number in range(9)} | {"step": 12_000})
    assert display._bar is not None
    display._bar.refresh()
    display.close()
    last = [line for line in stream.getvalue().split("\n") if "12000/30000" in line][-1]
    assert "step 12000/30000  eta 0:00:0" in last
    assert "━" in last


def test_other_ranks_are_silent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RANK", "1")
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    display = Display("Task", 4)
    display.show(LINE)
    display.close()
    with logged_to(tmp_path / "train.log"):
        logging.getLogger("ssldet.x").info("hello")
    assert stream.getvalue() == ""
    assert not (tmp_path / "train.log").exists()


def test_rates_leave_pauses_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("ssldet.engine.log.time.monotonic", lambda: now[0])
    meter, rates = Meter(images=40), []
    for step in range(6, 12):
        now[0] += 4.0 if step < 10 else 8.0
        with meter.paused():
            now[0] += 30.0
            if step in {9, 11}:
                rates.append(meter.rates(images=8 * step, waited=step - 5.0))
            now[0] += 70.0
    assert rates == [{"images_per_second": 2.0, "data_wait": 0.25}, {"images_per_second": 1.0, "data_wait": 0.125}]


def test_the_log_file_takes_what_is_said_and_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("ssldet")
    # What pytest captures travels between its processes as UTF-8, which this name is not.
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "handlers", [logging.NullHandler()])
    before = (logger.level, list(logger.handlers))
    with logged_to(tmp_path / "train.log"):
        logging.getLogger("ssldet.engine").info("ca\udcfft")
    assert (logger.level, list(logger.handlers)) == before
    assert "INFO ca\\udcfft" in (tmp_path / "train.log").read_text()
