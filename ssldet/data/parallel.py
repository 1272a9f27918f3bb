"""a million files -> answers in their order: many files are looked at in many processes, few in threads.

One Python process opens a file and parses its header in some 50 microseconds, whatever the number of its threads. On a
network file system a header costs a journey and no work, so that there are more processes than cores.
"""

import logging
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from ssldet.data.children import end_with_parent
from ssldet.errors import UnreadableError

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

PART = 1024
"""Files that are looked at together."""
FEW = 16
"""Parts below which starting processes takes longer than the work."""
READERS = 8
"""Files that are waited for at the same time, at least."""
MOST_READERS = 32


def over_parts(count: int, look: Callable[[range], Answer], together: int = 0) -> Iterator[Answer]:
    """Yield what a function answers about each part of the numbers from 0 to `count`, in order.

    Args:
        count: How many files there are.
        look: Looks at some of them. It runs in forked processes if there are many files: what it changes is lost.
        together: Files of a part; zero takes as many as are looked at in a moment.
    """
    size = together or (PART if count >= FEW * PART else PART // 4)
    parts = [range(first, min(first + size, count)) for first in range(0, count, size)]
    done = 0
    with warnings.catch_warnings():
        # Decoders warn about what does no harm here.
        warnings.simplefilter("ignore")
        if len(parts) >= FEW and sys.platform == "linux":
            try:
                with _processes(look) as pool:
                    for answer in pool.map(_look, parts):
                        yield answer
                        done += 1
                return
            except (BrokenProcessPool, OSError) as error:
                log.warning("processes that read files ended (%s); this one reads on, which is slower", error)
        with ThreadPoolExecutor(max_workers=READERS) as threads:
            yield from threads.map(look, parts[done:])


def over_images(count: int, ask: Callable[[int], Answer]) -> list[Answer | UnreadableError]:
    """Return what a function answers about each number from 0 to `count`, or what is wrong with the image.

    Args:
        count: How many images there are.
        ask: Number -> an answer, as for `over_parts`; it may raise `UnreadableError`.
    """

    def look(part: range) -> list[Answer | UnreadableError]:
        answers: list[Answer | UnreadableError] = []
        for number in part:
            try:
                answers.append(ask(number))
            except UnreadableError as error:
                answers.append(error)
        return answers

    return [answer for part in over_parts(count, look) for answer in part]


_function: Callable[[range], Any]


def _processes(look: Callable[[range], Any]) -> ProcessPoolExecutor:
    # A fork inherits the function with all that it holds, so that nothing of it is copied.
    return ProcessPoolExecutor(
        max_workers=min(MOST_READERS, max(READERS, len(os.sched_getaffinity(0)))),
        mp_context=multiprocessing.get_context("fork"),
        initializer=_begin,
        initargs=(look,),
    )


def _begin(look: Callable[[range], Any]) -> None:
    global _function  # noqa: PLW0603  # of a process that has one task
    _function = look
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who interrupts means the process that waits


def _look(part: range) -> Any:
    return _function(part)
