"""Freed memory -> kept for the next allocation, instead of given back to the system and asked for again.

An image and its patches are a few megabytes that are freed after each sample. glibc gives blocks of that size back to
the system at once, until it has seen larger ones freed; getting them again costs a page fault for every 4 kB, which was
a third of the time of a view in a fresh worker.
"""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of the parameters of glibc's mallopt (malloc.h)."""
LARGEST_KEPT = 32 * 2**20
"""Bytes of the largest block that is kept: as far as glibc raises its own threshold."""
MOST_KEPT = 2 * LARGEST_KEPT
"""Bytes at the end of the heap above which free memory is given back, likewise."""


def keep_freed_memory() -> bool:
    """Set for this process the thresholds that glibc would reach by itself after it has seen large blocks freed.

    Returns:
        Whether it could be done; other systems and other C libraries stay as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return all(mallopt(*pair) == 1 for pair in ((_MMAP_THRESHOLD, LARGEST_KEPT), (_TRIM_THRESHOLD, MOST_KEPT)))
