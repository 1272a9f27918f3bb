"""training state <-> checkpoints/step-000123.ckpt: the newest valid step is always there, whatever happens.

Order of one save: stage in the same folder, sync, write the checksum beside, rename, sync the folder, read back, and
only then delete the oldest. No name is ever written twice and there is no link called "last": the newest *valid* step
wins, by its number.
"""

import hashlib
import io
import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssldet.disk import Disk, write_whole
from ssldet.errors import CheckpointError, SetupError, reason_of
from ssldet.escapes import shortened
from ssldet.regular import open_regular, read_text

log = logging.getLogger(__name__)

SCHEMA = 1
"""Version of what a checkpoint holds."""

_NAME = re.compile(r"step-(\d+)\.ckpt")


class DamagedError(CheckpointError):
    """A checkpoint that can't be gone on from; the one before it may do."""


@dataclass(frozen=True, kw_only=True)
class Restored:
    """A checkpoint that passed its checks.

    Attributes:
        step: Optimiser steps done.
        state: As it was saved.
        damaged: Newer checkpoints that did not.
    """

    step: int
    state: dict[str, Any]
    damaged: tuple[Path, ...] = ()


class Checkpoints:
    """The checkpoints of one run.

    Attributes:
        folder: Where they are.
        keep: How many of the newest are kept.
    """

    def __init__(self, folder: Path, keep: int = 2, disk: Disk | None = None) -> None:
        """Look at a folder; nothing is read or written yet.

        Args:
            folder: Where the checkpoints are; made when first needed.
            keep: How many of the newest are kept; at least 2, so that a damaged one has a fallback.
            disk: Does the work; tests give one that fails.
        """
        self.folder, self.keep, self.disk = folder, max(2, keep), disk or Disk()

    def path(self, step: int) -> Path:
        """Return the name of a step."""
        return self.folder / f"step-{step:06d}.ckpt"

    def steps(self) -> list[int]:
        """Return the steps that have a file, newest first."""
        if not self.folder.is_dir():
            return []
        found = [_NAME.fullmatch(name) for name in self.disk.names(self.folder)]
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Save a step, then delete what is older than the `keep` newest.

        Args:
            step: Optimiser steps done.
            state: Tensors and JSON types only, so that it always loads without running code.

        Raises:
            OSError: The disk refused; every earlier checkpoint is still there.
        """
        path = self.path(step)
        self.folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if self.damage(path) is None:
                return
            self.set_aside(path)
        content = _to_bytes({"schema": SCHEMA, "step": step, **state})
        digest = hashlib.sha256(content).hexdigest()
        write_whole(_sum_of(path), f"{digest}  {path.name}\n".encode(), self.disk)
        write_whole(path, content, self.disk)
        if (reason := self.damage(path)) is not None:
            raise OSError(f"{path.name} reads back differently: {reason}")
        for old in self.steps()[self.keep :]:
            self.disk.remove(self.path(old))
            self.disk.remove(_sum_of(self.path(old)))

    def newest(self, fault: Callable[[Mapping[str, Any]], str] = lambda _: "") -> Restored | None:
        """Return the newest valid checkpoint, `None` where there are none; damaged ones that are newer are warned of.

        Args:
            fault: Says why a checkpoint that reads well can't be gone on from; empty where it can.

        Raises:
            CheckpointError: There are checkpoints, but all of them are damaged, or they come from a newer ssldet.
        """
        steps = self.steps()
        damaged: list[Path] = []
        last: DamagedError | None = None
        for step in steps:
            try:
                state = self.read(step)
                if reason := fault(state):
                    raise DamagedError(reason)
            except DamagedError as error:
                log.warning("%s is damaged: %s", self.path(step), error)
                damaged.append(self.path(step))
                last = error
                continue
            if damaged:
                lost = steps[0] - step
                log.warning("going on from step %d instead of %d; steps lost: %d", step, steps[0], lost)
            return Restored(step=step, state=state, damaged=tuple(damaged))
        if steps:
            raise CheckpointError(
                f"{self.folder}: all {len(steps)} checkpoints are damaged, the oldest because {last}; start the run "
                "again"
            )
        return None

    def read(self, step: int) -> dict[str, Any]:
        """Return what was saved at a step; its checksum, its content and its name must agree.

        Args:
            step: One of `steps`.

        Raises:
            DamagedError: They don't; says why.
            CheckpointError: It was written by another version of ssldet.
        """
        path = self.path(step)
        if (reason := self.damage(path)) is not None:
            raise DamagedError(reason)
        state = _load(path)
        if state.get("step") != step:
            raise DamagedError(f"it holds step {state.get('step')!r}, so it was copied or renamed")
        return state

    def damage(self, path: Path) -> str | None:
        """Say what is wrong with a checkpoint file; `None` where nothing is."""
        try:
            expected = read_text(_sum_of(path)).split()[:1]
            actual = self.disk.digest(path)
        except (OSError, UnicodeDecodeError) as error:
            return f"can't be read with its checksum ({reason_of(error)})"
        return None if expected == [actual] else f"{path.stat().st_size} bytes that don't match their checksum"

    def sweep(self) -> None:
        """Delete what a killed process left half done; the caller must hold the run's lock."""
        if not self.folder.is_dir():
            return
        names = set(self.disk.names(self.folder))
        for name in sorted(names):
            orphan = name.endswith(".sha256") and name.removesuffix(".sha256") not in names
            if ".tmp-" in name or orphan:
                self.disk.remove(self.folder / name)

    def set_aside(self, path: Path) -> None:
        """Rename a damaged checkpoint, so that it no longer counts as one and can still be examined."""
        self.disk.replace(path, path.with_name(path.name + ".damaged"))


