"""weights file of any project -> state: tensors by name, read without running code of the file.

The format is recognised by the first bytes, not by the name. Torch files are read by PyTorch's own restricted unpickler
with a closed list of harmless classes; there is no fallback for files that need more.
"""

import argparse
import contextlib
import logging
import os
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.serialization import safe_globals

from ssldet.documents import parse_json
from ssldet.errors import CheckpointError, SetupError, suggest
from ssldet.regular import enough_files, open_regular, require_regular
from ssldet.weights.copies import COUNTERS, completed, is_averaged
from ssldet.weights.graphs import GRAPH_ONLY, begins_a_graph

log = logging.getLogger(__name__)

WRAPPERS = ("state_dict", "model_state_dict", "model", "teacher", "student", "module", "shadow")
"""Keys under which projects store the state beside optimizer, epoch and the like; the first present is used. Averaged
weights, such as those under `model_ema`, are used before all of them."""
LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""Bytes after the two of the pickle protocol in torch files that are older than the zip format."""
ZIP_MAGIC = b"PK\x03\x04"
LONGEST_HEADER = 100_000_000
"""Limit of the safetensors format for the bytes of its header."""
Content = TypeVar("Content")
HARMLESS: list[Any] = [
    argparse.Namespace,
    *((PurePosixPath, f"pathlib{local}.{kind}") for local in ("", "._local") for kind in
      ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")),
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?")),
]  # fmt: skip
"""Classes of training checkpoints besides tensors: options, paths and numbers. None of them can run code."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Path, format and other contents of a weights file.

    Attributes:
        path: The file.
        form: Format of the file.
        wrapper: Keys that led to the state, joined by dots; empty where the file is the state itself.
        beside: Other keys of the outermost mapping.
        prefix: Common prefix that was removed from all names.
        ignored: Entries of the state that are not tensors.
        options: The options of the training run (`args`), where the file holds them; a safetensors file as JSON.
        metadata: Text stored beside the tensors of a safetensors file.
    """

    path: Path
    form: Literal["safetensors", "torch"]
    wrapper: str = ""
    beside: tuple[str, ...] = ()
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


def read_state(path: Path) -> tuple[dict[str, Tensor], Origin]:
    """Read a state from a safetensors or torch file, without wrappers and prefixes of wrapper modules.

    Args:
        path: The file.

    Returns:
        Tensors by name, on the CPU, and the other contents of the file.

    Raises:
        CheckpointError: The file is missing or damaged, is not a weights file, or holds more than data.
    """
    form = _sniff(path)
    metadata: dict[str, str] = {}
    if form == "safetensors":
        document, metadata = _read_safetensors(path)
    else:
        document = _read_torch(path)
    found, plain = _choose(document, path)
    if plain is not None:
        log.warning("%s: took the averaged weights, %s, not those of %s", path, found.wrapper, plain.wrapper or "it")
        found = found._replace(state=completed(found.state, plain.state, path))
    return found.state, Origin(
        path=path,
        form=form,
        wrapper=found.wrapper,
        beside=tuple(map(str, document)) if found.wrapper else (),
        prefix=found.prefix,
        ignored=found.ignored,
        options=_options(document, metadata),
        metadata=metadata,
    )


@contextlib.contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Let errors about the content of a file begin with its path.

    Args:
        path: The file.

    Raises:
        CheckpointError: One was raised inside, with the path or without.
    """
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error


def read_header(path: Path) -> tuple[frozenset[str], dict[str, str]]:
    """Return names of tensors and text beside them from a safetensors file, without reading a tensor.

    Args:
        path: The file.

    Returns:
        Both empty if it is not a complete safetensors file.
    """
    try:
        require_regular(path)
        with enough_files(path), safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = dict.fromkeys(file.keys())
            names, _ = _strip(names | dict.fromkeys(name for name, _ in _second_names(names, metadata)), path)
            return frozenset(names), metadata
    except (SafetensorError, CheckpointError, OSError, RuntimeError):  # the last where too many files are open
        return frozenset(), {}


def _sniff(path: Path) -> Literal["safetensors", "torch"]:
    """Return the format by the first bytes; raise an error if it can't be a weights file."""
    try:
        with open_regular(path) as file:
            size, start = os.fstat(file.fileno()).st_size, file.read(32)
    except FileNotFoundError as error:
        siblings = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise CheckpointError(f"{path}: no such file{suggest(path.name, siblings)}; check the path") from error
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror}); name a weights file") from error
    if not start:
        raise CheckpointError(f"{path}: is empty; copy or download it again")
    if start.startswith(ZIP_MAGIC):
        _check_archive(path, size)
        return "torch"
    # The length of the header may begin with any byte, that of a pickle too.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= LONGEST_HEADER:
        return "safetensors"
    if start[:1] == b"\x80":
        if start[2:].startswith(LEGACY_MAGIC):
            return "torch"
        if len(start) < 32:
            raise CheckpointError(f"{path}: is cut off; copy or download it again")
        raise CheckpointError(f"{path}: is a plain pickle, which may run code; save its tensors as safetensors instead")
    if begins_a_graph(start):
        raise CheckpointError(f"{path}: {GRAPH_ONLY}")
    shown = start[:8].decode("ascii", "replace")
    raise CheckpointError(f"{path}: is neither a safetensors nor a torch file (it begins with {shown!r}); convert it")


