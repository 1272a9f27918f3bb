"""backbone, weights file -> filled backbone: SwAV, torchvision, timm, lightly and MoCo files, all parts counted.

Nothing is loaded silently in part: below `LEAST_COVERAGE` of the backbone's tensors the file is refused.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ssldet.errors import CheckpointError
from ssldet.nn.backbones import Backbone
from ssldet.weights.cache import cached, known_weights
from ssldet.weights.files import read_state
from ssldet.weights.resnets import name_resnet

LEAST_COVERAGE = 0.95
PREFIXES = (
    "",
    "backbone.",  # lightly
    "backbone.0.body.",  # DETR and UP-DETR
    "detector.backbone.body.",  # our own
    "backbone.body.",
    "encoder_q.",  # MoCo
    "module.encoder_q.",
    "base_encoder.",
    "encoder.",
    "student.",
    "teacher.",
    "student.backbone.",
    "teacher.backbone.",
)
"""What projects put before the names of their backbone."""
NUMBERED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
"""Position in a sequence made of a ResNet's children -> name of the child."""
COUNTER = "num_batches_tracked"
"""Ending of what batch norms count and fixed norms don't need; files may hold it or not."""


@dataclass(frozen=True, kw_only=True)
class BackboneReport:
    """What became of a weights file.

    Attributes:
        weights: Name or path, as given.
        path: The file.
        prefix: What its names began with.
        wanted: Tensors of the backbone.
        loaded: Names that were filled.
        fresh: Names that the file doesn't hold.
        reshaped: Names that the file holds in another shape; they stay fresh.
        ignored: First word of what the file holds beside the backbone -> number of tensors.
    """

    weights: str
    path: Path
    prefix: str
    wanted: int
    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    reshaped: tuple[str, ...]
    ignored: dict[str, int]

    def __str__(self) -> str:
        """Say it in one line."""
        parts = [f"{len(self.loaded)} of {self.wanted} tensors loaded"]
        parts += [f"{len(names)} {word} ({_few(names)})" for word, names in self._left() if names]
        if self.ignored:
            told = ", ".join(f"{word} {count}" for word, count in sorted(self.ignored.items()))
            parts.append(f"{sum(self.ignored.values())} ignored ({told})")
        return f"backbone weights {self.weights}: {'; '.join(parts)}"

    def _left(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        return ("fresh", self.fresh), ("of another shape", self.reshaped)


def load_backbone(backbone: Backbone, weights: str) -> BackboneReport:
    """Fill a backbone from a file.

    Args:
        backbone: Filled in place.
        weights: Path of a file, or `swav` or `imagenet`.

    Returns:
        What was loaded, what stays fresh and what was ignored.

    Raises:
        CheckpointError: The file can't be read, or holds less than 95 % of the backbone; nothing is changed then.
        SetupError: A named file is not here and can't be fetched.
    """
    wanted = {name: value for name, value in backbone.body.state_dict().items() if not name.endswith(COUNTER)}
    path = _locate(weights, wanted)
    state, _ = read_state(path)
    found, prefix = _find_backbone(state, wanted)
    fitting = {name: value for name, value in found.items() if name in wanted and value.shape == wanted[name].shape}
    report = BackboneReport(
        weights=weights,
        path=path,
        prefix=prefix,
        wanted=len(wanted),
        loaded=tuple(fitting),
        fresh=tuple(name for name in wanted if name not in found),
        reshaped=tuple(name for name in found if name in wanted and name not in fitting),
        ignored=_ignored(state, prefix, found, wanted),
    )
    # A shallow ResNet's tensors are all found in a deeper one, where they mean something else.
    holds, needs = name_resnet(found), name_resnet(wanted)
    if len(fitting) < LEAST_COVERAGE * len(wanted) or (needs and holds and holds != needs):
        kinds = f": it holds a {holds}, the backbone is a {needs or 'different network'}" if holds != needs else ""
        raise CheckpointError(f"{path}: does not fit this backbone{kinds} ({report}); choose the file's own network")
    backbone.body.load_state_dict(fitting, strict=False)
    return report


def _locate(weights: str, wanted: Collection[str]) -> Path:
    """Return the file; a path goes before a name only where it exists or looks like one."""
    path = Path(weights).expanduser()
    if path.exists() or path.suffix or len(path.parts) > 1:
        return path
    return cached(known_weights(weights, name_resnet(wanted)))


def _find_backbone(state: dict[str, Tensor], wanted: Collection[str]) -> tuple[dict[str, Tensor], str]:
    """Return the part of the state whose names, without prefix, are most of the backbone's."""
    best: tuple[dict[str, Tensor], str] = ({}, "")
    score = -1
    for prefix in PREFIXES:
        inner = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
        for candidate in (inner, {_name_numbered(name): value for name, value in inner.items()}):
            matching = sum(name in wanted for name in candidate)
            if matching > score:
                best, score = (candidate, prefix), matching
    return best


def _name_numbered(name: str) -> str:
    first, _, rest = name.partition(".")
    return f"{NUMBERED.get(first, first)}.{rest}"


def _ignored(
    state: dict[str, Tensor], prefix: str, found: dict[str, Tensor], wanted: Collection[str]
) -> dict[str, int]:
    beside = [name for name in state if not name.startswith(prefix)]
    beside += [name for name in found if name not in wanted and not name.endswith(COUNTER)]
    return dict(Counter(name.partition(".")[0] for name in beside))


def _few(names: Collection[str], most: int = 3) -> str:
    shown = ", ".join(list(names)[:most])
    return f"{shown}, …" if len(names) > most else shown
