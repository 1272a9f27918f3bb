"""Freed memory stays with the process; tried in a fresh one, because the setting is for a whole process."""

import subprocess
import sys

import pytest

from ssldet.data.memory import keep_freed_memory

AGAIN = """
import ctypes, resource
from ssldet.data.memory import keep_freed_memory

def faults():
    begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(40):
        libc.free(ctypes.c_void_p(libc.calloc(3, 2**20)))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun

libc = ctypes.CDLL(None)
libc.calloc.restype = ctypes.c_void_p
{set_up}
print(faults())
"""


def faults(set_up: str) -> int:
    command = [sys.executable, "-c", AGAIN.format(set_up=set_up)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not keep_freed_memory(), reason="needs glibc")
def test_memory_that_was_freed_is_not_asked_for_again() -> None:
    once = 3 * 2**20 // 4096
    assert faults("keep_freed_memory()") < 1.5 * once