def _check_archive(path: Path, size: int) -> None:
    """Check the directory of a zip archive: PyTorch stores tensors uncompressed, so no member may grow on reading."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    # A damaged directory may also hold names that are no text, and versions and sizes that do not exist.
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError, struct.error, EOFError) as error:
        raise CheckpointError(f"{path}: is cut off or damaged; copy or download it again") from error
    total = sum(member.file_size for member in members)
    if total > size:
        raise CheckpointError(
            f"{path}: would grow from {size} to {total} bytes on reading, which no weights file does; don't use it"
        )
    names = {member.filename.split("/", 1)[-1] for member in members}
    if "constants.pkl" in names:
        raise CheckpointError(f"{path}: is a TorchScript program; save the state_dict() of its module instead")
    if "data.pkl" not in names:
        raise CheckpointError(f"{path}: is a zip archive without weights; name the file inside it")


def _read_safetensors(path: Path) -> tuple[Any, dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except RuntimeError as error:  # of the system
        raise CheckpointError(f"{path}: can't be opened ({error})") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path}: is cut off or damaged ({error}); copy or download it again") from error
    return state | {name: state[kept] for name, kept in _second_names(state, metadata)}, metadata


def _second_names(names: Collection[str], metadata: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the names that `safetensors.torch.save_model` left out because of shared tensors, and those it kept."""
    yield from ((name, kept) for name, kept in metadata.items() if kept in names and name not in names)


def _read_torch(path: Path) -> Any:
    try:
        # A newer pickle protocol than usual makes PyTorch warn, and reads well.
        with warnings.catch_warnings(action="ignore"), safe_globals(HARMLESS), open_regular(path) as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        blocked = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"a Python object ({blocked[1]})" if blocked else "something that PyTorch's safe reader does not know"
        raise CheckpointError(
            f"{path}: holds {what} and was not loaded, since that may run code; save its state_dict() alone, "
            "or as safetensors"
        ) from error
    except SetupError:
        raise
    # A damaged pickle makes the unpickler fail in whatever way the damaged instruction does.
    except Exception as error:
        raise CheckpointError(f"{path}: is cut off or damaged; copy or download it again") from error


class _Unwrapped(NamedTuple):
    """Tensors inside wrappers, the keys that led to them, the prefix of their names, and the names of other entries."""

    state: dict[str, Tensor]
    wrapper: str
    prefix: str
    ignored: tuple[str, ...]


def _choose(document: Any, path: Path) -> tuple[_Unwrapped, _Unwrapped | None]:
    """Return the weights to take, and the trained ones where these are their average."""
    keys = document if isinstance(document, Mapping) else ()
    averaged = next((key for key in keys if is_averaged(str(key)) and _holds_tensors(document[key])), None)
    if averaged is None:
        return _unwrap(document, path), None
    rest = {key: value for key, value in document.items() if key != averaged}
    plain = _unwrap(rest, path) if _holds_tensors(rest) else None
    return _unwrap({averaged: document[averaged]}, path, (averaged, *WRAPPERS)), plain


def _innermost(document: Any, wrappers: Sequence[str] = WRAPPERS) -> tuple[Mapping[Any, Any], list[str]]:
    """Return what the wrappers hold, and the keys that led to it."""
    trail: list[str] = []
    while isinstance(document, Mapping):
        inner = next((key for key in wrappers if isinstance(document.get(key), Mapping)), None)
        if inner is None:
            return document, trail
        document = document[inner]
        trail.append(inner)
    return {}, trail


def _holds_tensors(document: Any) -> bool:
    return any(isinstance(name, str) and _is_tensor(value) for name, value in _innermost(document)[0].items())


def _unwrap(document: Any, path: Path, wrappers: Sequence[str] = WRAPPERS) -> _Unwrapped:
    found, trail = _innermost(document, wrappers)
    state = {name: value.detach() for name, value in found.items() if isinstance(name, str) and _is_tensor(value)}
    if not state:
        raise CheckpointError(f"{path}: holds no tensors by name; save a model's state_dict()")
    for name, value in state.items():
        if value.layout != torch.strided or value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise CheckpointError(f"{path}: {name} claims more numbers than the file holds; don't use it")
    ignored = tuple(str(name) for name in found if name not in state)
    state, prefix = _strip(state, path)
    return _Unwrapped(state, ".".join(trail), prefix, ignored)


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def _options(document: Any, metadata: Mapping[str, str]) -> dict[str, Any]:
    given = document.get("args") if isinstance(document, Mapping) else None
    if "args" in metadata:
        with contextlib.suppress(ValueError):
            given = parse_json(metadata["args"])
    return (
        dict(vars(given)) if isinstance(given, argparse.Namespace) else dict(given) if isinstance(given, dict) else {}
    )


def _strip(state: dict[str, Content], path: Path) -> tuple[dict[str, Content], str]:
    """Remove what data parallelism, compilation and averaging add to a model's names, and the counters of averages."""
    prefix, found = "", {name.replace("_orig_mod.", ""): value for name, value in state.items()}
    if len(found) != len(state):
        raise CheckpointError(f"{path}: holds a compiled and a plain copy of one tensor; keep one of them")
    while True:
        inner = {name: value for name, value in found.items() if name not in COUNTERS}
        if not inner or not all(name.startswith("module.") for name in inner):
            return found, prefix
        prefix += "module."
        found = {name.removeprefix("module."): value for name, value in inner.items()}
