"""What went wrong -> one clear line and an exit code: every error that a user may meet.

A message says what, where, the nearest right value and the remedy, in that order. The exit code lets a script
tell "resume me" from "fix your data" without reading the text.
"""

import errno
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import ClassVar

from ssldet.escapes import printable_lines


class SsldetError(Exception):
    """Base of all errors that are the user's to mend; the command line prints it without a traceback."""

    exit_code: ClassVar[int] = 1

    def __str__(self) -> str:
        """Return the message with whatever names from files brought into it escaped; its lines stay lines."""
        return printable_lines(super().__str__())


class ConfigError(SsldetError):
    """A configuration that can't run. Carries all of its problems, not only the first.

    Attributes:
        problems: One line each.
    """

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]) -> None:
        """Join the problems into one message.

        Args:
            problems: One line, or several.
        """
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[list[str]]]:
        """Survive the trip out of a worker process with all problems."""
        return type(self), (self.problems,)


class DataError(SsldetError):
    """Images that can't be used: an empty folder, too many bad files, a set that changed under a run."""

    exit_code = 3


class AnnotationError(DataError):
    """Labels that can't be trusted. The message holds the place (JSON pointer or file and line)."""


class UnreadableError(DataError):
    """One image file that can't be used; the loader replaces it, counts it and goes on.

    Attributes:
        path: The file.
        reason: Why, in one word: `truncated`, `not-an-image`, `too-large`, …
    """

    def __init__(self, path: str, reason: str) -> None:
        """Remember the file and the reason."""
        self.path, self.reason = path, reason
        super().__init__(f"{path}: {reason}")

    def __reduce__(self) -> tuple[type["UnreadableError"], tuple[str, str]]:
        """Survive the trip out of a worker process."""
        return type(self), (self.path, self.reason)


class SetupError(SsldetError):
    """Something is missing around us: a package, a device, disk space, a network."""

    exit_code = 4


class CheckpointError(SsldetError):
    """A checkpoint or weights file that is damaged, foreign, or does not fit."""

    exit_code = 5


class DivergedError(SsldetError):
    """A loss, gradient, cost or box that is no longer finite."""

    exit_code = 6


class DistributedError(SsldetError):
    """Ranks that disagree or went silent."""

    exit_code = 7


class StoppedError(SsldetError):
    """Stopped by a signal after a complete save: run it again to go on from there."""

    exit_code = 75


def refused(error: OSError) -> SetupError:
    """Return what the system refused, as one line that names the file.

    Args:
        error: What it answered.
    """
    if error.filename is None and error.errno in {errno.EPIPE, errno.EBADF}:
        return SetupError("an output was closed before all was written to it; files are written all the same")
    where = "" if error.filename is None else f"{error.filename}: "
    return SetupError(f"{where}{error.strerror or error}")


def reason_of(error: Exception) -> str:
    """Return what an error says, without the number and the file name that the system adds to its own.

    Args:
        error: What reading a file raised.
    """
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the name that a near miss most likely meant, else an empty string.

    Args:
        name: What the user wrote.
        known: What exists.
    """
    folded = {candidate.casefold(): candidate for candidate in known}
    close = get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else ""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return `" (did you mean 'resnet50'?)"` for a near miss, else an empty string.

    Args:
        name: What the user wrote.
        known: What exists.
    """
    meant = nearest(name, known)
    return f" (did you mean {meant!r}?)" if meant else ""