def room_for(state_bytes: int, keep: int, folder: Path, free: int) -> str | None:
    """Say that a disk is too small for a run's checkpoints; `None` where it is not.

    Args:
        state_bytes: Size of one checkpoint.
        keep: How many are kept; one more is there while saving.
        folder: Where they go.
        free: Free bytes there.
    """
    needed = (keep + 1) * state_bytes
    if free >= needed:
        return None
    return (
        f"{folder}: {free / 1e9:.2f} GB free, but {keep + 1} checkpoints need {needed / 1e9:.2f} GB; free some or "
        "choose another folder"
    )


def plain(value: object, where: str = "state") -> None:
    """Let pass what loads without running code.

    Raises:
        TypeError: Something else than tensors and JSON types; names the place.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str | int):
                raise TypeError(f"{where}: key {key!r} is neither text nor a whole number")
            plain(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            plain(item, f"{where}[{number}]")
    elif not (value is None or isinstance(value, Tensor | str | int | float | bool)):
        raise TypeError(f"{where}: {type(value).__name__} would not load without running code")


def _sum_of(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _to_bytes(state: dict[str, Any]) -> memoryview:
    """Serialise in memory: a full disk is then a plain OSError of one write, never of the serialiser."""
    plain(state)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getbuffer()


def _load(path: Path) -> dict[str, Any]:
    try:
        with open_regular(path) as file:
            state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except SetupError:
        raise
    except Exception as error:  # torch's readers fail in many ways on bytes that are no checkpoint
        raise DamagedError(f"its content can't be loaded ({type(error).__name__})") from error
    if not isinstance(state, dict) or not isinstance(state.get("schema"), int):
        raise DamagedError("its content is no checkpoint of ssldet")
    if state["schema"] != SCHEMA:
        raise CheckpointError(
            f"{path}: has schema {shortened(state['schema'])}, this ssldet reads {SCHEMA}; use the version that wrote "
            "it"
        )
    return state


def size_of(tensors: dict[str, Tensor]) -> int:
    """Return the bytes of some tensors."""
    return sum(math.prod(tensor.shape) * tensor.element_size() for tensor in tensors.values())
