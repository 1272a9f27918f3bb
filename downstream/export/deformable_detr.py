"""objective -> a file of fundamentalvision/Deformable-DETR: `{"model": …}` in its naming, and the options it needs.

The file loads with `weights_only=True`, and strictly into the authors' model if that is built with the options in
`args`. Classes keep their order; the authors' model takes their number from the data set, 91 for COCO.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from downstream.export.card import model_card, statement
from downstream.export.proof import Comparison, ExportReport, refusing, same_detector, torch_writer, write_proven
from ssldet.detectors.base import Detector, DetectorConfig
from ssldet.detectors.deformable_detr import DeformableDETR, DeformableDETRConfig
from ssldet.errors import CheckpointError
from ssldet.nn.backbones import IMAGENET_MEAN, IMAGENET_STD
from ssldet.recipe import from_document
from ssldet.task import Objective
from ssldet.weights.deformable_detr import detector_from_authors
from ssldet.weights.deformable_detr_names import to_authors
from ssldet.weights.files import read_state
from ssldet.weights.resnets import name_resnet
from ssldet.weights.statement import STATEMENT

TOO_NARROW = ("resnet18", "resnet34")
"""ResNets that the authors' code refuses, because it fixes the numbers of channels of its levels."""
LEVELS = 3
"""Levels that the authors' code takes from the backbone, unless it works on a single level."""
USE = """\
```python
import torch
checkpoint = torch.load("{name}", weights_only=True)  # model, args
# model: of fundamentalvision/Deformable-DETR, built with the options in args and this number of classes
model.load_state_dict(checkpoint["model"])
```"""


def unfit(detector: Detector, config: DetectorConfig) -> list[str]:
    """Return the reasons why the authors' model can't represent a detector; an empty list if it can.

    Args:
        detector: The detector to write.
        config: Its configuration.
    """
    if not isinstance(detector, DeformableDETR) or not isinstance(config, DeformableDETRConfig):
        return [f"detector: is a {type(detector).__name__}; only 'deformable_detr' can be written"]
    reasons = []
    names = detector.backbone.body.state_dict()
    resnet = name_resnet(names)
    if resnet is None or resnet in TOO_NARROW:
        reasons.append("detector.backbone.name: its backbones are torchvision's resnet50 and deeper ones")
    if resnet is not None and any(name.endswith("num_batches_tracked") for name in names):
        reasons.append("detector.backbone.frozen_norm: its norms are fixed; train with frozen_norm=true")
    if (detector.backbone.mean, detector.backbone.std) != (IMAGENET_MEAN, IMAGENET_STD):
        reasons.append("detector.backbone.name: it scales pixels by ImageNet's mean and deviation, this backbone not")
    reasons += unlike_the_authors(config)
    return reasons


def unlike_the_authors(config: DeformableDETRConfig) -> list[str]:
    """Return which choices the authors' model does not have, nor that of transformers, which follows it.

    Args:
        config: Configuration of a detector.
    """
    reasons = []
    if config.pre_norm:
        reasons.append("detector.pre_norm: it normalises after each branch; train with pre_norm=false")
    if config.proposal_overlap < 1:
        reasons.append(
            "detector.proposal_overlap: its queries begin with the best proposals even if these overlap; train with "
            "proposal_overlap=1"
        )
    wanted = 1 if config.backbone_levels + config.extra_levels == 1 else LEVELS
    if config.backbone_levels != wanted:
        reasons.append(
            f"detector.backbone_levels: it takes {wanted} levels of the backbone, not {config.backbone_levels}; train "
            f"with backbone_levels={wanted}"
        )
    return reasons


@refusing(unfit)
def export(objective: Objective, info: Mapping[str, Any], out: Path) -> ExportReport:
    """Write a detector in the format of Deformable DETR's authors, and prove it by loading it back.

    Args:
        objective: The detector inside its task; heads of the task are left out.
        info: Metadata of the model: the detector's configuration, task and classes, of which the last two become
            options that the authors' code ignores.
        out: File to create.

    Raises:
        ConfigError: The file exists.
        CheckpointError: Their model can't represent this detector (the message names every field), or the loaded copy
            differs.
        SetupError: The file can't be written.
    """
    detector = objective.detector
    config: DetectorConfig = from_document(DetectorConfig, info["detector"])  # type: ignore[type-abstract]
    if reasons := unfit(detector, config):
        raise CheckpointError(f"{out}: Deformable DETR's format can't hold this detector: {'; '.join(reasons)}")
    assert isinstance(config, DeformableDETRConfig)
    state = {name: value.detach().to("cpu", copy=True) for name, value in detector.state_dict().items()}
    stated = statement(info, whole=all(name.startswith("detector.") for name in objective.state_dict()))
    document = {"model": to_authors(state), "args": _options(config) | {STATEMENT: stated}}

    def read_back(path: Path) -> Comparison:
        return same_detector(detector, detector_from_authors(*read_state(path)).detector)

    card = model_card(objective, info, USE.format(name=out.name))
    return write_proven(out, torch_writer(document), read_back, card)


def _options(config: DeformableDETRConfig) -> dict[str, Any]:
    """Return the authors' own command-line options for this model, as plain values."""
    return {
        "backbone": config.backbone.name.rpartition("/")[2],
        "dilation": config.backbone.output_stride == 16,
        "position_embedding": "sine",
        "num_feature_levels": config.backbone_levels + config.extra_levels,
        "enc_layers": config.encoder_layers,
        "dec_layers": config.decoder_layers,
        "dim_feedforward": config.feedforward,
        "hidden_dim": config.width,
        "dropout": config.dropout,
        "nheads": config.heads,
        "num_queries": config.num_queries,
        "enc_n_points": config.encoder_points,
        "dec_n_points": config.decoder_points,
        # With one layer there is nothing to refine, and one head.
        "with_box_refine": config.refine_boxes and (config.two_stage or config.decoder_layers > 1),
        "two_stage": config.two_stage,
        "masks": False,
    }
