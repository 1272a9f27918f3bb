"""code, recipe, data -> address: the same work has the same address on every machine, and other work another.

The code counts as a digest over the sources of the three packages, not as a commit: a checkout with changes, one
without, and an installed copy of the same files agree, and nothing is forgotten that was never committed. Folders do
not count: data are known by their content, and earlier stages by their own address.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.suite import Data, Given
from ssldet.data.images import ImageRules
from ssldet.data.sources import open_source
from ssldet.engine.run import Run
from ssldet.recipe import to_document

PACKAGES = ("ssldet", "pretext", "downstream")

SILENT = ("checkpoint", "log_every", "preview_every")
"""Fields of a run that change nothing about what it computes."""


def digest(document: object) -> str:
    """Return 12 hexadecimal digits of plain values."""
    return hashlib.blake2b(json.dumps(document, sort_keys=True).encode(), digest_size=6).hexdigest()


@cache
def code_version() -> str:
    """Return a digest over every source file of the packages, by path within the package."""
    found = hashlib.blake2b(digest_size=6)
    for package in PACKAGES:
        spec = find_spec(package)
        for root in map(Path, (spec.submodule_search_locations or ()) if spec else ()):
            for path in sorted(root.rglob("*.py")):
                found.update(f"{package}/{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()


@cache
def data_version(data: Data) -> tuple[str, int]:
    """Return the fingerprint of a set and the number of its images.

    Args:
        data: The set; one on disk is opened, which reads headers and labels, one to generate is known by its fields.

    Raises:
        DataError: There is no such set, or it can't be used.
    """
    if isinstance(data, Given):
        source = open_source(data.specs, ImageRules())
        return source.fingerprint, len(source)
    fields = {name: value for name, value in asdict(data).items() if name != "name"}
    return digest({"generated": fields}), data.images


def address_of(run: Run, *, threads: int | None, **inputs: str | None) -> str:
    """Return the address of a run.

    Args:
        run: The run, without data and without weights of earlier stages.
        threads: See `Suite.threads`.
        inputs: What it reads: fingerprints of data, addresses of earlier stages.
    """
    recipe: Mapping[str, Any] = to_document(run)
    said = {name: value for name, value in recipe.items() if name not in SILENT}
    said["data"] = {name: value for name, value in recipe["data"].items() if name not in {"train", "val", "workers"}}
    return digest({"code": code_version(), "recipe": said, "threads": threads, "inputs": inputs})
