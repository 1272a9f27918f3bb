"""code, recipe, data -> address: the same run has the same address on every machine, and another run another one.

The code enters as a digest of the source files of three packages, not as a commit, so that uncommitted changes count
and an installed copy of the same files has the same address. Paths do not enter: data are identified by their content,
and earlier stages by their own address.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.suite import Data, ImagesOnDisk
from ssldet.data.images import ImageRules
from ssldet.data.sources import open_source
from ssldet.engine.run import Run
from ssldet.recipe import to_document

PACKAGES = ("ssldet", "pretext", "downstream")

IGNORED = ("checkpoint", "log_every", "preview_every")
"""Fields of a run that have no influence on its results."""


def digest(document: object) -> str:
    """Return a digest of plain values: 12 hexadecimal digits."""
    return hashlib.blake2b(json.dumps(document, sort_keys=True).encode(), digest_size=6).hexdigest()


@cache
def code_version() -> str:
    """Return a digest of all source files of the packages and their paths in the package."""
    version = hashlib.blake2b(digest_size=6)
    for package in PACKAGES:
        spec = find_spec(package)
        for root in map(Path, (spec.submodule_search_locations or ()) if spec else ()):
            for path in sorted(root.rglob("*.py")):
                version.update(f"{package}/{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return version.hexdigest()


@cache
def data_version(data: Data) -> tuple[str, int]:
    """Return the fingerprint of a set and the number of its images.

    Args:
        data: Data set. A set on disk is opened, which reads headers and labels; a generated set is identified by its
            fields.

    Raises:
        DataError: There is no such set, or it can't be used.
    """
    if isinstance(data, ImagesOnDisk):
        source = open_source(data.specs, ImageRules())
        return source.fingerprint, len(source)
    fields = {name: value for name, value in asdict(data).items() if name != "name"}
    return digest({"generated": fields}), data.images


def address_of(run: Run, *, threads: int | None, **inputs: str | None) -> str:
    """Return the address of a run.

    Args:
        run: The run, without data and without weights of earlier stages.
        threads: Number of threads, as in `Suite.threads`.
        inputs: Fingerprints of the data and addresses of the earlier stages that it reads.
    """
    recipe: Mapping[str, Any] = to_document(run)
    relevant = {name: value for name, value in recipe.items() if name not in IGNORED}
    data = recipe["data"].items()
    relevant["data"] = {name: value for name, value in data if name not in {"train", "val", "unlabelled", "workers"}}
    return digest({"code": code_version(), "recipe": relevant, "threads": threads, "inputs": inputs})
