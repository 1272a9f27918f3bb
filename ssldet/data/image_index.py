"""data specifications -> the usable images: listed, judged by their headers, and remembered in a file if they are many.

The file lies under `SSLDET_HOME` and is mapped into memory, so that loader workers and ranks share one copy. It is used
again as it is while no folder or list has changed. Otherwise the names are listed anew, and only files of another size
or time are opened. An image that was exchanged in place is noticed when it is read; the next opening looks at all.
"""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import PIL
from filelock import FileLock, Timeout
from jaxtyping import Int64

from ssldet.data.files import Listing, absolute, list_files
from ssldet.data.judging import ImageRules, Stamp, glanced, judged
from ssldet.data.mapped import read_mapped, write_mapped
from ssldet.data.names import Names
from ssldet.data.parallel import over_parts
from ssldet.errors import UnreadableError
from ssldet.escapes import shown
from ssldet.home import cache_folder
from ssldet.types import Skipped

log = logging.getLogger(__name__)

MANY = 10_000
"""Images from which on an index is kept: the headers of fewer are read in a second."""
VERSION = 1
"""Of what an index holds."""
WAIT_SECONDS = 3600.0
"""Seconds that a process waits for another one that reads the same headers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Usable:
    """The images that can be used, of those that were listed.

    Attributes:
        root: The deepest folder that all listed files lie in.
        names: Paths relative to `root`, sorted by their bytes.
        bad: Name and reason of each file that can't be used.
        closed: Folders that could not be opened.
        fingerprint: Short hash of names and sizes.
        read: As in `files.Listing`.
        unread: As in `files.Listing`.
        stamps: Size and time of each file when it was judged; `None` where this is not kept.
        file: Where this is kept; `None` if it is not.
    """

    root: str
    names: Names
    bad: tuple[tuple[str, str], ...]
    closed: tuple[Skipped, ...]
    fingerprint: str
    read: dict[str, int]
    unread: str = ""
    stamps: Int64[np.ndarray, "N 2"] | None = None
    file: Path | None = None

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Files and folders that can't be used."""
        return (*self.closed, *(Skipped(path=shown(_join(self.root, name)), reason=why) for name, why in self.bad))

    @property
    def listed(self) -> int:
        """Number of files that were listed."""
        return len(self.names) + len(self.bad)

    def require_same(self, index: int, stamp: Stamp) -> None:
        """Let the next opening look at all files if one is no longer what was judged.

        Args:
            index: Number of an image.
            stamp: Its file as it is now.
        """
        if self.file is not None and self.stamps is not None and stamp != tuple(self.stamps[index].tolist()):
            with suppress(OSError):
                _mark(self.file).touch()


def usable_images(specs: Sequence[str | Path], rules: ImageRules) -> Usable:
    """Return the images that can be used, from an index of an earlier opening if there is one.

    Args:
        specs: See `files.list_files`.
        rules: Which images are usable.

    Raises:
        DataError: A specification names nothing.
    """
    place = _place(specs, rules)
    if (kept := _load(place)) is not None and _is_current(kept, rules):
        return kept
    listing = list_files(specs)
    if len(listing.names) < MANY:
        return _forgetting(judge(listing, rules))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_suffix(".lock"), timeout=WAIT_SECONDS):
            # Another rank may have been faster.
            if (kept := _load(place)) is not None and _is_current(kept, rules):
                return kept
            _mark(place).unlink(missing_ok=True)
            usable = judge(listing, rules, kept)
            _save(usable, place)
    except (OSError, Timeout) as error:
        log.warning("the index of %d images can't be kept in %s (%s)", len(listing.names), place.parent, error)
        return _forgetting(judge(listing, rules, kept))
    return _load(place) or usable


def _forgetting(usable: Usable) -> Usable:
    """Return what workers need where no index is kept."""
    return replace(usable, stamps=None, read={})


def judge(listing: Listing, rules: ImageRules, known: Usable | None = None) -> Usable:
    """Read the header of every file.

    Args:
        listing: The files.
        rules: Which images are usable.
        known: An earlier judgement by the same rules; files of the same size and time are not opened again.
    """
    names = listing.names
    old = _stamps(listing, known)
    if len(names) >= MANY:
        known_ones = int((old[:, 0] >= 0).sum())
        known_words = f"; {known_ones} more are indexed" if known_ones else ""
        log.info("reading the headers of %d images%s", len(names) - known_ones, known_words)

    def look(part: range) -> tuple[Int64[np.ndarray, "P 2"], dict[int, str]]:
        stamps, bad = [], {}
        earlier = old[part.start : part.stop].tolist()
        for number, name, (size, changed) in zip(part, names[part.start : part.stop], earlier, strict=True):
            path = _join(listing.root, name)
            try:
                stamps.append(_stamp(path, Stamp(size, changed), rules))
            except UnreadableError as error:
                bad[number] = error.reason
                stamps.append(Stamp(-1, -1))
        return np.array(stamps, dtype=np.int64), bad

    stamps = np.zeros((len(names), 2), dtype=np.int64)
    bad: dict[int, str] = {}
    first = 0
    for some, reasons in over_parts(len(names), look):
        stamps[first : first + len(some)] = some
        bad |= reasons
        first += len(some)
    good = stamps[:, 0] >= 0
    usable = names.kept(good.tolist()) if bad else names
    return Usable(
        root=listing.root,
        names=usable,
        bad=tuple((names[number], reason) for number, reason in bad.items()),
        closed=listing.skipped,
        fingerprint=_fingerprint(usable, stamps[good, 0]),
        read=dict(listing.read),
        unread=listing.unread,
        stamps=stamps[good],
    )


