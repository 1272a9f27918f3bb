"""folder of Hugging Face transformers -> our detector: architecture by `config.json`, tensors by the weights file.

Nothing of transformers is imported. Sizes are read off the tensors, as for DETR's own files; the configuration adds
what leaves no trace there, and must agree with the rest. Pre-norm models are called Table Transformers there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ssldet.detectors.deformable_detr import DeformableDETR, DeformableDETRConfig
from ssldet.detectors.detr import DETR, DETRConfig
from ssldet.documents import parse_json
from ssldet.errors import CheckpointError, ConfigError, reason_of
from ssldet.escapes import is_text, shortened
from ssldet.regular import read_text
from ssldet.weights.deformable_detr import recognise as recognise_deformable
from ssldet.weights.deformable_detr_names import from_transformers
from ssldet.weights.detr import fill, recognise, to_detr
from ssldet.weights.files import read_state
from ssldet.weights.huggingface_names import from_huggingface
from ssldet.weights.image_processor import Processor, processor_from
from ssldet.weights.resnets import DEPTHS
from ssldet.weights.statement import statement_in

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS = "model.safetensors", "pytorch_model.bin"
"""Either may also be cut into pieces, which a file with `.index.json` behind the name lists."""
DETRS = "DetrForObjectDetection", "DetrForSegmentation", "TableTransformerForObjectDetection"
DEFORMABLE = "DeformableDetrForObjectDetection"
ARCHITECTURES = *DETRS, DEFORMABLE
ODD_RESNET = "downsample_in_bottleneck", "downsample_in_first_stage"
"""Options of their ResNet that torchvision's has not."""
LONGEST_NAME = 200
"""Characters of the name of a network; a longer one is none, and is cut in messages."""
NO_CLASS = "N/A"
"""What published folders call a class that a number does not stand for."""
UNNAMED = "LABEL_"
"""Beginnings of placeholder names, which transformers writes where no names were given."""
DEFAULTS = {
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "num_channels": 3,
    "activation_function": "relu",
    "position_embedding_type": "sine",
    "dilation": False,
    "dropout": 0.1,
}
"""What an entry means that is not there; transformers leaves out what it takes for understood."""


@dataclass(frozen=True, kw_only=True)
class FromFolder:
    """A detector from a folder of transformers.

    Attributes:
        detector: Filled with every tensor.
        config: Choices that build it.
        classes: Class names in the order of the labels, empty text for a number without a class; none where nobody
            named any.
        processor: How it wants images to be sized.
        stated: Task, classes and category ids, where we wrote the folder and its classes are still those; else empty.
    """

    detector: DETR | DeformableDETR
    config: DETRConfig | DeformableDETRConfig
    classes: tuple[str, ...]
    processor: Processor
    stated: dict[str, Any]


def architecture_of(config: DETRConfig | DeformableDETRConfig) -> str:
    """Return the class of transformers that computes what a detector of ours does."""
    if isinstance(config, DeformableDETRConfig):
        return DEFORMABLE
    detection, segmentation, table = DETRS
    return segmentation if config.masks else table if config.pre_norm else detection


def is_folder_of_transformers(path: Path) -> bool:
    """Say whether a path is a folder as transformers writes it, well or badly filled."""
    return (path / CONFIG).exists()


def detector_from_folder(path: Path) -> FromFolder:
    """Build and fill the detector in a folder of transformers.

    Args:
        path: A folder with `config.json` and weights.

    Raises:
        CheckpointError: Something is missing or damaged, it is another architecture (the message names every reason),
            or it holds more or less than such a detector.
    """
    stated = _read_json(path / CONFIG)
    if problems := _problems(stated):
        raise CheckpointError(f"{path / CONFIG}: {'; '.join(problems)}")
    config, state = (_deformable if _architecture(stated) == DEFORMABLE else _detr)(stated, _read_weights(path), path)
    _agree(stated, config, path)
    try:
        detector = config.build()
    except ConfigError as error:
        raise CheckpointError(f"{path / CONFIG}: {error}") from error
    fill(detector, state, path)
    classes = _classes(stated, config.num_classes, path)
    return FromFolder(
        detector=detector,
        config=config,
        classes=classes,
        processor=_processor(path, detector),
        stated=_own_words(stated, classes, path / CONFIG),
    )


