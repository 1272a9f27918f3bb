"""Who may work in a folder; what the losers of a race are told is tested with the run folder and the job."""

import subprocess
import sys
from pathlib import Path

import pytest

from ssldet.locks import FolderLock

LEAVES_A_CHILD = """
import os, sys
from pathlib import Path
from ssldet.locks import FolderLock
lock = FolderLock(Path(sys.argv[1]), inherited=sys.argv[2] == "True")
assert lock.take()
if os.fork() == 0:
    sys.stdin.read()
os._exit(0)
"""
"""Takes the lock, forks a process that lives until its input ends, and dies."""


def test_a_lock_is_taken_signed_and_given_back(tmp_path: Path) -> None:
    first, second = FolderLock(tmp_path, inherited=True), FolderLock(tmp_path, inherited=True)
    assert second.owner() == ""
    assert first.file is None
    assert first.take()
    assert first.take(), "it is held already"
    first.sign("a long name of the first owner")
    first.sign("me")
    assert not second.take()
    assert second.owner() == "me"
    first.release()
    assert second.owner() == ""
    assert second.take()
    second.release()


@pytest.mark.parametrize("inherited", [True, False])
def test_a_child_of_a_dead_holder_keeps_only_an_inherited_lock(tmp_path: Path, inherited: bool) -> None:
    command = [sys.executable, "-c", LEAVES_A_CHILD, str(tmp_path), str(inherited)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as holder:
        assert holder.wait(60) == 0
        lock = FolderLock(tmp_path, inherited=inherited)
        assert lock.take() is not inherited
        lock.release()
