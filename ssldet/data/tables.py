"""`PATH[:SPLIT]` -> rows of a dataset of Hugging Face, as the library `datasets` maps them into memory.

A folder that `save_to_disk` wrote is opened as it is. Parquet files are copied once into the library's own form, which
gives any row at any time, under `SSLDET_HOME` in `tables/`. Nothing is fetched unless it is named `hub:USER/NAME`.
"""

import glob
import importlib.util
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssldet.data.files import absolute
from ssldet.errors import DataError, SetupError, SsldetError, suggest
from ssldet.escapes import shown
from ssldet.home import cache_folder
from ssldet.regular import require_regular

log = logging.getLogger(__name__)

HUB = "hub:"
"""Begins a name that may be fetched."""
REMOTE = re.compile(r"hub:([\w.-]+/[\w.-]+)(?:@([^\s@:]+))?(?::(.+))?")
SHARD = re.compile(r"(.+?)-\d+-of-\d+")
"""Name of a file of Parquet that belongs to a split, as the library writes it."""
COLUMNS = ("image", "img")
"""Columns of images where none says that it is one; the first of several that do."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of a dataset.

    Attributes:
        spec: What a data specification calls them.
        rows: A `datasets.Dataset`, of which nothing is decoded.
        column: Which column holds the images.
    """

    spec: str
    rows: Any
    column: str

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def files(self) -> list[str]:
        """Return the files that hold the rows."""
        return [entry["filename"] for entry in self.rows.cache_files]


def open_table(rest: str) -> Table:
    """Open a dataset.

    Args:
        rest: `PATH` or `PATH:SPLIT`; `PATH` is a folder of `save_to_disk`, a folder, a glob or a file of Parquet, or
            `hub:USER/NAME[@REVISION]`. `SPLIT` is needed where there are several; `train+test` joins two.

    Raises:
        DataError: There is no such dataset or split, it can't be read, or it holds no images.
        SetupError: The library is not installed, or what is on the hub can't be fetched.
    """
    spec = f"hf:{shown(rest)}"
    library = _library(spec)
    try:
        parts = _remote(library, rest, spec) if rest.startswith(HUB) else _local(library, rest, spec)
        rows = parts[0] if len(parts) == 1 else library.concatenate_datasets(parts)
        column = _image_column(rows.features, library, spec)
        return Table(spec=spec, rows=rows.cast_column(column, library.Image(decode=False)), column=column)
    except SsldetError:
        raise
    except Exception as error:  # files of strangers raise anything, and the library has no common error
        raise DataError(f"{spec}: can't be read ({_line(error)}); save it again with save_to_disk") from error


def _library(spec: str) -> Any:
    if importlib.util.find_spec("datasets") is None:
        raise SetupError(f"{spec}: is opened by the library datasets of Hugging Face; pip install 'ssldet[hf]'")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import datasets  # here, because only few need it, and it takes two seconds

    datasets.disable_progress_bars()
    # What goes wrong is raised too, and said once, by us.
    datasets.logging.set_verbosity(logging.CRITICAL)
    return datasets


def _local(library: Any, rest: str, spec: str) -> list[Any]:
    """Return the wanted splits of files of this machine."""
    path, wanted = split_name(rest)
    place = absolute(Path(path))
    if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
        saved = library.load_from_disk(str(place))
        splits = dict(saved) if isinstance(saved, library.DatasetDict) else {str(saved.split or "train"): saved}
        return [splits[name] for name in _chosen(wanted, list(splits), spec)]
    files = _parquet(place, spec)
    names = _chosen(wanted, list(files), spec)
    log.info("%s: rows of Parquet are copied once into %s", spec, _kept())
    return [
        library.Dataset.from_parquet([glob.escape(file) for file in files[name]], cache_dir=str(_kept()))
        for name in names
    ]


def _kept() -> Path:
    return cache_folder() / "tables"


