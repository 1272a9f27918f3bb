"""data specifications -> files: walk folders, expand globs, read lists; every file once, in one order everywhere."""

import glob
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from ssldet.documents import OddDocumentError, parse_json
from ssldet.errors import DataError, suggest
from ssldet.escapes import shown
from ssldet.regular import enough_files, read_bytes
from ssldet.types import Skipped

ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Endings, in any case, of what a folder or a glob is searched for."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Files found.

    Attributes:
        root: The deepest folder that all of them lie in.
        names: Paths relative to `root`, with `/`, sorted by their bytes.
        skipped: Folders that could not be opened.
    """

    root: str
    names: list[str]
    skipped: tuple[Skipped, ...]


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
    files: dict[tuple[int, int] | str, str] = {}
    folders: set[str] = set()
    skipped: list[Skipped] = []
    for spec in specs:
        path = absolute(Path(spec).expanduser())
        if path.is_dir():
            folders.add(str(path))
        number = len(skipped)
        found = list(_expand(path, skipped))
        if not found:
            closed = f"; {shown(skipped[number].path)} can't be opened" if skipped[number:] else ""
            raise DataError(f"no image in {shown(spec)}{closed}; names are searched for {' '.join(ENDINGS)}")
        for file in found:
            files.setdefault(_identity(file), file)
    root = os.path.commonpath(folders | {file.rpartition(os.sep)[0] or os.sep for file in files.values()})
    prefix = root.rstrip(os.sep) + os.sep
    names = sorted((file.removeprefix(prefix).replace(os.sep, "/") for file in files.values()), key=os.fsencode)
    return Listing(root=root, names=names, skipped=tuple(skipped))


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
    return f"{len(lost)} image{'s' * (len(lost) != 1)} can't be read: {_first(lost)}"


def nothing_readable(lost: Mapping[str, str]) -> str:
    """Return what is said where not one image could be read.

    Args:
        lost: Path -> reason.
    """
    return f"none of the {len(lost)} images can be read: {_first(lost)}; copy the images again"


def _first(lost: Mapping[str, str]) -> str:
    shown = "; ".join(f"{path} ({reason})" for path, reason in list(lost.items())[:5])
    return f"{shown}{'; …' if len(lost) > 5 else ''}"


def _expand(path: Path, skipped: list[Skipped]) -> Iterable[str]:
    """Yield the files of one specification."""
    if path.is_dir():
        return _walk(path, (), skipped)
    if os.path.lexists(path):
        read = {".txt": _lines, ".json": _strings}.get(path.suffix.lower())
        # Of what is no regular file, a pipe say, reading might never end.
        if read is None or not path.is_file():
            return [str(path)]
        return [str(absolute(path.parent / entry)) for entry in read(_content(path), path)]
    magic = next((place for place, part in enumerate(path.parts) if glob.has_magic(part)), None)
    if magic is None:
        raise _missing(path)
    folder = Path(*path.parts[:magic])
    if not folder.is_dir():
        raise _missing(folder)
    return _walk(folder, path.parts[magic:], skipped)


def _walk(folder: Path, pattern: Sequence[str], skipped: list[Skipped]) -> Iterator[str]:
    """Yield the image files of a tree that fit a glob, or lie below a folder that does, in a fixed order."""
    visited: set[tuple[int, int] | str] = set()
    stack: list[tuple[str, tuple[str, ...]]] = [(str(folder), ())]
    while stack:
        here, parts = stack.pop()
        identity = _identity(here)
        if identity in visited:
            continue
        visited.add(identity)
        try:
            with enough_files(here), os.scandir(here) as entries:
                found = sorted(
                    (os.fsencode(entry.name), entry.name, entry.path, _is_folder(entry)) for entry in entries
                )
        except OSError:
            skipped.append(Skipped(path=shown(here), reason="closed-folder"))
            continue
        for _, name, path, is_folder in found:
            if name.startswith(".") or not _fits((*parts, name), pattern, is_folder):
                continue
            if is_folder:
                stack.append((path, (*parts, name)))
            elif name.lower().endswith(ENDINGS):
                yield path


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


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _identity(path: str) -> tuple[int, int] | str:
    """Return device and inode, or the path where there is none, as for a link to nowhere."""
    try:
        info = Path(path).stat()
    except (OSError, ValueError):
        return path
    return (info.st_dev, info.st_ino) if info.st_ino else path


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
    """Say that a path does not exist, and what stands beside the first part of it that doesn't."""
    wrong = path
    while not wrong.parent.is_dir():
        wrong = wrong.parent
    try:
        beside = [shown(entry.name) for entry in wrong.parent.iterdir()]
    except OSError:
        beside = []
    return DataError(f"no such file or folder: {shown(path)}{suggest(shown(wrong.name), beside)}")
