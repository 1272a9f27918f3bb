"""Files that are written whole; every operation failing in turn is tested with the checkpoints."""

import errno
from pathlib import Path
from typing import BinaryIO

import pytest

from ssldet.disk import Disk, write_whole


class FullDisk(Disk):
    """Takes a few bytes, then no more."""

    def put(self, file: BinaryIO, content: bytes | memoryview) -> None:
        super().put(file, content[:3])
        raise OSError(errno.ENOSPC, "full")


def test_a_file_is_replaced_whole_or_keeps_what_it_held(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_whole(path, b"before", Disk())
    with pytest.raises(OSError, match="full"):
        write_whole(path, b"something longer", FullDisk())
    assert path.read_bytes() == b"before"
    write_whole(path, memoryview(b"after"), Disk())
    assert path.read_bytes() == b"after"
    assert Disk().names(tmp_path) == ["x"], "no stage is left behind"
