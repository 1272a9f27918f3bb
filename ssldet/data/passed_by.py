"""names of files -> what is said of pictures in formats that are not read: nobody shall miss them in silence."""

import os
from collections import Counter

from ssldet.escapes import counted, shown

ENDINGS = (
    *(".heic", ".heif", ".avif", ".jp2", ".j2k", ".jpx", ".jxl", ".psd", ".tga", ".ppm", ".pgm"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"),
)
"""Their endings, in lower case."""
ENCODED = tuple(map(os.fsencode, ENDINGS))


class PassedBy:
    """Counts such pictures."""

    def __init__(self) -> None:
        """Start with none."""
        self._kinds: Counter[str] = Counter()
        self._first = ""

    def look_at(self, path: bytes) -> None:
        """Count a file if it is one of them.

        Args:
            path: Its path, encoded.
        """
        if path.lower().endswith(ENCODED):
            self._kinds[os.fsdecode(path.lower().rpartition(b".")[2])] += 1
            self._first = self._first or shown(os.fsdecode(path))

    def __str__(self) -> str:
        """Say how many there are, and what helps; empty where there are none."""
        if not self._kinds:
            return ""
        kinds = ", ".join(f".{ending} {count}" for ending, count in self._kinds.most_common())
        total = counted(self._kinds.total(), "picture")
        return f"{total} in formats that are not read ({kinds}), such as {self._first}; save them as JPEG or PNG"
