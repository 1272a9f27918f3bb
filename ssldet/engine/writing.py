"""Attempts to write -> a run that goes on, or stops: a write may fail twice in a row, a third failure ends the run."""

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ssldet.errors import SetupError
from ssldet.jsonlines import finite
from ssldet.regular import open_regular

log = logging.getLogger(__name__)

PATIENCE = 3
"""Attempts in a row that may fail before training stops."""


class Patience:
    """Counts how often in a row one kind of file could not be written."""

    def __init__(self, what: str, place: Path) -> None:
        """Begin with no failure.

        Args:
            what: Names the kind of file in messages.
            place: Where room must be made.
        """
        self._what, self._place = what, place
        self._failures = 0

    def attempt(self, work: Callable[[], None]) -> bool:
        """Write, and tell whether that succeeded.

        Args:
            work: Writes; raises OSError where it can't.

        Raises:
            SetupError: It failed for the third time in a row.
        """
        try:
            work()
        except OSError as error:
            self.failed(f"{type(error).__name__}: {error}")
            return False
        self.succeeded()
        return True

    def failed(self, problem: str, when: str = "") -> None:
        """Count a failure.

        Args:
            problem: What the system said.
            when: The step, where that is known.

        Raises:
            SetupError: It is the third in a row.
        """
        self._failures += 1
        when = f"{when}: " if when else ""
        if self._failures >= PATIENCE:
            raise SetupError(
                f"{self._what} could not be saved {PATIENCE} times in a row ({when}{problem}); make room in "
                f"{self._place}, then resume: everything up to the last good checkpoint is there"
            )
        log.error("%s%s could NOT be saved (%s); training goes on, make room now", when, self._what, problem)

    def succeeded(self) -> None:
        """Forget earlier failures."""
        self._failures = 0


class Lines:
    """A file of JSON objects, one a line.

    A kill can damage only the last line, which readers skip. Lines that could not be written follow with the next ones.
    """

    def __init__(self, path: Path) -> None:
        """Point at a file; it is opened for each attempt, and made by the first.

        Args:
            path: The file; appended to.
        """
        self._path, self._patience = path, Patience(path.name, path.parent)
        self._waiting = b""

    def write(self, *objects: Mapping[str, Any]) -> None:
        """Append a line for each object.

        Args:
            objects: Numbers that JSON has no word for become null.

        Raises:
            SetupError: Writing failed for the third time in a row.
        """
        self._waiting += b"".join(json.dumps(finite(one)).encode() + b"\n" for one in objects)
        if self._waiting:
            self._patience.attempt(self._append)

    def _append(self) -> None:
        with open_regular(self._path, "ab+") as file:
            whole = file.tell()
            torn = b""
            if whole:
                file.seek(-1, 2)
                torn = b"" if file.read(1) == b"\n" else b"\n"
            content = torn + self._waiting
            try:
                while content:
                    content = content[os.write(file.fileno(), content) :]
            except OSError:
                os.ftruncate(file.fileno(), whole)
                raise
        self._waiting = b""
