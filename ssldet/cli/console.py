"""log, errors, closed outputs -> lines on standard error and an exit code, never a traceback."""

import errno
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from cyclopts import CycloptsError, MissingArgumentError, UnusedCliTokensError

from ssldet.errors import ConfigError, SsldetError, StoppedError, refused
from ssldet.escapes import EscapingFormatter, printable_lines

TURN_OF_RANK_0 = 15.0
"""Seconds that other processes give rank 0 to say what is wrong with a command, and the launcher to end them."""


def open_streams() -> None:
    """Open the standard streams that were closed when this program was started, such as by `>&-`.

    Files that are opened later would get their numbers, and what is printed would go there. Standard output then
    refuses what is written, like an output whose reader has gone.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


def rank() -> int:
    """Return which of the processes of one run this is, as its launcher says; 0 where there is one."""
    # Not by `ssldet.ranks`, which imports torch: help must be quick.
    told = (os.environ.get(name, "") for name in ("RANK", "LOCAL_RANK"))
    return next((int(value) for value in told if value.isdigit()), 0)


@contextmanager
def logging_to_stderr() -> Iterator[None]:
    """Print log messages of our packages on standard error, one line per message."""
    handler = logging.StreamHandler()
    handler.setFormatter(EscapingFormatter(f"rank {number}: %(message)s" if (number := rank()) else "%(message)s"))
    if number:  # rank 0 says what concerns all
        handler.setLevel(logging.WARNING)
    # `Display` shows the progress of a run on the terminal, and errors are printed at the end.
    handler.addFilter(lambda record: record.levelno > logging.INFO or record.name != "ssldet.engine.reporter")
    handler.addFilter(lambda record: not record.name.endswith(".outcome"))
    loggers = [logging.getLogger(package) for package in ("ssldet", "pretext", "downstream")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def tell(text: str) -> None:
    """Print the result of a verb on standard output, at once; of several processes of one run the first does.

    Raises:
        OSError: It can't be written; names the output, unless that was closed.
    """
    if rank():
        return
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except OSError as error:
        if error.errno in {errno.EPIPE, errno.EBADF}:
            raise
        raise OSError(error.errno, error.strerror, "standard output") from error


def report_error(error: CycloptsError | SsldetError | OSError, verb: Sequence[str]) -> int:
    """Print an error for the user and return its exit code.

    What is wrong with a command is wrong in every process of a run, and rank 0 says it. A launcher ends all processes
    as soon as one has ended, so the others wait for that, and say it only if nobody ends them.

    Args:
        error: What went wrong.
        verb: Words of the command whose help to name.
    """
    if isinstance(error, OSError):
        error = refused(error)
    if isinstance(error, CycloptsError):
        told = printable_lines(_in_words(error))
        where = " ".join(["ssldet", *verb, "--help"])
        lines, code = [f"{_by_rank('error')}: {told} (see: {where})"], ConfigError.exit_code
    else:
        word = "stopped" if isinstance(error, StoppedError) else "error"
        lines, code = [f"{_by_rank(word)}: {line}" for line in str(error).splitlines()], error.exit_code
    if rank() and isinstance(error, CycloptsError | ConfigError):
        time.sleep(TURN_OF_RANK_0)
    with suppress(OSError):  # nobody reads it any more; the exit code still says it
        sys.stderr.writelines(f"{line}\n" for line in lines)
    return code


def _by_rank(word: str) -> str:
    """Return a word with the number of the process that says it, unless that is the first."""
    return f"rank {rank()}: {word}" if rank() else word


def _in_words(error: CycloptsError) -> str:
    """Return what was wrong with the words of a command line."""
    if isinstance(error, MissingArgumentError) and error.argument is not None and error.keyword is None:
        name = error.argument.name
        return f"{name if error.argument.field_info.is_keyword_only else name.lstrip('-').upper()} is missing"
    if isinstance(error, UnusedCliTokensError):
        words = error.unused_tokens or []
        return f"{', '.join(map(repr, words))}: {'one word' if len(words) == 1 else 'words'} too many"
    return str(error)


def delivered(code: int) -> int:
    """Hand over all that was printed, and return the exit code, which says so if that fails.

    Python would try it at its end, and exit with a code of its own.

    Args:
        code: The exit code until now.
    """
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except OSError as error:
            if number == 1 and code == 0:
                code = report_error(error, ())
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return code
