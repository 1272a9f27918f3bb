"""argument for a backbone -> its name and its weights: a plain name, a weights file, or a local folder of timm."""

from pathlib import Path

from torch import Tensor

from ssldet.documents import OddDocumentError, parse_json, parse_json_object
from ssldet.errors import CheckpointError, reason_of
from ssldet.nn.backbones import split_tag
from ssldet.regular import read_text
from ssldet.weights.files import read_state
from ssldet.weights.resnets import NUMBERED, name_resnet

OURS = "ssldet"
"""Key of the header of our own files, which states the detector's configuration."""


def choose_backbone(word: str) -> tuple[str, str | None]:
    """Return the network that an argument means, and its weights.

    Args:
        word: A backbone's name, with or without a tag; or the path of a file that holds a plain ResNet, of a file of
            ours, or of a folder that timm wrote.

    Returns:
        Name and weights; `None` for the weights of a plain name.

    Raises:
        CheckpointError: The network of the file or folder can't be recognised.
    """
    path = Path(word).expanduser()
    if path.is_dir():
        return _of_folder(path), str(path)
    if path.exists():
        return _of_file(path), str(path)
    return split_tag(word)


def _of_folder(path: Path) -> str:
    try:
        document = parse_json(read_text(path / "config.json"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: no folder that timm wrote, since its config.json can't be read ({reason_of(error)})"
        ) from error
    architecture = document.get("architecture") if isinstance(document, dict) else None
    if not isinstance(architecture, str):
        raise CheckpointError(f"{path}: its config.json names no architecture of timm's; {_remedy(path)}")
    return f"timm/{architecture}"


def _of_file(path: Path) -> str:
    state, origin = read_state(path)
    if OURS in origin.metadata:
        return _of_header(path, origin.metadata[OURS])
    for first in ("layer1.0.conv1.weight", "4.0.conv1.weight"):
        for prefix in sorted({name.removesuffix(first) for name in state if name.endswith(first)}):
            if prefix and not prefix.endswith("."):
                continue
            inner = {_named(name.removeprefix(prefix)): state[name] for name in state if name.startswith(prefix)}
            if (name := name_resnet(inner)) and _is_plain(inner):
                return name
    raise CheckpointError(f"{path}: its network can't be told from its tensors; {_remedy(path)}")


def _of_header(path: Path, header: str) -> str:
    """Return the backbone that the header of a file of ours states."""
    try:
        return str(parse_json_object(header)["detector"]["backbone"]["name"])
    except (OddDocumentError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: its header does not say which backbone it holds; {_remedy(path)}") from error


def _named(name: str) -> str:
    first, _, rest = name.partition(".")
    return f"{NUMBERED.get(first, first)}.{rest}"


def _is_plain(state: dict[str, Tensor]) -> bool:
    """Tell whether a ResNet has the usual width and stem; others have the same names."""
    shapes = state["conv1.weight"].shape, state["layer1.0.conv1.weight"].shape, state["layer1.0.conv2.weight"].shape
    return shapes[0] == (64, 3, 7, 7) and shapes[1][:2] == (64, 64) and shapes[2][:2] == (64, 64)


def _remedy(path: Path) -> str:
    return f"give the backbone's name, and detector.backbone.weights={path} separately"
