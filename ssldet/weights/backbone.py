"""backbone, weights file of any project -> backbone with weights, and a report of every tensor.

A file that fills less of the backbone than the caller requires is refused.
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
from ssldet.nn.backbones import Backbone, original_state
from ssldet.nn.backbones.stem import adapted
from ssldet.weights.cache import cached
from ssldet.weights.detectron2 import has_resnet, plain_resnet, require_our_pixels
from ssldet.weights.efficientnets import has_efficientnet, timm_efficientnet
from ssldet.weights.files import read_state
from ssldet.weights.hub import fetched, is_on_hub
from ssldet.weights.recognition import Inner, find_network, name_kind
from ssldet.weights.resnets import name_resnet
from ssldet.weights.zoo import known_weights

log = logging.getLogger(__name__)

LEAST_COVERAGE = 0.95
ENDINGS = (".pth", ".pt", ".tar", ".ckpt", ".bin", ".safetensors")
"""Of what is taken for the path of a file though it does not exist."""
COUNTER = "num_batches_tracked"
"""Last part of the name of the step counter of batch norms, which fixed norms don't need; optional in files."""
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of the weights file in a local folder of timm."""


@dataclass(frozen=True)
class Share:
    """Some of a network's tensors.

    Attributes:
        names: Their names.
        parameters: Number of their values, fixed statistics included.
    """

    names: tuple[str, ...]
    parameters: int

    @classmethod
    def of(cls, names: Iterable[str], tensors: Mapping[str, Tensor]) -> "Share":
        """Count the values of some tensors.

        Args:
            names: Names of the tensors.
            tensors: All tensors by name.
        """
        names = tuple(names)
        return cls(names, sum(tensors[name].numel() for name in names))

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self.names)

    def __str__(self) -> str:
        """Return the number of tensors, and the first names."""
        shown = ", ".join(self.names[:3])
        return f"{len(self)} ({shown}{', …' if len(self) > 3 else ''})"


@dataclass(frozen=True, kw_only=True)
class BackboneReport:
    """Which tensors of a backbone were loaded from a weights file.

    Attributes:
        weights: Name or path, as given.
        path: The file.
        kind: What kind of file it is, and which of several copies was taken.
        prefix: Prefix of the names of the backbone in the file.
        wanted: All tensors of the backbone.
        loaded: Tensors loaded as they are in the file.
        reshaped: Tensors loaded after resampling to another grid of patches.
        misshapen: Tensors that the file holds in a shape that doesn't fit; they stay fresh.
        fresh: Tensors of the backbone that the file doesn't hold.
        ignored: All other tensors of the file.
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
        """Return one line."""
        parts = [
            f"{len(self.loaded)} of {len(self.wanted)} tensors and {self.loaded.parameters:,} of "
            f"{self.wanted.parameters:,} parameters loaded"
        ]
        others = {"resampled": self.reshaped, "fresh": self.fresh, "fresh for their shape": self.misshapen}
        parts += [f"{share} {word}" for word, share in others.items() if len(share)]
        if len(self.ignored):
            counts = sorted(Counter(name.partition(".")[0] for name in self.ignored.names).items())
            parts.append(f"{len(self.ignored)} ignored ({', '.join(f'{word} {count}' for word, count in counts)})")
        return f"backbone weights {self.weights}, {self.kind}: {'; '.join(parts)}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values; loaded and ignored tensors are counted, the others also named."""
        shares = {
            word: {"tensors": len(share), "parameters": share.parameters}
            | ({} if word in ("wanted", "loaded", "ignored") else {"names": list(share.names)})
            for word, share in vars(self).items()
            if isinstance(share, Share)
        }
        source = {"weights": self.weights, "path": str(self.path), "kind": self.kind, "prefix": self.prefix}
        return source | shares | {"coverage": self.coverage}


