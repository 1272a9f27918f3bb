"""path -> the content of a regular file: pipes, devices and folders are refused at once, and never waited for.

Every file that somebody else may have put in its place is opened here. Plain opening of a pipe waits until someone
writes into it, and reading a device may never end.
"""

import errno
import hashlib
import os
import stat
from pathlib import Path
from typing import BinaryIO, Literal

WORDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
"""Tests of a file's mode, and what each of them finds."""


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


def open_regular(path: str | Path, mode: Literal["rb", "r+b", "wb", "ab", "ab+"] = "rb") -> BinaryIO:
    """Open a regular file.

    Args:
        path: A file; links are followed. Modes that write may create it.
        mode: As of the built-in `open`.

    Raises:
        NotRegularError: Something else is there.
        OSError: It can't be opened.
    """
    # Before it is opened, because opening alone does something to some devices, and refuses a pipe in other words.
    if mode == "rb" or os.path.lexists(path):
        require_regular(path)
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
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