def _problems(stated: Mapping[str, Any]) -> list[str]:
    """Say what keeps a configuration from being a DETR of ours; a foreign architecture is told alone."""
    architecture = _architecture(stated)
    if architecture not in ARCHITECTURES:
        return [f"holds {architecture}, which is no DETR of ours; choose a folder of {', '.join(ARCHITECTURES)}"]
    given = {**DEFAULTS, **stated}
    problems = [
        f"{name}={shortened(given[name])}, but our DETR has {wanted!r} only; use transformers itself"
        for name, wanted in (("activation_function", "relu"), ("position_embedding_type", "sine"), ("num_channels", 3))
        if given[name] != wanted
    ]
    heads = given["encoder_attention_heads"]
    if given["decoder_attention_heads"] != heads or not isinstance(heads, int) or heads < 1:
        problems.append("encoder_attention_heads and decoder_attention_heads must be one positive number")
    dropout = given["dropout"]
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout <= 0.9:
        problems.append(f"dropout={shortened(dropout)} must lie between 0 and 0.9")
    inner = _backbone(stated)
    kind = inner.get("model_type", "timm_backbone")
    if kind not in {"timm_backbone", "resnet"}:
        problems.append(
            f"its backbone is a {shortened(kind)}; only those of timm, and transformers' own 'resnet', can be read"
        )
    odd = [name for name in ODD_RESNET if kind == "resnet" and inner.get(name)]
    return problems + [f"backbone_config.{name}=true makes another network than torchvision's ResNet" for name in odd]


def _architecture(stated: Mapping[str, Any]) -> str:
    listed = stated.get("architectures")
    return str(listed[0]) if isinstance(listed, list) and listed else f"a {stated.get('model_type', 'thing')!r}"


def _backbone(stated: Mapping[str, Any]) -> dict[str, Any]:
    inner = stated.get("backbone_config")
    return inner if isinstance(inner, dict) else {}


def _detr(stated: Mapping[str, Any], theirs: Mapping[str, Tensor], path: Path) -> tuple[DETRConfig, dict[str, Tensor]]:
    """Return configuration and state of a DETR."""
    ours = from_huggingface(theirs, str(path))
    name, stride = _network(stated)
    heads = {**DEFAULTS, **stated}["encoder_attention_heads"]
    try:
        found = recognise(to_detr(ours), heads=heads, output_stride=stride, mask_attention="joint", backbone=name)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    state = {name.removeprefix("detector."): value for name, value in ours.items()}
    return replace(found.config, dropout=_dropout(stated)), state


def _deformable(
    stated: Mapping[str, Any], theirs: Mapping[str, Tensor], path: Path
) -> tuple[DeformableDETRConfig, dict[str, Tensor]]:
    """Return configuration and state of a Deformable DETR."""
    state = from_transformers(theirs, str(path), refines=stated.get("with_box_refine") is True)
    name, stride = _network(stated)
    try:
        config = recognise_deformable(
            state,
            heads={**DEFAULTS, **stated}["encoder_attention_heads"],
            num_queries=stated.get("two_stage_num_proposals") if stated.get("two_stage") is True else None,
            output_stride=stride,
            backbone=name,
            dropout=_dropout(stated),
        )
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return config, state


def _network(stated: Mapping[str, Any]) -> tuple[str | None, Literal[16, 32]]:
    """Return the name of the backbone, `None` for a ResNet that is to be recognised, and its stride."""
    inner = _backbone(stated)
    dilated = stated.get("dilation") is True or inner.get("output_stride") == 16
    name = inner.get("backbone") or stated.get("backbone") or "resnet50"
    # timm puts the name of a set of weights behind a dot.
    name = None if inner.get("model_type") == "resnet" else str(name).partition(".")[0][:LONGEST_NAME]
    return name if name in {None, *DEPTHS.values()} else f"timm/{name}", 16 if dilated else 32