def load_backbone(
    backbone: Backbone, weights: str, *, architecture: str | None = None, coverage: float = LEAST_COVERAGE
) -> BackboneReport:
    """Load a backbone from a file.

    Args:
        backbone: Changed in place.
        weights: Path of a file or of a local folder of timm's, or a name that `ssldet list weights` shows.
        architecture: The backbone's name, for weights that are given by name; `None` recognises plain ResNets.
        coverage: Least share of the backbone's tensors, and of its parameters, that the file must fill.

    Returns:
        The tensors that were loaded, that stay fresh and that were ignored.

    Raises:
        CheckpointError: The file can't be read, or doesn't fit; nothing is changed then.
        SetupError: A named file is not here and can't be fetched.
    """
    own = backbone.body.state_dict()
    wanted = {name: value for name, value in own.items() if not name.endswith(COUNTER)}
    path = weights_path(weights, architecture or name_resnet(wanted))
    state, origin = read_state(path)
    children = [name for name, _ in backbone.body.named_children()]
    network = _plain(state, path, backbone)
    inner = find_network(network, wanted, children, origin)
    inner = inner._replace(state=adapted(backbone, inner.state))
    resampled = _resample(backbone.body, inner.state, wanted)
    fitting = {name: v for name, v in inner.state.items() if name in wanted and v.shape == wanted[name].shape}
    report = _report(weights, path, name_kind(state, inner, origin), network, inner, wanted, fitting, resampled)
    _require(report, inner, wanted, coverage, pruned=backbone.pruned)
    infinite = [name for name, value in (fitting | resampled).items() if not bool(torch.isfinite(value).all())]
    if infinite:
        raise CheckpointError(f"{path}: {infinite[0]} is not finite; copy or download the file again")
    backbone.body.load_state_dict(fitting | resampled, strict=False)
    return report


def _plain(state: Mapping[str, Tensor], path: Path, backbone: Backbone) -> Mapping[str, Tensor]:
    """Rename the tensors of projects whose networks are torchvision's or timm's under other names."""
    try:
        if has_resnet(state):
            require_our_pixels(path)
            return plain_resnet(state)
        if has_efficientnet(state):
            return timm_efficientnet(state, [*original_state(backbone), *backbone.pruned])
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return state


def weights_path(weights: str, architecture: str | None = None) -> Path:
    """Return the file for a path or a name; it is a path if it exists or looks like one.

    Args:
        weights: Path, name, or repository of the Hugging Face hub, `hub:USER/NAME[@REVISION]`.
        architecture: Name of the backbone; `None` where it has no name.

    Raises:
        CheckpointError: There is no such name, or the folder holds no weights.
        SetupError: A named file is not here and can't be fetched.
    """
    path = fetched(weights) if is_on_hub(weights) else Path(weights).expanduser()
    if path.is_dir():
        file = next((path / name for name in FOLDER_FILES if (path / name).exists()), None)
        if file is None:
            raise CheckpointError(f"{path}: a folder without {' or '.join(FOLDER_FILES)}; name a weights file")
        return file
    return path if names_a_file(str(path)) else cached(known_weights(weights, architecture))


def names_a_file(weights: str) -> bool:
    """Tell whether weights lie in a file or folder here: it exists or looks like one; else they have a name.

    Args:
        weights: Path, name, or repository of the Hugging Face hub.
    """
    path = Path(weights).expanduser()
    return not is_on_hub(weights) and (path.exists() or len(path.parts) > 1 or path.suffix in ENDINGS)


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
    held = inner.state
    beside = {name: value for name, value in state.items() if not name.startswith(inner.prefix)}
    beside |= {name: value for name, value in held.items() if name not in wanted and not name.endswith(COUNTER)}
    misshapen = [name for name in held if name in wanted and name not in fitting and name not in resampled]
    return BackboneReport(
        weights=weights,
        path=path,
        kind=kind,
        prefix=inner.prefix,
        wanted=Share.of(wanted, wanted),
        loaded=Share.of(fitting, wanted),
        reshaped=Share.of(resampled, wanted),
        misshapen=Share.of(misshapen, wanted),
        fresh=Share.of([name for name in wanted if name not in held], wanted),
        ignored=Share.of(beside, beside),
    )


def _require(
    report: BackboneReport, inner: Inner, wanted: Mapping[str, Tensor], coverage: float, pruned: Collection[str]
) -> None:
    """Raise an error if a file leaves too much fresh, or holds a deeper network, whose tensors don't correspond."""
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
    """Return names whose numbers exceed those of the backbone, such as `layer1.2` after `layer1.1`."""
    known = {step: parent for name in wanted for step, parent in _steps(name)}
    parents = set(known.values())
    return [
        name
        for name in found
        if name not in pruned and any(parent in parents and step not in known for step, parent in _steps(name))
    ]


def _steps(name: str) -> list[tuple[str, str]]:
    """Return every numbered part of a name and its parent, such as `layer1.2` and `layer1`."""
    parts = name.split(".")
    places = [place for place, part in enumerate(parts) if place and part.isdigit()]
    return [(".".join(parts[: place + 1]), ".".join(parts[:place])) for place in places]


def _resample(body: nn.Module, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Resample the learned positions of a vision transformer to the backbone's own grid of patches."""
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
