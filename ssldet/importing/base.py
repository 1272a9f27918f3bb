"""The interface of importers, which open a file or folder as a model inside its task.

Importers are registered under `ssldet.importers`. They are tried in the order of their names, general ones last, and
the first that recognises the file or folder opens it.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ssldet.engine.run import Precision
from ssldet.errors import CheckpointError, ConfigError
from ssldet.registry import find, names
from ssldet.task import Objective, Task
from ssldet.weights.files import Origin, read_header, read_state

log = logging.getLogger(__name__)

GROUP = "ssldet.importers"


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model, and the information of its file.

    Attributes:
        objective: The detector inside the objective of the task that it was trained on, in evaluation mode.
        task: The task that the detector was trained on.
        classes: Class names in the order of the labels; empty where the model was trained without classes.
        info: Everything else that the file states: at least `task`, `detector`, `classes` and `category_ids`, as plain
            values.
        fresh: Sections of the detector of which the file holds no tensor, such as a class head that was removed; they
            have fresh weights and must be trained.
        answers_only: Whether it is a graph, which answers but holds no weights by name.
    """

    objective: Objective
    task: Task
    classes: tuple[str, ...] = ()
    info: dict[str, Any] = field(default_factory=dict)
    fresh: tuple[str, ...] = ()
    answers_only: bool = False

    @property
    def precision(self) -> Precision:
        """Precision in which the model was trained; 32 bits where its file does not say."""
        return "bf16" if self.info.get("choices", {}).get("precision") == "bf16" else "32"


@dataclass(frozen=True)
class Candidate:
    """A file or folder that importers inspect; its contents are read once for all of them.

    Attributes:
        path: An existing file or folder.
    """

    path: Path

    @cached_property
    def metadata(self) -> dict[str, str]:
        """Text beside the tensors of a safetensors file; empty for everything else."""
        return self._header[1]

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of all tensors; empty for a folder, and for a file that can't be read as weights.

        A safetensors file lists them at its beginning; a torch file has to be read for them.
        """
        if self._header[0] or self.path.is_dir():
            return self._header[0]
        try:
            return frozenset(self.read()[0])
        except CheckpointError:
            return frozenset()

    def read(self) -> tuple[dict[str, Tensor], Origin]:
        """Return the tensors of a file and its other contents, as `ssldet.weights.files.read_state` does.

        Raises:
            CheckpointError: It can't be read as weights.
        """
        return self._content

    @cached_property
    def _header(self) -> tuple[frozenset[str], dict[str, str]]:
        return (frozenset(), {}) if self.path.is_dir() else read_header(self.path)

    @cached_property
    def _content(self) -> tuple[dict[str, Tensor], Origin]:
        return read_state(self.path)


@dataclass(frozen=True, kw_only=True)
class Importer:
    """Opens one kind of file or folder.

    Attributes:
        reads: What it reads, in words that fit into "importers read …".
        recognises: Tells whether a file or folder is of this kind, from names and not from values. A damaged one is
            recognised too, because `open` can say what is wrong.
        open: Builds the model; raises `CheckpointError` where the file is incomplete.
        general: Whether it also opens files for which there may be a more specific importer; it is tried after those.
    """

    reads: str
    recognises: Callable[[Candidate], bool]
    open: Callable[[Candidate], Opened]
    general: bool = False


def importers() -> Iterator[Importer]:
    """Yield every registered importer in the order of trying; one that can't be imported is left out with a warning."""
    general = []
    for name in names(GROUP):
        try:
            importer: Importer = find(GROUP, name)
        except ConfigError as error:
            log.warning("%s; its files can't be opened", error)
            continue
        if importer.general:
            general.append(importer)
        else:
            yield importer
    yield from general
