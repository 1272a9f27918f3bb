"""keys of images -> names of files: one per image, and back to its key."""

import unicodedata
from urllib.parse import quote

LONGEST = 200
"""Bytes of a file name without its suffix; file systems take 255."""


class FileNames:
    """Image keys -> file names: readable, each given once, and `urllib.parse.unquote` turns them back into the key.

    Letters and digits of any script stay as they are; every other character is written as `%` and its code. Where that
    is too long for a file system, or another key's name differs in nothing but case, a number follows after `~`.
    """

    def __init__(self) -> None:
        """Start with no name given."""
        self._given: set[str] = set()

    def __call__(self, key: str) -> str:
        """Return a file name, without suffix, that no earlier call has returned.

        Args:
            key: Key of an image, whatever characters it holds.
        """
        whole = "".join(letter if letter.isalnum() or letter in "-_." else quote(letter, safe="") for letter in key)
        whole = "%2E" + whole[1:] if whole.startswith(".") else whole or "image"
        name = stem = whole.encode()[:LONGEST].decode(errors="ignore")
        number = 1 if stem == whole else 2
        if number == 2:
            name = f"{stem}~{number}"
        while _folded(name) in self._given:
            number += 1
            name = f"{stem}~{number}"
        self._given.add(_folded(name))
        return name


def _folded(name: str) -> str:
    """Return what two names share that are one on a file system without case or with composed letters."""
    return unicodedata.normalize("NFC", name).casefold()
