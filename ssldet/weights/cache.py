"""known weights -> their file: from the cache folder, or fetched into it once, by one process, with all others waiting.

The cache folder is `SSLDET_HOME`, by default `~/.cache/ssldet`. With `SSLDET_OFFLINE` set nothing is ever fetched.
"""

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from ssldet.errors import SetupError
from ssldet.weights.fetching import fetch, require_https
from ssldet.weights.zoo import KnownWeights

log = logging.getLogger(__name__)

WAIT_SECONDS = 3600.0
"""How long a process waits for another one that fetches the same file."""


def cache_folder(environment: Mapping[str, str] | None = None) -> Path:
    """Return the folder that holds fetched files.

    Args:
        environment: Where `SSLDET_HOME` is looked up; none means the process's own.
    """
    home = (os.environ if environment is None else environment).get("SSLDET_HOME")
    return Path(home).expanduser() if home else Path.home() / ".cache" / "ssldet"


def cached(known: KnownWeights, *, require: Callable[[str], None] = require_https) -> Path:
    """Return the file, fetching it if it isn't there yet.

    Ranks of one run and unrelated processes alike find out by a lock beside the file who fetches.

    Args:
        known: Which.
        require: Raises on addresses that may not be asked.

    Raises:
        SetupError: It isn't there and can't be fetched; the message says where to get it and where to put it.
        CheckpointError: What was fetched is not what its authors published.
    """
    path = cache_folder() / known.file
    if path.is_file():
        return path
    remedy = f"fetch {known.address} and put it at {path}"
    if known.by_hand:
        raise SetupError(f"{known.name}: its authors publish it where only a browser gets it; {remedy}")
    if os.environ.get("SSLDET_OFFLINE"):
        raise SetupError(f"{known.file}: not in the cache folder, and SSLDET_OFFLINE forbids to fetch it; {remedy}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=WAIT_SECONDS):
            if not path.is_file():
                log.info("fetching %s (%s, %s)", known.address, known.source, known.licence)
                fetch(known.address, path, known.digest, require=require)
    except Timeout as error:
        waited = f"another process has been fetching it for {WAIT_SECONDS:.0f} s"
        raise SetupError(f"{known.file}: {waited}; {remedy}") from error
    except OSError as error:
        raise SetupError(f"{known.file}: can't be fetched ({error}); {remedy}") from error
    return path
