"""backbone, weights file -> filled backbone, whoever wrote the file, all parts counted.

Nothing is loaded silently in part: a file that fills less of the backbone than asked is refused.
"""

import logging
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssldet.errors import CheckpointError
from ssldet.nn.backbones import Backbone
from ssldet.weights.cache import cached
from ssldet.weights.detectron2 import has_resnet, plain_resnet, require_our_pixels
from ssldet.weights.files import read_state
from ssldet.weights.recognition import Inner, find_network, name_kind
from ssldet.weights.resnets import name_resnet
from ssldet.weights.zoo import known_weights

log = logging.getLogger(__name__)

LEAST_COVERAGE = 0.95
COUNTER = "num_batches_tracked"
"""Ending of what batch norms count and fixed norms don't need; files may hold it or not."""
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
"""What timm's local folders call their weights."""


@dataclass(frozen=True)
class Share:
    """Some of a network's tensors.

    Attributes:
        names: Their names.
        parameters: How many numbers they hold, fixed statistics included.
    """

    names: tuple[str, ...]
    parameters: int

    @classmethod
    def of(cls, names: Iterable[str], tensors: Mapping[str, Tensor]) -> "Share":
        """Count.

        Args:
            names: Which.
            tensors: Where they are.
        """
        names = tuple(names)
        return cls(names, sum(tensors[name].numel() for name in names))

    def __len__(self) -> int:
        """Count the tensors."""
        return len(self.names)

    def __str__(self) -> str:
        """Name the first."""
        shown = ", ".join(self.names[:3])
        return f"{len(self)} ({shown}{', …' if len(self) > 3 else ''})"


@dataclass(frozen=True, kw_only=True)
class BackboneReport:
    """What became of a weights file.

    Attributes:
        weights: Name or path, as given.
        path: The file.
        kind: What kind of file it is, and which of several copies was taken.
        prefix: What the names of the backbone began with.
        wanted: The backbone.
        loaded: What was filled as it is in the file.
        reshaped: What was filled after resampling it to another grid of patches.
        misshapen: What the file holds in a shape that doesn't fit; it stays fresh.
        fresh: What the file doesn't hold.
        ignored: What else the file holds.
    """

    weights: str
    path: Path
    kind: str
    prefix: str
    wanted: Share
    loaded: Share
    reshaped: Share
    misshapen: Share
    fresh: Share
    ignored: Share

    @property
    def coverage(self) -> float:
        """Share of the backbone that was filled: of its tensors or of its parameters, whichever is less."""
        tensors = (len(self.loaded) + len(self.reshaped)) / max(1, len(self.wanted))
        return min(tensors, (self.loaded.parameters + self.reshaped.parameters) / max(1, self.wanted.parameters))

    def __str__(self) -> str:
        """Say it in one line."""
        parts = [
            f"{len(self.loaded)} of {len(self.wanted)} tensors and {self.loaded.parameters:,} of "
            f"{self.wanted.parameters:,} parameters loaded"
        ]
        told = {"resampled": self.reshaped, "fresh": self.fresh, "fresh for their shape": self.misshapen}
        parts += [f"{share} {word}" for word, share in told.items() if len(share)]
        if len(self.ignored):
            counts = sorted(Counter(name.partition(".")[0] for name in self.ignored.names).items())
            parts.append(f"{len(self.ignored)} ignored ({', '.join(f'{word} {count}' for word, count in counts)})")
        return f"backbone weights {self.weights}, {self.kind}: {'; '.join(parts)}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values; what was loaded and ignored is counted, the rest also named."""
        told = {
            word: {"tensors": len(share), "parameters": share.parameters}
            | ({} if word in ("wanted", "loaded", "ignored") else {"names": list(share.names)})
            for word, share in vars(self).items()
            if isinstance(share, Share)
        }
        said = {"weights": self.weights, "path": str(self.path), "kind": self.kind, "prefix": self.prefix}
        return said | told | {"coverage": self.coverage}


def load_backbone(
    backbone: Backbone, weights: str, *, architecture: str | None = None, coverage: float = LEAST_COVERAGE
) -> BackboneReport:
    """Fill a backbone from a file.

    Args:
        backbone: Filled in place.
        weights: Path of a file or of a local folder of timm's, or a name that `ssldet list weights` shows.
        architecture: The backbone's name, which weights that go by a name are looked up for; none finds out for
            plain ResNets.
        coverage: Least share of the backbone's tensors, and of its parameters, that the file must fill.

    Returns:
        What was loaded, what stays fresh and what was ignored.

    Raises:
        CheckpointError: The file can't be read, or doesn't fit; nothing is changed then.
        SetupError: A named file is not here and can't be fetched.
    """
    own = backbone.body.state_dict()
    wanted = {name: value for name, value in own.items() if not name.endswith(COUNTER)}
    path = weights_path(weights, architecture or name_resnet(wanted))
    state, origin = read_state(path)
    children = [name for name, _ in backbone.body.named_children()]
    network = _plain(state, path)
    inner = find_network(network, wanted, children, origin)
    resampled = _resample(backbone.body, inner.state, wanted)
    fitting = {name: v for name, v in inner.state.items() if name in wanted and v.shape == wanted[name].shape}
    report = _report(weights, path, name_kind(state, inner, origin), network, inner, wanted, fitting, resampled)
    _require(report, inner, wanted, coverage, pruned=backbone.pruned)
    infinite = [name for name, value in (fitting | resampled).items() if not bool(torch.isfinite(value).all())]
    if infinite:
        raise CheckpointError(f"{path}: {infinite[0]} is not finite; copy or download the file again")
    backbone.body.load_state_dict(fitting | resampled, strict=False)
    return report