def _dropout(stated: Mapping[str, Any]) -> float:
    return float({**DEFAULTS, **stated}["dropout"])


def _agree(stated: Mapping[str, Any], config: DETRConfig | DeformableDETRConfig, path: Path) -> None:
    """Refuse a folder whose two halves come from different models."""
    pairs = {
        "d_model": config.width,
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.decoder_layers,
        "encoder_ffn_dim": config.feedforward,
        "decoder_ffn_dim": config.feedforward,
    }
    if isinstance(config, DeformableDETRConfig):
        pairs |= {
            "num_feature_levels": config.backbone_levels + config.extra_levels,
            "encoder_n_points": config.encoder_points,
            "decoder_n_points": config.decoder_points,
            "two_stage": config.two_stage,
        }
    if isinstance(config, DETRConfig) or not config.two_stage:
        pairs["num_queries"] = config.num_queries
    wrong = [
        f"{name}={shortened(stated[name])}, the tensors {own}"
        for name, own in pairs.items()
        if stated.get(name, own) != own
    ]
    if _architecture(stated) != architecture_of(config):
        wrong.append(f"{_architecture(stated)}, the tensors {architecture_of(config)}")
    if wrong:
        raise CheckpointError(f"{path}: {CONFIG} says {'; '.join(wrong)}; bring the two files of one model together")


def _classes(stated: Mapping[str, Any], num_classes: int, path: Path) -> tuple[str, ...]:
    given = stated.get("id2label")
    if not isinstance(given, dict):
        return ()
    names = {str(number): str(name) for number, name in given.items()}
    if names.keys() != {str(number) for number in range(num_classes)}:
        raise CheckpointError(
            f"{path / CONFIG}: id2label names {len(names)} classes, the class head has {num_classes}; bring the two "
            "files of one model together"
        )
    ordered = tuple(names[str(number)] for number in range(num_classes))
    if odd := next((name for name in ordered if not is_text(name)), None):
        raise CheckpointError(f"{path / CONFIG}: id2label: {shortened(odd)} holds half a character; correct it")
    if all(name == f"{UNNAMED}{number}" for number, name in enumerate(ordered)):
        return ()
    return tuple("" if name == NO_CLASS else name for name in ordered)


def _own_words(stated: Mapping[str, Any], classes: tuple[str, ...], path: Path) -> dict[str, Any]:
    """Return what we wrote about a model; transformers keeps it when it trains the model on, for other classes too."""
    own = statement_in(stated, path)
    return own if tuple(own.get("classes", ())) == classes else {}


def _processor(path: Path, detector: DETR | DeformableDETR) -> Processor:
    """Read how images are prepared, by the defaults of transformers where nothing says so."""
    file = path / PREPROCESSOR
    if not file.exists():
        return Processor()
    return processor_from(_read_json(file), detector.backbone.mean, detector.backbone.std, file)


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Read the weights file of a folder, whole or in pieces; safetensors come first."""
    for name in WEIGHTS:
        if (path / name).exists():
            return read_state(path / name)[0]
        index = path / f"{name}.index.json"
        if index.exists():
            listed = _read_json(index).get("weight_map")
            pieces = list(listed.values()) if isinstance(listed, dict) else []
            # Another folder is none of an index's business.
            if not pieces or any(not isinstance(piece, str) or piece != Path(piece).name for piece in pieces):
                raise CheckpointError(f"{index}: lists no files of its own folder; copy or download it again")
            return {key: value for piece in sorted(set(pieces)) for key, value in read_state(path / piece)[0].items()}
    raise CheckpointError(f"{path}: has {CONFIG} but no {' or '.join(WEIGHTS)}; copy or download it again")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = parse_json(read_text(file))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: no such file; name a folder that transformers wrote") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: can't be read ({reason_of(error)}); copy or download it again") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file}: is no JSON object; copy or download it again")
    return found