def split_name(rest: str) -> tuple[str, str]:
    """Return the path of a specification and its split; empty where it names none.

    Args:
        rest: What stands behind `hf:`.
    """
    path, colon, split = rest.rpartition(":")
    return (rest, "") if not colon or Path(rest).expanduser().exists() else (path, split)


def _parquet(place: Path, spec: str) -> dict[str, list[str]]:
    """Return the files of each split: one is named by its file, as `test-00000-of-00002.parquet` is, or is `train`.

    Raises:
        DataError: There are none.
    """
    if place.is_dir():
        found = sorted(place.rglob("*.parquet"))
    elif place.exists():
        found = [place]
    else:
        found = [Path(name) for name in sorted(glob.glob(str(place), recursive=True))]  # noqa: PTH207  # absolute
    if not found:
        beside = [entry.name for entry in place.parent.iterdir()] if place.parent.is_dir() else []
        hint = "" if place.exists() else suggest(place.name, beside)
        raise DataError(f"{spec}: no file of Parquet there, and no folder of save_to_disk{hint}")
    splits: dict[str, list[str]] = {}
    for file in found:
        require_regular(file)
        shard = SHARD.fullmatch(file.stem)
        name = shard[1] if shard else file.stem if file.stem in {"train", "validation", "test"} else "train"
        splits.setdefault(name, []).append(str(file))
    return splits


def _chosen(wanted: str, splits: Sequence[str], spec: str) -> list[str]:
    """Return the splits that were asked for.

    Raises:
        DataError: One is not there, or none was named of several.
    """
    if not wanted:
        if len(splits) > 1:
            joined = f"{spec}:{'+'.join(splits[:2])}"
            raise DataError(f"{spec}: has the splits {', '.join(splits)}; name one, or join them: {joined}")
        return list(splits)
    for name in wanted.split("+"):
        if name not in splits:
            raise DataError(f"{spec}: has no split {name!r}{suggest(name, splits)}; there is {', '.join(splits)}")
    return wanted.split("+")


def _remote(library: Any, rest: str, spec: str) -> list[Any]:
    """Return the wanted splits of a repository; what is not on this machine yet is fetched.

    Raises:
        SetupError: It can't be.
    """
    form = REMOTE.fullmatch(rest)
    if form is None:
        raise DataError(f"{spec}: names no repository; write hf:hub:USER/NAME, hf:hub:USER/NAME@REVISION:SPLIT")
    if os.environ.get("SSLDET_OFFLINE"):
        raise SetupError(f"{spec}: SSLDET_OFFLINE forbids to fetch it; save it with save_to_disk, and name that folder")
    repository, revision, wanted = form.groups()
    try:
        splits = library.load_dataset(repository, revision=revision)
    except Exception as error:  # whatever HTTP client the library uses has errors of its own
        if revision and any(type(cause).__name__ == "RevisionNotFoundError" for cause in _causes(error)):
            raise SetupError(f"{spec}: {repository} has no branch, tag or commit {shown(revision)}") from error
        raise SetupError(f"{spec}: can't be fetched ({_line(error)})") from error
    return [splits[name] for name in _chosen(wanted or "", list(splits), spec)]


def _image_column(features: Any, library: Any, spec: str) -> str:
    """Return which column holds the images.

    Raises:
        DataError: None does, or it can't be told.
    """
    images = [name for name, feature in features.items() if isinstance(feature, library.Image)]
    named = [name for name in COLUMNS if name in (images or features)]
    if named or len(images) == 1:
        return named[0] if named else images[0]
    what = f"several columns of images ({', '.join(map(shown, images))})" if images else "no column of images"
    raise DataError(f"{spec}: has {what} among {', '.join(map(shown, features))}; name the one column 'image'")


def _line(error: BaseException) -> str:
    """Return what was wrong at first: the library says of much that an error occurred."""
    *_, first = _causes(error)
    return shown((str(first).strip().splitlines() or [type(first).__name__])[0])


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, what caused it, and so on."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__
