"""objective -> a file of facebookresearch/detr: `{"model": …}` in its naming, and the options that it needs.

The file loads with `weights_only=True`, and strictly into DETR's model; that of a random-query-patch run also loads
into UP-DETR's. Classes keep their order, counted from 0 with "no object" last, so DETR must be built with their number,
not with its default of 91. A detector with masks becomes a `DETRsegm`; the option `mask_attention` is our own, because
DETR's code always computes `joint` maps and UP-DETR's always `per_head` ones.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from downstream.export.card import model_card, statement
from downstream.export.proof import Comparison, ExportReport, refusing, same_detector, torch_writer, write_proven
from ssldet.detectors.base import Detector
from ssldet.detectors.detr import DETR
from ssldet.errors import CheckpointError
from ssldet.nn.backbones import IMAGENET_MEAN, IMAGENET_STD
from ssldet.nn.masks import NORM_GROUPS, MaskHead
from ssldet.task import Objective
from ssldet.weights.detr import detector_from_file, recognise, to_detr
from ssldet.weights.resnets import name_resnet
from ssldet.weights.statement import STATEMENT

FINER_CHANNELS = 1024, 512, 256
"""Channels of the finer levels that DETR's mask head expects, coarsest first."""


USE = """\
```python
import torch
checkpoint = torch.load("{name}", weights_only=True)  # model, args
# model: of facebookresearch/detr, built with the options in args and this number of classes
model.load_state_dict(checkpoint["model"])
```"""


@refusing(lambda detector, _: unfit(detector))
def export(objective: Objective, info: Mapping[str, Any], out: Path) -> ExportReport:
    """Write a detector in DETR's format, and prove it by loading it back.

    Args:
        objective: The detector inside its task. Heads listed in its `detr_names` are written too; others are left out.
        info: Metadata of the model. Task and classes become options that DETR's own code ignores.
        out: File to create.

    Raises:
        ConfigError: The file exists.
        CheckpointError: DETR can't represent this detector (the message names every field), or the loaded copy differs.
        SetupError: The file can't be written.
    """
    detector = objective.detector
    reasons = unfit(detector)
    if reasons:
        raise CheckpointError(f"{out}: DETR's format can't hold this detector: {'; '.join(reasons)}")
    assert isinstance(detector, DETR)
    kept = {
        name: value.detach().to("cpu", copy=True).contiguous()
        for name, value in objective.state_dict().items()
        if name.startswith(("detector.", *objective.detr_names))
    }
    state = to_detr(kept, objective.detr_names)
    stated = statement(info, whole=len(kept) == len(objective.state_dict()))
    document = {"model": state, "args": _options(detector, state) | {STATEMENT: stated}}

    def read_back(path: Path) -> Comparison:
        return same_detector(detector, detector_from_file(path, objective.detr_names).detector)

    card = model_card(objective, info, USE.format(name=out.name))
    return write_proven(out, torch_writer(document), read_back, card)


def unfit(detector: Detector) -> list[str]:
    """Return the reasons why DETR's format can't represent a detector; an empty list if it can.

    Args:
        detector: The detector to write.
    """
    if not isinstance(detector, DETR):
        return [f"detector: is a {type(detector).__name__}; only 'detr' can be written"]
    reasons = [
        f"detector.{name}: DETR does no such thing; only models trained with {name}=false can be written"
        for name in ("normalise_features", "position_at_input")
        if getattr(detector, name)
    ]
    names = detector.backbone.body.state_dict()
    if name_resnet(names) is None:
        reasons.append("detector.backbone.name: DETR knows torchvision's resnets only, such as backbone.name=resnet18")
    elif any(name.endswith("num_batches_tracked") for name in names):
        reasons.append("detector.backbone.frozen_norm: DETR's norms are fixed; train with frozen_norm=true")
    if (detector.backbone.mean, detector.backbone.std) != (IMAGENET_MEAN, IMAGENET_STD):
        reasons.append("detector.backbone.name: DETR scales pixels by ImageNet's mean and deviation, this backbone not")
    return reasons + ([] if detector.mask_head is None else _unfit_masks(detector.mask_head))


def _unfit_masks(head: MaskHead) -> list[str]:
    """Return the reasons why DETR's mask head, whose sizes are fixed, can't represent a mask head."""
    groups = {layer.num_groups for layer in head.children() if isinstance(layer, nn.GroupNorm)}
    reasons = []
    if head.finer_channels != FINER_CHANNELS:
        reasons.append("detector.masks: DETR's mask head fits resnet50 and deeper only")
    if groups != {NORM_GROUPS}:
        reasons.append("detector.width: DETR's mask head needs a width of 128 or a multiple, and heads that 8 divides")
    return reasons


def _options(detector: DETR, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return DETR's own command-line options for this model, as plain values."""
    dilated = detector.backbone.stride < 32
    heads: int = detector.decoder.layers[0].self_attn.heads  # type: ignore[assignment, union-attr]
    config = recognise(state, heads=heads, output_stride=16 if dilated else 32).config
    return {
        "backbone": config.backbone.name,
        "dilation": dilated,
        "position_embedding": "sine",
        "enc_layers": config.encoder_layers,
        "dec_layers": config.decoder_layers,
        "dim_feedforward": config.feedforward,
        "hidden_dim": config.width,
        "nheads": heads,
        "num_queries": config.num_queries,
        "pre_norm": config.pre_norm,
        "masks": config.masks,
        **({"mask_attention": detector.mask_attention.softmax} if detector.mask_attention is not None else {}),
    }
