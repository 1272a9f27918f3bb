"""objective -> a folder of Hugging Face transformers, proven with `from_pretrained` if that package is installed.

The folder loads with versions 4 and 5: `config.json` uses the keys of version 4, which version 5 still accepts, and
tensors have the names that both write. Pre-norm models become Table Transformers, which have the same architecture;
models with masks become a `DetrForSegmentation`. Classes keep their names and order.
"""

import importlib
import importlib.util
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save
from torch import Tensor

from downstream.export.card import model_card, statement
from downstream.export.deformable_detr import unlike_the_authors
from downstream.export.proof import (
    Comparison,
    ExportReport,
    answers,
    largest_difference,
    refusing,
    same_detector,
    two_images,
    write_proven,
)
from ssldet.detectors.base import Detector, DetectorConfig
from ssldet.detectors.deformable_detr import DeformableDETR, DeformableDETRConfig
from ssldet.detectors.detr import DETR, DETRConfig
from ssldet.disk import Disk, write_whole
from ssldet.errors import CheckpointError
from ssldet.nn.backbones.norms import FixedNormAct
from ssldet.nn.masks import FINER_LEVELS
from ssldet.recipe import from_document
from ssldet.regular import read_text
from ssldet.task import Objective
from ssldet.weights.deformable_detr_names import to_transformers
from ssldet.weights.huggingface import (
    CONFIG,
    NO_CLASS,
    PREPROCESSOR,
    UNNAMED,
    WEIGHTS,
    architecture_of,
    detector_from_folder,
)
from ssldet.weights.huggingface_names import to_huggingface
from ssldet.weights.image_processor import BILINEAR, LONG_SIDE, SHORT_SIDE, document_of
from ssldet.weights.statement import STATEMENT

log = logging.getLogger(__name__)

USE = """\
```python
from transformers import AutoImageProcessor, {architecture}
processor = AutoImageProcessor.from_pretrained("{folder}")
model = {architecture}.from_pretrained("{folder}")
```"""
OTHER_ROUNDING = (
    "its processor rounds sizes in another way where the long side is the limit: 351 x 97 becomes 333 x 92 there for a "
    "limit of 333, and 332 x 92 here; add --set task.eval_rule=transformers to ssldet evaluate to measure that"
)
"""What the export of a model says that is evaluated by DETR's own rule, which no processor has."""
ALLOWED_DIFFERENCE = 1e-4
"""Largest difference of a logit, box or mask between two programs that add up the same numbers in another order."""


def unfit(detector: Detector, config: DetectorConfig) -> list[str]:
    """Return the reasons why transformers can't represent a detector; an empty list if it can.

    Args:
        detector: The detector to write.
        config: Its configuration.
    """
    if isinstance(detector, DETR) and isinstance(config, DETRConfig):
        reasons = [
            f"detector.{name}: its DETR does no such thing; only models trained with {name}=false can be written"
            for name in ("normalise_features", "position_at_input")
            if getattr(config, name)
        ]
    elif isinstance(detector, DeformableDETR) and isinstance(config, DeformableDETRConfig):
        reasons = unlike_the_authors(config)
    else:
        return [f"detector: is a {type(detector).__name__}; only 'detr' and 'deformable_detr' can be written"]
    if any(name.endswith("num_batches_tracked") for name in detector.backbone.body.state_dict()):
        reasons.append("detector.backbone.frozen_norm: its norms are fixed; train with frozen_norm=true")
    elif any(isinstance(module, FixedNormAct) for module in detector.backbone.body.modules()):
        reasons.append(
            "detector.backbone.name: transformers replaces the norms of timm's network, and loses the activations that "
            f"these hold in {config.backbone.name!r}; train with a ResNet, such as detector.backbone.name=timm/resnet18"
        )
    elif not _holds(config, detector.backbone.body.state_dict()):
        reasons.append(
            f"detector.backbone.name: its backbones are those that timm builds in pieces under the same names, such as "
            f"'resnet50'; {config.backbone.name!r} is none, backbone.name=resnet18 is one"
        )
    if isinstance(detector, DETR) and isinstance(config, DETRConfig) and config.masks:
        reasons += _unfit_masks(config, detector)
    return reasons