def _stamp(path: str, old: Stamp, rules: ImageRules) -> Stamp:
    """Return size and time of a file that can be used; one that has not changed is not opened.

    Raises:
        UnreadableError: It can't be used.
    """
    if old.size >= 0:
        with suppress(OSError, ValueError):
            info = os.stat(path)  # noqa: PTH116  # a million times
            if (info.st_size, info.st_mtime_ns) == old:
                return old
    return seen[0] if (seen := glanced(path, rules)) else judged(path, _own_stamp, rules)


def _own_stamp(_: object, stamp: Stamp) -> Stamp:
    return stamp


def _stamps(listing: Listing, known: Usable | None) -> Int64[np.ndarray, "N 2"]:
    """Return the known size and time of each file; -1 where nothing is known."""
    stamps = np.full((len(listing.names), 2), -1, dtype=np.int64)
    if known is None or known.stamps is None or known.root != listing.root:
        return stamps
    theirs = enumerate(known.names.encoded())
    place, there = next(theirs, (-1, b""))
    here, found = [], []
    # Both lists are sorted.
    for number, name in enumerate(listing.names.encoded()):
        while place >= 0 and there < name:
            place, there = next(theirs, (-1, b""))
        if there == name:
            here.append(number)
            found.append(place)
    stamps[here] = known.stamps[found]
    return stamps


def _fingerprint(names: Names, sizes: Int64[np.ndarray, " N"]) -> str:
    digest = hashlib.blake2b(digest_size=6)
    for name, size in zip(names.encoded(), sizes.tolist(), strict=True):
        digest.update(name + f"\0{size}\0".encode())
    return digest.hexdigest()


def _is_current(kept: Usable, rules: ImageRules) -> bool:
    """Tell whether nothing that was read has changed: folders, lists, unusable files, and images that a run used."""
    assert kept.file is not None
    if _mark(kept.file).exists():
        return False
    for path, changed in kept.read.items():
        try:
            if changed < 0 or os.stat(path).st_mtime_ns != changed:  # noqa: PTH116
                return False
        except (OSError, ValueError):
            return False
    return all(_fault(_join(kept.root, name), rules) == reason for name, reason in kept.bad)


def _fault(path: str, rules: ImageRules) -> str:
    try:
        judged(path, lambda *_: None, rules)
    except UnreadableError as error:
        return error.reason
    return ""


def _save(usable: Usable, place: Path) -> None:
    assert usable.stamps is not None
    arrays = {"block": usable.names.block, "ends": usable.names.ends, "stamps": usable.stamps}
    document = {
        "root": usable.root,
        "bad": usable.bad,
        "closed": [asdict(entry) for entry in usable.closed],
        "fingerprint": usable.fingerprint,
        "read": usable.read,
        "unread": usable.unread,
    }
    write_mapped(place, document, arrays)
    log.info("indexed %d images in %s", len(usable.names), place)


def _load(place: Path) -> Usable | None:
    """Return what is kept in a file; `None` where nothing is, or nothing whole."""
    try:
        document, arrays = read_mapped(place)
        names = Names(arrays["block"], arrays["ends"])
        names.require_whole()
        if arrays["stamps"].shape != (len(names), 2) or not isinstance(document["read"], dict):
            raise ValueError("lists of different lengths")
        return Usable(
            root=document["root"],
            names=names,
            bad=tuple((name, reason) for name, reason in document["bad"]),
            closed=tuple(Skipped(**entry) for entry in document["closed"]),
            fingerprint=document["fingerprint"],
            read=document["read"],
            unread=document.get("unread", ""),
            stamps=arrays["stamps"],
            file=place,
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.info("the index %s can't be used (%s) and is made again", place, error)
        return None


def _place(specs: Sequence[str | Path], rules: ImageRules) -> Path:
    """Return where the index of some specifications is kept: other rules, or another Pillow, judge otherwise."""
    what = [VERSION, PIL.__version__, asdict(rules), [str(absolute(Path(spec))) for spec in specs]]
    digest = hashlib.blake2b(json.dumps(what).encode(), digest_size=12).hexdigest()
    return cache_folder() / "images" / f"{digest}.safetensors"


def _mark(place: Path) -> Path:
    """Return the file that says that an indexed image was found changed."""
    return place.with_suffix(".changed")


def _join(root: str, name: str) -> str:
    return os.path.join(root, name)  # noqa: PTH118  # a million times
