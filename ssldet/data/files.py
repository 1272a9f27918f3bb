"""data specifications -> files: walk folders, expand globs, read lists; every file once, in one order everywhere."""

import glob
import os
import time
import unicodedata
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import numpy as np

from ssldet.data.names import Names
from ssldet.data.passed_by import PassedBy
from ssldet.documents import OddDocumentError, parse_json
from ssldet.errors import DataError, suggest
from ssldet.escapes import counted, shown
from ssldet.regular import enough_files, read_bytes
from ssldet.types import Skipped

ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Endings, in any case, of what a folder or a glob is searched for."""
RECENT = 3_000_000_000
"""Nanoseconds after a change in which another one may have the same time; file systems count in up to two seconds."""
ENCODED_ENDINGS = tuple(map(os.fsencode, ENDINGS))
SEPARATOR = os.fsencode(os.sep)
"""Between the parts of an encoded path."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Files found.

    Attributes:
        root: The deepest folder that all of them lie in.
        names: Paths relative to `root`, with `/`, sorted by their bytes.
        skipped: Folders that could not be opened.
        read: Folders and lists that were read -> the time of their last change before, in nanoseconds; -1 where it
            can't tell. While all of them are unchanged, so are the names.
        unread: What to say of pictures in formats that are not read; empty where there are none.
    """

    root: str
    names: Names
    skipped: tuple[Skipped, ...]
    read: Mapping[str, int] = field(compare=False)
    unread: str = ""


def list_files(specs: Sequence[str | Path]) -> Listing:
    """Return what some specifications name; no image is opened.

    A specification is a folder (searched to its bottom; hidden entries and links that lead in circles are passed by),
    a glob such as `photos/**/*.jpg`, a list of paths relative to the list (`.txt`, one a line; `.json`, a list of
    strings), or a single file. A file that is reached in two ways is listed once.

    Args:
        specs: One specification or several.

    Raises:
        DataError: A specification names nothing, or its list can't be read.
    """
    if not specs:
        raise DataError("no images given; name a folder, a glob or a list of files")
    found = _Found()
    folders: set[str] = set()
    for spec in specs:
        path = absolute(Path(spec).expanduser())
        if path.is_dir():
            folders.add(str(path))
        count, number = len(found.files), len(found.skipped)
        _expand(path, found)
        if len(found.files) == count:
            closed = f"; {shown(found.skipped[number].path)} can't be opened" if found.skipped[number:] else ""
            unread = f"; {found.passed_by}" if str(found.passed_by) else ""
            raise DataError(f"no image in {shown(spec)}{closed}{unread}; names are searched for {' '.join(ENDINGS)}")
    files = found.without_twins()
    root = os.path.commonpath(folders | found.parents)
    prefix = len(os.fsencode(root.rstrip(os.sep) + os.sep))
    for number, file in enumerate(files):  # in place, so that a million names are there once
        files[number] = file[prefix:].replace(SEPARATOR, b"/")
    files.sort()
    names, unread = Names.of(files), str(found.passed_by)
    return Listing(root=root, names=names, skipped=tuple(found.skipped), read=found.read, unread=unread)


def find_images(specs: Sequence[str | Path]) -> list[Path]:
    """Return the files that some specifications name, sorted; see `list_files`."""
    listing = list_files(specs)
    return [Path(listing.root, name) for name in listing.names]


def nearest_file(folder: Path, name: str) -> str | None:
    """Return the file that a name probably means: of other case, composition, escapes, separators, folder or ending.

    Args:
        folder: Where the file should lie.
        name: A name, relative to the folder, of a file that is not there.
    """
    here, parts = folder, PurePosixPath(unquote(name).replace("\\", "/")).parts
    for part in parts:
        try:
            beside = os.listdir(here)  # noqa: PTH208  # names alone
        except (OSError, ValueError):
            break
        alike = part if part in beside else next((entry for entry in beside if _folded(entry) == _folded(part)), None)
        if alike is None and part == parts[-1]:
            stem = _folded(part).rpartition(".")[0]
            images = sorted(entry for entry in beside if entry.lower().endswith(ENDINGS))
            alike = next((entry for entry in images if _folded(entry).rpartition(".")[0] == stem), None)
        if alike is None:
            break
        here /= alike
    else:
        return here.relative_to(folder).as_posix() if parts and here.is_file() else None
    return parts[-1] if (folder / parts[-1]).is_file() else None


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unquote(name)).casefold()


def tally(skipped: Sequence[Skipped]) -> str:
    """Return `"truncated 3, empty 1"`: the reasons, most frequent first."""
    return ", ".join(f"{reason} {count}" for reason, count in Counter(entry.reason for entry in skipped).most_common())


def unreadable(lost: Mapping[str, str]) -> str:
    """Return how many images can't be read, and the first of them.

    Args:
        lost: Path -> reason.
    """
    return f"{counted(len(lost), 'image')} can't be read: {_first(lost)}"


def nothing_readable(lost: Mapping[str, str]) -> str:
    """Return what is said where not one image could be read.

    Args:
        lost: Path -> reason.
    """
    return f"none of the {len(lost)} images can be read: {_first(lost)}; copy the images again"


def _first(lost: Mapping[str, str]) -> str:
    shown = "; ".join(f"{path} ({reason})" for path, reason in list(lost.items())[:5])
    return f"{shown}{'; …' if len(lost) > 5 else ''}"


class _Found:
    """What was found so far, in the order in which it was found.

    Attributes:
        files: Paths, encoded.
        parents: The folders that hold them.
        skipped: Folders that could not be opened.
        read: Folders and lists that were read -> time of their last change.
        passed_by: Pictures in formats that are not read.
    """

    def __init__(self) -> None:
        self.files: list[bytes] = []
        self.parents: set[str] = set()
        self.skipped: list[Skipped] = []
        self.read: dict[str, int] = {}
        self.passed_by = PassedBy()
        self._devices, self._inodes = array("q"), array("Q")
        self._nameless: dict[bytes, int] = {}

    def add(self, folder: str, names: Sequence[bytes], identities: Sequence[tuple[int, int]]) -> None:
        """Add files of one folder.

        Args:
            folder: The folder.
            names: Their names in it, encoded.
            identities: Device and inode of each; without an inode, as for a link to nowhere, its path tells it apart.
        """
        start = os.fsencode(os.path.join(folder, ""))  # noqa: PTH118
        self.files += [start + name for name in names]
        for name, (device, inode) in zip(names, identities, strict=True):
            nameless = 0 if inode else self._nameless.setdefault(start + name, len(self._nameless))
            self._devices.append(device if inode else -1)
            self._inodes.append(inode or nameless)
        if names:
            self.parents.add(folder)

    def add_path(self, path: str) -> None:
        """Add one file."""
        folder, name = os.path.split(path)
        self.add(folder, [os.fsencode(name)], [_identity(path)])
        if folder not in self.read:
            self.note(folder)

    def note(self, path: str) -> None:
        """Remember when a folder or a list was last changed; to be called before it is read."""
        try:
            changed = os.stat(path).st_mtime_ns  # noqa: PTH116
        except (OSError, ValueError):
            changed = -1
        # A second change within a tick of the clock of a file system would not be seen.
        self.read[path] = changed if changed < time.time_ns() - RECENT else -1

    def without_twins(self) -> list[bytes]:
        """Return the first path of each file."""
        devices, inodes = np.frombuffer(self._devices, np.int64), np.frombuffer(self._inodes, np.uint64)
        order = np.lexsort((inodes, devices))  # stable
        twins = order[1:][(np.diff(devices[order]) == 0) & (np.diff(inodes[order]) == 0)]
        if not len(twins):
            return self.files
        first = np.ones(len(order), dtype=bool)
        first[twins] = False
        files = [file for file, stays in zip(self.files, first.tolist(), strict=True) if stays]
        self.parents = {os.fsdecode(file.rpartition(SEPARATOR)[0] or SEPARATOR) for file in files}
        return files


def _expand(path: Path, found: _Found) -> None:
    """Add the files of one specification."""
    if path.is_dir():
        _walk(path, (), found)
        return
    if os.path.lexists(path):
        read = {".txt": _lines, ".json": _strings}.get(path.suffix.lower())
        # Of what is no regular file, a pipe say, reading might never end.
        if read is None or not path.is_file():
            found.add_path(str(path))
            return
        found.note(str(path))
        for entry in read(_content(path), path):
            found.add_path(str(absolute(path.parent / entry)))
        return
    magic = next((place for place, part in enumerate(path.parts) if glob.has_magic(part)), None)
    if magic is None:
        raise _missing(path)
    folder = Path(*path.parts[:magic])
    if not folder.is_dir():
        raise _missing(folder)
    _walk(folder, path.parts[magic:], found)


def _walk(folder: Path, pattern: Sequence[str], found: _Found) -> None:
    """Add the image files of a tree that fit a glob, or lie below a folder that does, in a fixed order."""
    visited: set[tuple[int, int] | str] = set()
    stack: list[tuple[str, tuple[str, ...]]] = [(str(folder), ())]
    while stack:
        here, parts = stack.pop()
        device, inode = _identity(here)
        identity = (device, inode) if inode else here
        if identity in visited:
            continue
        visited.add(identity)
        found.note(here)
        encoded = os.fsencode(here)
        try:
            with enough_files(here), os.scandir(encoded) as entries:
                rows = {entry.name: entry for entry in entries}
        except OSError:
            found.skipped.append(Skipped(path=shown(here), reason="closed-folder"))
            found.read[here] = -1  # who may open it changes without a trace in this time
            continue
        names: list[bytes] = []
        identities: list[tuple[int, int]] = []
        for name in sorted(rows):
            entry = rows[name]
            is_folder = _is_folder(entry)
            if name.startswith(b".") or (pattern and not _fits((*parts, os.fsdecode(name)), pattern, is_folder)):
                continue
            if is_folder:
                stack.append((os.fsdecode(entry.path), (*parts, os.fsdecode(name))))
            elif name.lower().endswith(ENCODED_ENDINGS):
                # What a folder says of a file saves asking the file, on some systems over a network.
                known = (device, 0 if _is_link(entry) else entry.inode())
                names.append(name)
                identities.append(known if known[1] else _identity(os.fsdecode(entry.path)))
            else:
                found.passed_by.look_at(entry.path)
        found.add(here, names, identities)


def _fits(parts: Sequence[str], pattern: Sequence[str], is_folder: bool) -> bool:
    """Tell whether a file fits a glob, or whether a folder does or may hold what does."""
    if not pattern:
        return True
    if not parts:
        return is_folder
    head, *rest = pattern
    if head == "**":
        return is_folder or any(_fits(parts[begin:], rest, is_folder) for begin in range(len(parts) + 1))
    return fnmatchcase(parts[0], head) and _fits(parts[1:], rest, is_folder)


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_link(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_symlink()
    except OSError:
        return True


def _identity(path: str) -> tuple[int, int]:
    """Return device and inode; zeros where there is none, as for a link to nowhere."""
    try:
        info = os.stat(path)  # noqa: PTH116  # a million times
    except (OSError, ValueError):
        return 0, 0
    return info.st_dev, info.st_ino


def absolute(path: Path) -> Path:
    """Return a path without `~` and `..`, links left as they are: the name a user gave is the name a user sees.

    Args:
        path: Relative to the working folder, or absolute.
    """
    return Path(os.path.normpath(path.expanduser().absolute()))


def _content(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except OSError as error:
        raise DataError(f"{shown(path)}: the list can't be read ({error.strerror})") from error


def _lines(content: bytes, _: Path) -> list[str]:
    entries = content.removeprefix(b"\xef\xbb\xbf").splitlines()
    return [os.fsdecode(entry.strip()) for entry in entries if entry.strip()]


def _strings(content: bytes, path: Path) -> list[str]:
    try:
        entries = parse_json(content)
    except OddDocumentError as error:
        raise DataError(f"{shown(path)}: not readable as JSON ({error})") from error
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise DataError(
            f"{shown(path)}: expects a JSON list of paths; annotations are named by their format, as in "
            "coco:ANNOTATIONS.json:IMAGES"
        )
    if impossible := [place for place, entry in enumerate(entries) if not _can_be_named(entry)]:
        first, more = impossible[0], len(impossible) - 1
        also = f", nor can {more} more" if more else ""
        raise DataError(
            f"{shown(path)}: $[{first}]: {shown(entries[first])} can be no name of a file{also}; mend the list"
        )
    return entries


def _can_be_named(entry: str) -> bool:
    """Tell whether the system can have a file of this name; half a surrogate pair or a null can't be handed to it."""
    try:
        return b"\0" not in os.fsencode(entry)
    except UnicodeEncodeError:
        return False


def _missing(path: Path) -> DataError:
    return DataError(f"no such file or folder: {shown(path)}{beside(path)}")


def beside(path: Path) -> str:
    """Say which name stands where the first part of a path that does not exist should be, as `suggest` does.

    Args:
        path: A path that does not exist.
    """
    wrong = absolute(path)
    while not wrong.parent.is_dir():
        wrong = wrong.parent
    try:
        there = [shown(entry.name) for entry in wrong.parent.iterdir()]
    except OSError:
        there = []
    return suggest(shown(wrong.name), there)