@refusing(unfit)
def export(objective: Objective, info: Mapping[str, Any], out: Path) -> ExportReport:
    """Write a detector as a folder of transformers, and prove it by loading it back.

    Args:
        objective: The detector inside its task; heads of the task are left out.
        info: Metadata of the model: the detector's configuration, task and classes.
        out: Folder to create.

    Raises:
        ConfigError: The folder, or a file of that name, exists.
        CheckpointError: transformers can't represent this detector (the message names every reason), or the loaded
            copy differs.
        SetupError: The folder can't be written.
    """
    config: DetectorConfig = from_document(DetectorConfig, info["detector"])  # type: ignore[type-abstract]
    detector = objective.detector
    if reasons := unfit(detector, config):
        raise CheckpointError(f"{out}: transformers can't hold this detector: {'; '.join(reasons)}")
    assert isinstance(detector, DETR | DeformableDETR)
    assert isinstance(config, DETRConfig | DeformableDETRConfig)
    rename = to_huggingface if isinstance(detector, DETR) else to_transformers
    stated = statement(info, whole=all(name.startswith("detector.") for name in objective.state_dict()))
    documents = {
        CONFIG: _config(config, info.get("classes", ())) | {STATEMENT: stated},
        PREPROCESSOR: _preprocessor(detector, info),
    }

    def write(folder: Path) -> None:
        folder.mkdir()
        for name, document in documents.items():
            write_whole(folder / name, json.dumps(document, indent=2, ensure_ascii=False).encode(), Disk())
        state = {name: value.detach().to("cpu", copy=True) for name, value in detector.state_dict().items()}
        # Copies, because a head that several layers share has several names there.
        theirs = {name: value.clone(memory_format=torch.contiguous_format) for name, value in rename(state).items()}
        write_whole(folder / WEIGHTS[0], save(theirs, metadata={"format": "pt"}), Disk())

    if info.get("task", {}).get("eval_rule") == "detr":
        log.warning(OTHER_ROUNDING)
    use = USE.format(folder=out.name, architecture=architecture_of(config))
    return write_proven(out, write, lambda folder: _compare(folder, detector), model_card(objective, info, use))


def _unfit_masks(config: DETRConfig, detector: DETR) -> list[str]:
    reasons = []
    if config.pre_norm:
        reasons.append(
            "detector.pre_norm: its segmentation model normalises after each branch; train with pre_norm=false, or "
            "write masks with --to detr"
        )
    if config.mask_attention == "per_head":
        reasons.append(
            "detector.mask_attention: its attention maps sum to one jointly, not per_head, and would draw other masks; "
            "train with mask_attention=joint, or write masks with --to detr"
        )
    assert detector.mask_head is not None
    widths = [config.width + config.heads, *(config.width >> step for step in range(1, FINER_LEVELS + 2))]
    if len(detector.mask_head.finer_channels) != FINER_LEVELS or any(width % 8 for width in widths if width > 8):
        reasons.append("detector.width: its mask head needs three finer levels and widths that 8 divides, such as 256")
    return reasons


def _holds(config: DETRConfig | DeformableDETRConfig, body: Mapping[str, Tensor]) -> bool:
    """Return whether timm's feature network, which transformers uses, has the same tensors as our backbone."""
    library: Any = timm  # its types are incomplete
    name = config.backbone.name.rpartition("/")[2]
    dilation = {"output_stride": 16} if config.backbone.output_stride == 16 else {}
    if not library.is_model(name):
        return False
    try:
        with torch.device("meta"):
            model = library.create_model(name, features_only=True, out_indices=(1, 2, 3, 4), **dilation)
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError, NotImplementedError):
        return False
    theirs = {key: value.shape for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    return theirs == {key: value.shape for key, value in body.items()}


def _config(config: DETRConfig | DeformableDETRConfig, classes: tuple[str, ...] | list[str]) -> dict[str, Any]:
    """Return `config.json`."""
    names = [name or NO_CLASS for name in classes] or [f"{UNNAMED}{number}" for number in range(config.num_classes)]
    return {
        "architectures": [architecture_of(config)],
        "model_type": _model_type(config),
        "use_timm_backbone": True,
        "use_pretrained_backbone": False,
        "backbone": config.backbone.name.rpartition("/")[2],
        "dilation": config.backbone.output_stride == 16,
        "num_channels": 3,
        "num_queries": config.num_queries,
        "d_model": config.width,
        "position_embedding_type": "sine",
        "activation_function": "relu",
        "dropout": config.dropout,
        "attention_dropout": config.dropout,
        "activation_dropout": config.dropout,
        **{
            f"{side}_{what}": value
            for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers))
            for what, value in (("layers", layers), ("attention_heads", config.heads), ("ffn_dim", config.feedforward))
        },
        **(_own_choices(config) if isinstance(config, DeformableDETRConfig) else {}),
        "is_encoder_decoder": True,
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
        "torch_dtype": "float32",
    }


