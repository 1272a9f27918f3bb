"""path -> the content of a regular file: pipes, devices and folders are refused at once, and never waited for.

Every file that somebody else may have put in its place is opened here. Plain opening of a pipe waits until someone
writes into it, and reading a device may never end.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO, Literal

from ssldet.errors import SetupError
from ssldet.escapes import shown

WORDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
"""Tests of a file's mode, and what each of them finds."""
EXHAUSTED = {errno.EMFILE, errno.ENFILE}
"""What the system says when a process, or all of them, have too many files open."""

WITHOUT_WAITING = getattr(os, "O_NONBLOCK", 0)
"""Opens a pipe as it is found, where there are such pipes."""
READING = os.O_RDONLY | getattr(os, "O_BINARY", 0) | WITHOUT_WAITING
"""Opens a file to read bytes of it."""


class NotRegularError(OSError):
    """A pipe, a device, a socket or a folder stands where a regular file should; `strerror` says which."""


def require_regular(path: str | Path) -> None:
    """Let a path pass that leads to a regular file, for libraries that open files by themselves.

    Args:
        path: A file; links are followed.

    Raises:
        NotRegularError: Something else is there.
        OSError: It does not exist or can't be reached.
    """
    _require(os.stat(path), path)  # noqa: PTH116  # a million times


@contextmanager
def enough_files(path: str | Path) -> Iterator[None]:
    """Turn what a process or a machine says that has too many files open into an error of its own.

    Nothing is wrong with the file then, whatever else may be concluded from errors while one is read.

    Args:
        path: The file that is being opened.

    Raises:
        SetupError: Too many files are open.
    """
    try:
        yield
    # Libraries that are not written in Python raise what they like.
    except (OSError, RuntimeError) as error:
        number = getattr(error, "errno", None)
        if number in EXHAUSTED or (number is None and any(os.strerror(code) in str(error) for code in EXHAUSTED)):
            raise SetupError(f"too many open files at {shown(str(path))}; raise the limit with ulimit -n") from error
        raise


def open_regular(path: str | Path, mode: Literal["rb", "r+b", "wb", "ab", "ab+"] = "rb") -> BinaryIO:
    """Open a regular file.

    Args:
        path: A file; links are followed. Modes that write may create it.
        mode: As of the built-in `open`.

    Raises:
        NotRegularError: Something else is there.
        SetupError: Too many files are open to read another one.
        OSError: It can't be opened.
    """
    # Before it is opened, because opening alone does something to some devices, and refuses a pipe in other words.
    if mode == "rb" or os.path.lexists(path):
        require_regular(path)
    # Who writes tries again, and says after some times what is wrong.
    with enough_files(path) if mode == "rb" else nullcontext():
        file: BinaryIO = open(path, mode, opener=_without_waiting)  # noqa: SIM115  # `Path.open` has no opener
    try:
        # And again, because it may have been exchanged in between.
        _require(os.fstat(file.fileno()), path)
    except OSError:
        file.close()
        raise
    return file


def read_bytes(path: str | Path) -> bytes:
    """Return the content of a regular file.

    Args:
        path: A file.

    Raises:
        NotRegularError: Something else is there.
        OSError: It can't be read.
    """
    with open_regular(path) as file:
        return file.read()


def read_head(path: str, count: int) -> tuple[bytes, os.stat_result]:
    """Return the first bytes of a regular file and what the system knows of it, in as few calls as that takes.

    Args:
        path: A file; links are followed.
        count: Bytes at most.

    Raises:
        NotRegularError: Something else is there.
        OSError: It can't be read.
    """
    require_regular(path)
    descriptor = os.open(path, READING)
    try:
        info = os.fstat(descriptor)
        _require(info, path)
        return os.read(descriptor, count), info
    finally:
        os.close(descriptor)


def read_text(path: str | Path, errors: str = "strict") -> str:
    r"""Return the text of a regular file, which is UTF-8; every line ends with `\n`.

    Args:
        path: A file.
        errors: What becomes of bytes that are no text, as in `bytes.decode`.

    Raises:
        NotRegularError: Something else is there.
        OSError: It can't be read.
        UnicodeDecodeError: It is no text, and `errors` is `strict`.
    """
    return read_bytes(path).decode("utf-8", errors).replace("\r\n", "\n").replace("\r", "\n")


def digest_of(path: str | Path, algorithm: str) -> str:
    """Return the digest of a regular file in hexadecimal digits.

    Args:
        path: A file.
        algorithm: A name that `hashlib` knows.

    Raises:
        NotRegularError: Something else is there.
        OSError: It can't be read.
    """
    digest = hashlib.new(algorithm)
    with open_regular(path) as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def _require(info: os.stat_result, path: str | Path) -> None:
    if not stat.S_ISREG(info.st_mode):
        found = next((word for is_kind, word in WORDS if is_kind(info.st_mode)), "something else")
        raise NotRegularError(errno.EINVAL, f"{found}, not a regular file", str(path))


def _without_waiting(path: str, flags: int) -> int:
    """Open a pipe as it is found."""
    return os.open(path, flags | WITHOUT_WAITING, 0o666)
