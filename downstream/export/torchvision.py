"""objective -> a plain state dict under torchvision's names, for `torchvision.models.<NAME>(weights=None)`.

The file holds the backbone alone, without a classifier: load it with `strict=False`, or into a model without one.
"""

import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision import models

from downstream.export.backbones import NO_BACKBONE, backbone_of, same_backbone, weights_of
from downstream.export.card import model_card
from downstream.export.proof import Comparison, ExportReport, refusing, write_proven
from ssldet.detectors.base import Detector
from ssldet.detectors.base import backbone_of as configured_backbone
from ssldet.detectors.on_backbone import network_of
from ssldet.disk import Disk, write_whole
from ssldet.errors import CheckpointError
from ssldet.task import Objective

log = logging.getLogger(__name__)

USE = """\
The backbone alone, without a classifier:

```python
import torch, torchvision
model = torchvision.models.{model}(weights=None)
model.load_state_dict(torch.load("{name}", weights_only=True), strict=False)
```"""
SIDE = 96
"""Height and width of the random images of the comparison; all of torchvision's backbones accept any size."""


@refusing(lambda detector, config: unfit(detector, getattr(configured_backbone(config), "name", "")))
def export(objective: Objective, info: Mapping[str, Any], out: Path) -> ExportReport:
    """Write a detector's backbone as a state dict of torchvision, and prove it by loading it with torchvision.

    Args:
        objective: The detector inside its task.
        info: Metadata of the model; it names the backbone.
        out: File to create.

    Raises:
        ConfigError: The file exists.
        CheckpointError: The backbone is none of torchvision's, or the loaded copy differs.
        SetupError: The file can't be written.
    """
    backbone = backbone_of(objective, out)
    config = info["detector"]["backbone"]
    name = str(config["name"]).rpartition("/")[2]
    if reasons := unfit(objective.detector, str(config["name"])):
        raise CheckpointError(f"{out}: {'; '.join(reasons)}")
    state = weights_of(backbone)
    options = {"replace_stride_with_dilation": [False, False, True]} if config.get("output_stride") == 16 else {}
    log.info("%s: a detector has no %s; load with strict=False", out, ", ".join(backbone.pruned))
    if options:
        log.info("%s: gives the detector's features in models.%s(replace_stride_with_dilation=…) only", out, name)

    def write(path: Path) -> None:
        content = io.BytesIO()
        torch.save(state, content)
        write_whole(path, content.getbuffer(), Disk())

    def read_back(path: Path) -> Comparison:
        model = models.get_model(name, weights=None, **options)
        missing, unknown = model.load_state_dict(torch.load(path, weights_only=True), strict=False)
        if unknown or set(missing) - set(backbone.pruned):
            raise CheckpointError(f"{out}: not written, since torchvision misses {missing} and does not know {unknown}")
        last = [part for part, _ in backbone.body.named_children()][-1]

        def features(images: Tensor) -> Tensor:
            outputs: list[Tensor] = []
            hook = model.get_submodule(last).register_forward_hook(lambda _, __, output: outputs.append(output))
            model(images)
            hook.remove()
            return outputs[-1]

        return same_backbone(backbone, model, features, (SIDE, SIDE))

    return write_proven(out, write, read_back, model_card(objective, info, USE.format(name=out.name, model=name)))


def unfit(detector: Detector, name: str) -> list[str]:
    """Return the reason why torchvision can't hold the backbone of a detector; an empty list if it can.

    Args:
        detector: The detector.
        name: Name of the backbone.
    """
    backbone = network_of(detector)
    if backbone is None:
        return [NO_BACKBONE]
    if not hasattr(backbone.body, "pretrained_cfg") and name.rpartition("/")[2] in models.list_models(module=models):
        return []
    return [
        f"{name!r} is none of torchvision's networks; a network of timm's goes --to timm, any other --to safetensors"
    ]