def _model_type(config: DETRConfig | DeformableDETRConfig) -> str:
    if isinstance(config, DeformableDETRConfig):
        return "deformable_detr"
    return "table-transformer" if config.pre_norm else "detr"


def _own_choices(config: DeformableDETRConfig) -> dict[str, Any]:
    """Return what `config.json` says of a Deformable DETR alone."""
    return {
        "num_feature_levels": config.backbone_levels + config.extra_levels,
        "encoder_n_points": config.encoder_points,
        "decoder_n_points": config.decoder_points,
        # With one layer there is nothing to refine, and one head.
        "with_box_refine": config.refine_boxes and (config.two_stage or config.decoder_layers > 1),
        "two_stage": config.two_stage,
        "two_stage_num_proposals": config.num_queries,
        "auxiliary_loss": True,
        "class_cost": 2,
    }


def _preprocessor(detector: DETR | DeformableDETR, info: Mapping[str, Any]) -> dict[str, Any]:
    """Return `preprocessor_config.json`: the preprocessing of the task outside training."""
    task = info.get("task", {})
    return {
        "image_processor_type": "DetrImageProcessor" if isinstance(detector, DETR) else "DeformableDetrImageProcessor",
        "format": "coco_panoptic" if "mask_head" in detector.sections else "coco_detection",
        **document_of(
            task.get("eval_rule", "detr"),
            task.get("eval_scale", SHORT_SIDE),
            task.get("max_size", LONG_SIDE),
            task.get("eval_size", ()),
        ),
        "resample": BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(detector.backbone.mean),
        "image_std": list(detector.backbone.std),
        "do_pad": True,
        "do_convert_annotations": True,
    }


def _compare(folder: Path, detector: DETR | DeformableDETR) -> Comparison:
    """Compare the detector with our reader's copy of the folder, and with transformers' copy if it is installed."""
    copy = detector_from_folder(folder).detector
    if importlib.util.find_spec("transformers") is None:
        log.warning("transformers is not installed; the folder is proven with ssldet's own reader alone")
        return same_detector(detector, copy)
    return Comparison(
        ours=detector.state_dict(),
        theirs=copy.state_dict(),
        difference=lambda: _difference(folder, detector),
        allowed=ALLOWED_DIFFERENCE,
    )


def _difference(folder: Path, detector: Detector) -> float:
    """Return the largest difference between the answers of the detector and of transformers to the same images."""
    images, padding = two_images(next(detector.parameters()).device)
    logits, boxes, *masks = answers(detector, images, padding)
    theirs = _open(folder).to(images.device).eval()
    with torch.no_grad():
        output = theirs(pixel_values=images, pixel_mask=(~padding).long())
    loaded = [output.logits, output.pred_boxes]
    if masks:
        loaded.append(output.pred_masks.flatten(0, 1))
    return largest_difference([logits[-1], boxes[-1], *masks], loaded)


def _open(folder: Path) -> Any:
    """Load the folder with `from_pretrained`; missing or unexpected tensors are an error."""
    library: Any = importlib.import_module("transformers")
    library.utils.logging.disable_progress_bar()
    kind = getattr(library, json.loads(read_text(folder / CONFIG))["architectures"][0])
    model, report = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    if wrong := [f"{what} {sorted(report[what])[:3]}" for what in ("missing_keys", "unexpected_keys") if report[what]]:
        raise CheckpointError(f"{folder}: transformers reads it with {' and '.join(wrong)}; please report this")
    return model