def _plain(state: Mapping[str, Tensor], path: Path) -> Mapping[str, Tensor]:
    """Give a ResNet in a file of detectron2's the names that it has everywhere else."""
    if not has_resnet(state):
        return state
    require_our_pixels(path)
    try:
        return plain_resnet(state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def weights_path(weights: str, architecture: str | None = None) -> Path:
    """Return the file that is meant; a path goes before a name only where it exists or looks like one.

    Args:
        weights: Path or name.
        architecture: The network that shall have them; none where it has no name.

    Raises:
        CheckpointError: No such name, or a folder without weights.
        SetupError: A named file is not here and can't be fetched.
    """
    path = Path(weights).expanduser()
    if path.is_dir():
        found = next((path / name for name in FOLDER_FILES if (path / name).is_file()), None)
        if found is None:
            raise CheckpointError(f"{path}: a folder without {' or '.join(FOLDER_FILES)}; name a weights file")
        return found
    if path.exists() or len(path.parts) > 1 or path.suffix in (".pth", ".pt", ".tar", ".ckpt", ".bin", ".safetensors"):
        return path
    return cached(known_weights(weights, architecture))


def _report(
    weights: str,
    path: Path,
    kind: str,
    state: Mapping[str, Tensor],
    inner: Inner,
    wanted: Mapping[str, Tensor],
    fitting: Collection[str],
    resampled: Collection[str],
) -> BackboneReport:
    found = inner.state
    beside = {name: value for name, value in state.items() if not name.startswith(inner.prefix)}
    beside |= {name: value for name, value in found.items() if name not in wanted and not name.endswith(COUNTER)}
    misshapen = [name for name in found if name in wanted and name not in fitting and name not in resampled]
    return BackboneReport(
        weights=weights,
        path=path,
        kind=kind,
        prefix=inner.prefix,
        wanted=Share.of(wanted, wanted),
        loaded=Share.of(fitting, wanted),
        reshaped=Share.of(resampled, wanted),
        misshapen=Share.of(misshapen, wanted),
        fresh=Share.of([name for name in wanted if name not in found], wanted),
        ignored=Share.of(beside, beside),
    )


def _require(
    report: BackboneReport, inner: Inner, wanted: Mapping[str, Tensor], coverage: float, pruned: Collection[str]
) -> None:
    """Refuse a file that leaves too much fresh, or holds a deeper network, whose tensors mean something else."""
    holds, needs = name_resnet(inner.state), name_resnet(wanted)
    deeper = _deeper(inner.state, wanted, pruned)
    if report.coverage >= coverage and not deeper:
        return
    why = ""
    if holds and holds != needs:
        why = f": it holds a {holds}, the backbone is a {needs or 'different network'}"
    elif deeper:
        why = f": it holds a deeper network, with {deeper[0]}"
    raise CheckpointError(
        f"{report.path}: does not fit this backbone{why} ({report}); choose the file's own network, or another file"
        + ("" if deeper else f", or accept less than {coverage:.0%} by detector.backbone.coverage")
    )


def _deeper(found: Collection[str], wanted: Iterable[str], pruned: Collection[str]) -> list[str]:
    """Return names that go on counting where the backbone's stop, such as `layer1.2` after `layer1.1`."""
    known = {step: parent for name in wanted for step, parent in _steps(name)}
    parents = set(known.values())
    return [
        name
        for name in found
        if name not in pruned and any(parent in parents and step not in known for step, parent in _steps(name))
    ]


def _steps(name: str) -> list[tuple[str, str]]:
    """Return every counted part of a name with what counts it, such as `layer1.2` and `layer1`."""
    parts = name.split(".")
    places = [place for place, part in enumerate(parts) if place and part.isdigit()]
    return [(".".join(parts[: place + 1]), ".".join(parts[:place])) for place in places]


def _resample(body: nn.Module, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring learned positions of a vision transformer to the backbone's own grid of patches."""
    theirs, ours = found.get("pos_embed"), wanted.get("pos_embed")
    grid = getattr(getattr(body, "patch_embed", None), "grid_size", None)
    if theirs is None or ours is None or grid is None or theirs.shape == ours.shape:
        return {}
    extra = ours.shape[1] - math.prod(grid)
    side = math.isqrt(max(0, theirs.shape[1] - extra))
    if theirs.dim() != 3 or theirs.shape[2] != ours.shape[2] or side**2 + extra != theirs.shape[1] or not side:
        return {}
    import timm

    library: Any = timm  # its types are incomplete
    return {"pos_embed": library.layers.resample_abs_pos_embed(theirs, list(grid), num_prefix_tokens=extra)}
