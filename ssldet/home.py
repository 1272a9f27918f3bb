"""environment -> the folder in which files are kept that can be fetched or made again: weights, indices of images."""

import os
from collections.abc import Mapping
from pathlib import Path


def cache_folder(environment: Mapping[str, str] | None = None) -> Path:
    """Return `SSLDET_HOME`, by default `~/.cache/ssldet`.

    Args:
        environment: Environment in which `SSLDET_HOME` is looked up; `None` means that of the process.
    """
    home = (os.environ if environment is None else environment).get("SSLDET_HOME")
    return Path(home).expanduser() if home else Path.home() / ".cache" / "ssldet"
