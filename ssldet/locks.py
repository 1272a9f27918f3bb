"""folder -> the process that works in it: a lock that the system itself releases when its holder ends, in any way."""

import errno
import fcntl
from pathlib import Path
from typing import BinaryIO

from ssldet.errors import SetupError
from ssldet.regular import NotRegularError, open_regular, read_text

NAME = ".lock"
"""The file in the folder; its text says who holds the lock, or held it and died."""


class FolderLock:
    """The right to write in a folder.

    Attributes:
        path: The lock's file.
        inherited: Whether processes that get the open file share the lock, and hold it when this process is dead. If
            not, it belongs to this process alone: loader workers that outlive it for a moment keep nobody out.
    """

    def __init__(self, folder: Path, *, inherited: bool = False) -> None:
        """Point at a folder; nothing is read or written.

        Args:
            folder: Where to work.
            inherited: Whether processes that get the open file share the lock.
        """
        self.path, self.inherited = folder / NAME, inherited
        self._file: BinaryIO | None = None

    @property
    def file(self) -> BinaryIO | None:
        """The open file, to hand to another process; `None` while the lock is not held."""
        return self._file

    def take(self) -> bool:
        """Take the lock if no other process has it; return whether it is held now.

        Raises:
            SetupError: The file can't be opened, or its file system has no locks.
        """
        if self._file is not None:
            return True
        try:
            file = open_regular(self.path, "ab+")
        except NotRegularError as error:
            raise SetupError(f"{self.path}: {error.strerror}, and can't be locked; delete it") from error
        except OSError as error:
            raise SetupError(f"{self.path}: can't be written ({error.strerror}); choose another folder") from error
        try:
            (fcntl.flock if self.inherited else fcntl.lockf)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise SetupError(f"{self.path}: can't be locked ({error.strerror}); choose a folder elsewhere") from error
        self._file = file
        return True

    def sign(self, owner: str) -> None:
        """Write down who holds the lock.

        Args:
            owner: One line, read by people.
        """
        assert self._file is not None, "only a lock that is held can be signed"
        self._file.truncate(0)
        self._file.write(f"{owner}\n".encode())
        self._file.flush()

    def owner(self) -> str:
        """Return who holds the lock, or held it and died; empty if it was given back in order.

        To be asked while this process does not hold it: closing a second opening of the file would give the lock back.
        """
        assert self._file is None, "whoever holds the lock knows"
        try:
            return read_text(self.path, errors="replace").strip()
        except OSError:
            return ""

    def release(self) -> None:
        """Give the lock back, if it is held."""
        if self._file is not None:
            # The file stays: deleting it would let a process that has it open lock one that nobody else can see.
            self._file.truncate(0)
            self._file.close()
            self._file = None
