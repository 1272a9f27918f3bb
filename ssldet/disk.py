"""bytes -> files that survive a kill, a full disk and a power cut: every such operation goes through one object."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ssldet.errors import ConfigError
from ssldet.regular import digest_of


class Disk:
    """The primitive operations, one method each, so that a test can make the k-th of them fail."""

    def create(self, path: Path) -> BinaryIO:
        """Open a new or emptied file for writing."""
        return path.open("wb")

    def put(self, file: BinaryIO, content: bytes | memoryview) -> None:
        """Hand bytes to the system."""
        file.write(content)

    def sync(self, file: BinaryIO) -> None:
        """Wait until the file's bytes are on the medium."""
        file.flush()
        os.fsync(file.fileno())

    def replace(self, old: Path, new: Path) -> None:
        """Give a file another name in one step, whatever had that name before."""
        old.replace(new)

    def sync_folder(self, folder: Path) -> None:
        """Wait until the names in a folder are on the medium."""
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove(self, path: Path) -> None:
        """Delete a file; one that is already gone is fine."""
        path.unlink(missing_ok=True)

    def names(self, folder: Path) -> list[str]:
        """List a folder."""
        return sorted(path.name for path in folder.iterdir())

    def digest(self, path: Path) -> str:
        """Return the SHA-256 of a file."""
        return digest_of(path, "sha256")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let errors of writing to an open file, in which the system names none, name it.

    Args:
        path: What users call it.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def require_absent(path: Path) -> None:
    """Refuse a name that is taken, by a file or a folder.

    Args:
        path: Where something will be written that replaces nothing.

    Raises:
        ConfigError: It is.
    """
    if path.exists():
        raise ConfigError(f"{path}: exists already and is not overwritten; choose another name or remove it")


def write_whole(path: Path, content: bytes | memoryview, disk: Disk) -> None:
    """Write a file so that at any moment its name holds either the old content or the new one, complete.

    Args:
        path: Where; the content is staged beside it, because a rename is only one step within a file system.
        content: What.
        disk: Does it.

    Raises:
        OSError: As the system says; the stage has then been removed where that was still possible.
    """
    stage = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with naming(path), disk.create(stage) as file:
            disk.put(file, content)
            disk.sync(file)
        disk.replace(stage, path)
    except OSError:
        stage.unlink(missing_ok=True)
        raise
    disk.sync_folder(path.parent)
