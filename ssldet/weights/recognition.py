"""names of a state -> the network among them, and the kind of its file.

A network is found by its own names, after any prefix. Of several copies in a file, the one that is used after training
is taken: the copy without a special name, else the teacher, else the student.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from ssldet.errors import CheckpointError
from ssldet.weights.files import Origin

NEARLY = 0.9
"""Share of the best match above which another part of a file counts as a further copy of the network."""
KINDS = (
    ("ssldet detector", r"detector\.backbone\.body\."),
    ("UP-DETR", r"patch2query\."),
    ("DETR", r"(detr\.)?transformer\.(en|de)coder\."),
    ("detectron2", r"(.+\.)?stem\.conv1\.norm\."),
    ("efficientnet_pytorch or efficientnet-lite-pytorch", r"(.+\.)?_conv_stem\.weight"),
    ("MoCo v3", r"(base|momentum)_encoder\."),
    ("MoCo v1 or v2", r"encoder_[qk]\."),
    ("lightly's SwAV", r"prototypes\.heads\."),
    ("lightly's DINO", r"(student|teacher)_(projection_)?head\.(layers|last_layer)\."),
    ("lightly's BYOL", r"prediction_head\.layers\."),
    ("lightly's MoCo v2", r"(key_backbone|backbone_momentum)\."),
    ("lightly's SimCLR, Barlow Twins, VICReg or the like", r"projection_head\.layers\."),
    ("SwAV", r"prototypes\.weight"),
    ("DeepCluster v2 or SeLa v2", r"prototypes\.prototypes\d"),
    ("DINO", r"head\.(mlp|last_layer)\."),
)
"""Kind of a file, and the pattern with which one of its names begins; the first that fits counts."""


class Inner(NamedTuple):
    """The network inside a state.

    Attributes:
        state: Its tensors under its own names.
        prefix: Prefix of these names in the file.
        role: Role of the copy among several ones, such as `teacher`; empty where there is only one.
        copies: Prefixes of the other copies.
    """

    state: dict[str, Tensor]
    prefix: str
    role: str
    copies: tuple[str, ...]


def find_network(
    state: Mapping[str, Tensor], wanted: Collection[str], children: Sequence[str], origin: Origin
) -> Inner:
    """Find a network's tensors in a state.

    Args:
        state: All tensors of the file.
        wanted: Names of the network's tensors.
        children: Names of its direct children in order; files of sequences made of them have numbers instead.
        origin: Path and other contents of the file.

    Raises:
        CheckpointError: The file holds several copies, and none of them is preferred.
    """
    numbers = {str(number): child for number, child in enumerate(children)}
    counts: Counter[tuple[str, bool]] = Counter()
    for name in state:
        for prefix, rest in _splits(name):
            counts[prefix, False] += rest in wanted
            counts[prefix, True] += _renamed(rest, numbers) in wanted
    best = max(counts.values(), default=0)
    copies = sorted((key for key, count in counts.items() if best and count >= NEARLY * best), key=_rank)
    if not copies:
        return Inner({}, "", "", ())
    if len(copies) > 1 and _rank(copies[0]) == _rank(copies[1]):
        prefixes = " and ".join(repr(prefix) for prefix, _ in copies[:2])
        raise CheckpointError(
            f"{origin.path}: holds this network more than once, under {prefixes}; save the one you mean by itself"
        )
    (prefix, numbered), others = copies[0], tuple(prefix for prefix, _ in copies[1:])
    inner = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    if numbered:
        inner = {_renamed(name, numbers): value for name, value in inner.items()}
    return Inner(inner, prefix, _role(prefix, others, origin), others)


def name_kind(state: Collection[str], inner: Inner, origin: Origin) -> str:
    """Return the kind of a file in words.

    Args:
        state: All names.
        inner: The network among them.
        origin: Path and other contents of the file.
    """
    kind = next((kind for kind, start in KINDS if any(re.match(start, name) for name in state)), "plain state")
    if "pytorch-lightning_version" in origin.beside:
        kind += " in a Lightning checkpoint"
    return f"{kind}, {inner.role}" if inner.role else kind


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """Yield every split of a name into prefix and rest, the whole name first."""
    yield "", name
    for dot in re.finditer(r"\.", name):
        yield name[: dot.end()], name[dot.end() :]


def _renamed(name: str, numbers: Mapping[str, str]) -> str:
    first, _, rest = name.partition(".")
    return f"{numbers[first]}.{rest}" if first in numbers else ""


def _rank(key: tuple[str, bool]) -> int:
    words = _words(key[0])
    groups = ({"key", "k", "momentum", "ema", "target"}, {"student"}, {"teacher"})
    return next((3 - place for place, group in enumerate(groups) if words & group), 0)


def _words(prefix: str) -> set[str]:
    return set(re.split(r"[._]", prefix))


def _role(prefix: str, others: Sequence[str], origin: Origin) -> str:
    """Return the role of the copy that was taken, from its own prefix or those of the others."""
    ours, theirs = _words(prefix) | set(origin.wrapper.split(".")), set().union(*map(_words, others))
    for role, opposite in (("teacher", "student"), ("student", "teacher")):
        if role in ours or opposite in theirs:
            return role
    return "query encoder" if theirs or ours & {"q", "base"} else ""
