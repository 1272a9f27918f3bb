"""objective -> timm's local folder: config.json and model.safetensors, for `timm.create_model("local-dir:FOLDER")`.

The folder holds the backbone alone. Parts of timm's model that no detector uses, such as a last norm, are in it with
fresh weights, because timm only loads complete models; the log names them.
"""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from downstream.export.backbones import NO_BACKBONE, backbone_of, same_backbone, weights_of
from downstream.export.card import model_card
from downstream.export.proof import Comparison, ExportReport, refusing, write_proven
from ssldet.detectors.base import Detector
from ssldet.detectors.base import backbone_of as configured_backbone
from ssldet.detectors.on_backbone import network_of
from ssldet.errors import CheckpointError
from ssldet.nn.backbones import Backbone
from ssldet.task import Objective

log = logging.getLogger(__name__)

USE = """\
The backbone alone:

```python
import timm
model = timm.create_model("local-dir:{name}", pretrained=True, num_classes=0)
```"""
LIBRARY: Any = timm  # its types are incomplete


@refusing(lambda detector, config: unfit(detector, getattr(configured_backbone(config), "name", "")))
def export(objective: Objective, info: Mapping[str, Any], out: Path) -> ExportReport:
    """Write a detector's backbone in timm's format, and prove it by loading it with timm.

    Args:
        objective: The detector inside its task.
        info: Metadata of the model; the backbone's `output_stride` is written into the folder.
        out: Folder to create.

    Raises:
        ConfigError: The folder exists.
        CheckpointError: The backbone is none of timm's, or the loaded copy differs.
        SetupError: The folder can't be written.
    """
    backbone = backbone_of(objective, out)
    stated = str(info.get("detector", {}).get("backbone", {}).get("name", "this one"))
    if reasons := unfit(objective.detector, stated):
        raise CheckpointError(f"{out}: {'; '.join(reasons)}")
    name = _name(backbone, stated)
    dilated = info.get("detector", {}).get("backbone", {}).get("output_stride") == 16
    options = {"output_stride": 16} if dilated else {}
    model = LIBRARY.create_model(name, pretrained=False, num_classes=0, **options)
    model.load_state_dict(model.state_dict() | weights_of(backbone))
    if backbone.pruned:
        log.info("%s: fresh, since no detector uses it: %s", out, ", ".join(backbone.pruned))

    def write(path: Path) -> None:
        LIBRARY.models.save_for_hf(model, path, model_args=options, safe_serialization=True)

    card = model_card(objective, info, USE.format(name=out.name))
    return write_proven(out, write, partial(_read_back, backbone), card)


def _name(backbone: Backbone, name: str) -> str:
    """Return timm's name of a backbone, which may be a network of torchvision with the same tensors; else nothing."""
    configuration = getattr(backbone.body, "pretrained_cfg", None)
    if configuration is not None:
        return str(configuration["architecture"])
    name = name.rpartition("/")[2]
    if timm.is_model(name):
        theirs = LIBRARY.create_model(name, pretrained=False, num_classes=0).state_dict()
        if weights_of(backbone).keys() <= theirs.keys():
            return name
    return ""


def unfit(detector: Detector, name: str) -> list[str]:
    """Return the reason why timm can't hold the backbone of a detector; an empty list if it can.

    Args:
        detector: The detector.
        name: Name of the backbone.
    """
    backbone = network_of(detector)
    if backbone is None:
        return [NO_BACKBONE]
    if _name(backbone, name):
        return []
    return [
        f"timm's format can't hold the backbone {name.rpartition('/')[2]!r}, which is none of timm's; one of "
        "torchvision's goes --to torchvision, any other --to safetensors"
    ]


def _read_back(backbone: Backbone, path: Path) -> Comparison:
    copy = LIBRARY.create_model(f"local-dir:{path}", pretrained=True, num_classes=0)
    norm = "norm.weight" in weights_of(backbone)

    def features(images: Tensor) -> Tensor:
        levels: list[Tensor] = copy.forward_intermediates(
            images, indices=1, norm=norm, intermediates_only=True, output_fmt="NCHW"
        )
        return levels[-1]

    _, height, width = LIBRARY.data.resolve_model_data_config(copy)["input_size"]
    return same_backbone(backbone, copy, features, (height, width))
