"""arrays, a small document -> one file that processes share: mapped into memory, not read and copied."""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from safetensors.numpy import save

from ssldet.disk import Disk, write_whole
from ssldet.documents import parse_json_object
from ssldet.regular import open_regular

KINDS = {"U8": np.uint8, "U32": np.uint32, "I32": np.int32, "I64": np.int64}
"""Names that the file format, safetensors, has for the kinds of numbers used here."""
LARGEST_HEADER = 1 << 30
"""Bytes; more is damage."""


def write_mapped(path: Path, document: Mapping[str, Any], arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> None:
    """Write a file, whole or not at all.

    Args:
        path: Where.
        document: What JSON can say.
        arrays: By name.

    Raises:
        OSError: As the system says.
    """
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_whole(path, save(whole, metadata={"document": json.dumps(document)}), Disk())


def read_mapped(path: Path) -> tuple[dict[str, Any], dict[str, Shaped[np.ndarray, "..."]]]:
    """Return the document and the arrays of a file; the arrays stay in the file.

    Args:
        path: A file of `write_mapped`.

    Raises:
        OSError: It can't be read.
        ValueError: It is damaged.
    """
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LARGEST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        header = parse_json_object(file.read(length))
        try:
            document = parse_json_object(header.pop("__metadata__")["document"])
            arrays = {}
            for name, entry in header.items():
                kind, (begin, end) = np.dtype(KINDS[entry["dtype"]]), entry["data_offsets"]
                if end - begin != prod(entry["shape"]) * kind.itemsize:
                    raise ValueError(f"{name}: {end - begin} bytes for {entry['shape']}")
                shape = tuple(entry["shape"])
                # A view, because the class that remembers its file can't be handed to another process.
                mapped = np.memmap(file, kind, "r", 8 + length + begin, shape) if end > begin else np.zeros(shape, kind)
                arrays[name] = np.asarray(mapped)
        except (AttributeError, KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"not what is written here ({error!r})") from error
    return document, arrays
