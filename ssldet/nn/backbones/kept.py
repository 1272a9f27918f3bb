"""images -> levels of a network that does not learn, read from disk where they were computed before.

What a network says of an image depends on every number that it gets, padding included, since convolutions reach across
the border of an image. So levels are found by the normalised image as it lies on its canvas, by the weights, and by the
network's answer to an image of noise, which stands for its architecture, its precision and the machine. Each image is
computed by itself: its levels then depend neither on the rest of its batch nor on what was kept already, and a run that
is continued takes the same steps.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from ssldet.disk import Disk, naming
from ssldet.escapes import shown
from ssldet.nn.backbones.resting import Watch, can_be_watched, is_at_rest, weights_of
from ssldet.regular import read_bytes

log = logging.getLogger(__name__)

PROBE_SIDE = 128
"""Side of the image of noise."""
CHECK_BYTES = 16
"""Bytes at the start of a file that its other bytes are checked by."""
ABANDONED = 3600
"""Seconds after which a file that was begun is one of a process that was killed."""

Compute = Callable[[Tensor], tuple[Tensor, ...]]
"""`B c H W` -> all levels `B _ _ _`, from fine to coarse."""


@runtime_checkable
class Store(Protocol):
    """Where levels of images are kept, each list of them under a name."""

    def read(self, network: str, image: str) -> list[Tensor] | None:
        """Return what is kept of an image; `None` where nothing is."""
        ...

    def write(self, network: str, image: str, levels: Sequence[Tensor]) -> None:
        """Keep the levels of an image, if there is room."""
        ...


class DiskStore:
    """Levels in files, one per image, in a folder for each network. Files are checked when they are read.

    Attributes:
        folder: Where.
        limit: Bytes of all files, above which nothing is added.
        used: Bytes of all files.
        found: Images whose levels were read.
        computed: Images whose levels were not there.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        """Count what is there.

        Args:
            folder: Where; made when the first file is written.
            limit: Bytes of all files, above which nothing is added.
        """
        self.folder, self.limit = folder, limit
        self.used, self.found, self.computed = _used(folder), 0, 0
        self._broken = False

    def read(self, network: str, image: str) -> list[Tensor] | None:
        """Return what is kept of an image; `None` where nothing is, or where the file is damaged."""
        try:
            content = memoryview(read_bytes(self._path(network, image)))
            levels = (
                load(bytes(content[CHECK_BYTES:])) if _check(content[CHECK_BYTES:]) == content[:CHECK_BYTES] else {}
            )
        except (OSError, SafetensorError):
            levels = {}
        self.found, self.computed = self.found + bool(levels), self.computed + (not levels)
        return [levels[name] for name in sorted(levels)] or None

    def write(self, network: str, image: str, levels: Sequence[Tensor]) -> None:
        """Keep the levels of an image if there is room; a disk that fails is a warning, and nothing more is kept."""
        content = save({f"{number:03d}": level for number, level in enumerate(levels)})
        size = CHECK_BYTES + len(content)
        if self._broken or self.used + size > self.limit:
            return
        path, disk = self._path(network, image), Disk()
        stage = path.with_name(f"{path.name}.tmp-{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with naming(path), disk.create(stage) as file:
                disk.put(file, _check(content))
                disk.put(file, content)
            disk.replace(stage, path)  # without waiting for the medium, since a damaged file is noticed
            self.used += size
        except OSError as error:
            with suppress(OSError):
                stage.unlink()
            self._broken = True
            log.warning("%s: can't be written (%s); no more features are kept", shown(path), error.strerror)

    def _path(self, network: str, image: str) -> Path:
        return self.folder / network / image[:2] / image


class KeptLevels:
    """The levels of one network, through a store. A deep copy of this, as of an averaged model, shares the store."""

    def __init__(self, store: Store) -> None:
        """Begin with a network that is not known yet.

        Args:
            store: Where to look and to keep.
        """
        self._store, self._watch = store, Watch()
        self._names: dict[tuple[torch.dtype, str, int], str] = {}

    def __deepcopy__(self, _: object) -> "KeptLevels":
        """Return one for another network."""
        return KeptLevels(self._store)

    def of(self, body: nn.Module, images: Tensor, count: int, compute: Compute) -> tuple[Tensor, ...]:
        """Return the coarsest levels of some images.

        Args:
            body: The network; none of its weights needs a gradient.
            images: Normalised images on their canvas.
            count: How many levels are needed.
            compute: The network itself.
        """
        weights = list(weights_of(body))
        if torch.compiler.is_compiling() or not is_at_rest(body) or not can_be_watched(weights):
            return compute(images)[-count:]
        network, rows = self._name(weights, images, count, compute), []
        for place, content in enumerate(images.detach().cpu().contiguous()):
            name = _digest(str(content.shape).encode(), content)
            levels = self._store.read(network, name)
            if levels is None:
                levels = [level[0].cpu().contiguous() for level in compute(images[place : place + 1])[-count:]]
                self._store.write(network, name, levels)
            rows.append(levels)
        together = [torch.stack(level).to(images.device) for level in zip(*rows, strict=True)]
        return tuple(level.contiguous(memory_format=torch.channels_last) for level in together)

    def _name(self, weights: Sequence[Tensor], images: Tensor, count: int, compute: Compute) -> str:
        """Return the name of the network as it computes here and now."""
        kind = images.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else images.dtype
        if not self._watch.unchanged(weights):
            self._names.clear()
            self._watch.note(weights)
        if (dtype, kind, count) not in self._names:
            noise = torch.randn(1, images.shape[1], PROBE_SIDE, PROBE_SIDE, generator=torch.Generator().manual_seed(0))
            answer = compute(noise.to(images))[-count:]
            self._names[dtype, kind, count] = _digest(kind.encode(), *weights, *answer)
        return self._names[dtype, kind, count]


def _digest(words: bytes, *tensors: Tensor) -> str:
    digest = hashlib.blake2b(words, digest_size=20)
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous().flatten()
        digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=CHECK_BYTES).digest()


def _used(folder: Path) -> int:
    """Return the bytes of all files in a folder, of which those are removed that a killed process had begun."""
    used, now = 0, time.time()
    for path in folder.glob("*/*/*"):
        try:
            info = path.stat()
            if ".tmp-" in path.name and now - info.st_mtime > ABANDONED:
                path.unlink()
            else:
                used += info.st_size
        except OSError:  # another process removed it meanwhile
            continue
    return used
