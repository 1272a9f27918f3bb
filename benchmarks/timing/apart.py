"""A measurement in a process of its own: its rows as they come, and an end to it when its time is over.

What hangs or dies on an accelerator so costs the rows of one part, never those of the others.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from ssldet.data.children import end_with_parent

Row = dict[str, Any]
Given = TypeVar("Given")
PAUSE = 0.1
"""Seconds to wait for a row before the clock is looked at."""


def rows_apart(
    part: Callable[[Given], Iterator[Row]], given: Given, until: float, *, now: Callable[[], float] = time.monotonic
) -> Iterator[Row]:
    """Yield the rows of a measurement that runs in a process of its own.

    Args:
        part: Makes the rows; a function that another process can import.
        given: Its argument.
        until: When it and whatever it started are killed, by the clock.
        now: The clock.

    Yields:
        The rows; last, where the measurement failed or was killed, one that says so.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_rows, args=(part, given, sender))
    process.start()
    sender.close()
    while True:
        alive = process.is_alive()
        if receiver.poll(PAUSE):
            try:
                yield receiver.recv()
            except EOFError:
                break
        elif not alive:
            break
        elif now() > until:
            _kill(process.pid)
            process.join()
            yield {"failed": "was not done in its time, and killed"}
            return
    process.join()
    if process.exitcode:
        yield {"failed": f"its process ended with exit code {process.exitcode}"}


def _send_rows(part: Callable[[Given], Iterator[Row]], given: Given, sender: Connection) -> None:
    os.setsid()
    end_with_parent()
    try:
        for row in part(given):
            sender.send(row)
    except Exception as error:  # an accelerator may fail in any way, and the other parts are still worth it
        sender.send({"failed": f"{type(error).__name__}: {str(error)[:300]}"})


def _kill(process: int | None) -> None:
    """Kill a process and all that it started, which share its process session."""
    assert process is not None
    try:
        os.killpg(process, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(process, signal.SIGKILL)  # it was not that far yet
