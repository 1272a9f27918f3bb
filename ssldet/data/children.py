"""A process that reads for another one ends with it, however that one ends.

A training that is killed can't tell its workers. Those that wait for work would wait for ever, because each of them
holds the other end of the pipe too; so would one whose batch nobody takes from a pipe that is full.
"""

import multiprocessing
import os
import threading
import time

POLL = 2.0
"""Seconds between two looks at whether the parent lives."""


def end_with_parent() -> None:
    """Let this process, which `multiprocessing` has started, end soon after its parent."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.pid,), daemon=True).start()


def _end_after(parent: int | None) -> None:
    # Not by the parent's sentinel: processes that were started later hold its other end too.
    while os.getppid() == parent:
        time.sleep(POLL)
    os._exit(1)
