"""timm model -> Network: `forward_intermediates` on images of any size, NCHW, original names kept."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssldet.errors import ConfigError
from ssldet.nn.backbones.config import BackboneConfig
from ssldet.nn.backbones.network import SUITABLE, Network
from ssldet.nn.backbones.norms import freeze_norms
from ssldet.nn.backbones.positions import open_positions

FINEST, COARSEST = 4, 32
"""Smallest and largest stride of a level."""
ANY_SIZE: tuple[dict[str, Any], ...] = (
    {"dynamic_img_size": True, "dynamic_img_pad": True},
    {"strict_img_size": False},
    {"dynamic_img_pad": True},
    {},
)
"""Options by which timm's families take images of any size; the first that a family accepts is used."""
TRIAL_SIZE = (233, 105)
"""Sides of a blank image which, padded to a multiple of 1, 4 or 16, are multiples of nothing larger."""
WHY_NOT = {
    "crossvit": f"it resizes every image to one size; use {SUITABLE}",
    "hiera": f"its positions are made for one image size; use {SUITABLE}",
    "maxxvit": f"its windows must divide the image and grow with it; use {SUITABLE}",
    "mvitv2": f"its relative positions end at one image size; use {SUITABLE}",
}
"""Module of timm -> why its models can't be used, where the error that they raise does not say so."""


def build_timm(name: str, config: BackboneConfig) -> Network:
    """Build a timm model without its head and without the stages after its last level.

    Raises:
        ConfigError: The model has no feature maps, or not for images of any size, or not with this stride.
    """
    import timm

    library: Any = timm  # its types are incomplete
    body = _create(name, config.output_stride)
    family = type(body).__module__.rpartition(".")[2]
    if family in WHY_NOT:
        raise ConfigError(WHY_NOT[family])
    if not hasattr(body, "forward_intermediates"):
        raise ConfigError(f"timm offers no feature maps of it; use {SUITABLE}")
    if family == "beit":
        open_positions(body)
    original = tuple(body.state_dict())
    indices = _level_indices([level["reduction"] for level in body.feature_info], dilated=config.output_stride == 16)
    norm = _has_final_norm(body)
    body.prune_intermediate_layers(indices, prune_norm=not norm, prune_head=True)
    multiple = _multiple(body, indices, norm)
    data = library.data.resolve_model_data_config(body)
    if config.frozen_norm:
        freeze_norms(body)
    return Network(
        body=body,
        run=partial(_run, indices=indices, norm=norm, multiple=multiple),
        original=original,
        stages=_quarters(body) if len(indices) == 1 and hasattr(body, "blocks") else None,
        strides=[body.feature_info[index]["reduction"] for index in indices],
        mean=data["mean"],
        std=data["std"],
        interpolation=data["interpolation"],
    )


def _create(name: str, output_stride: int) -> Any:
    """Build the model for images of any size, dilated where the stride needs it."""
    import timm

    library: Any = timm
    dilations: list[dict[str, Any]] = [{"output_stride": 16}, {}] if output_stride == 16 else [{}]
    for dilation in dilations:
        for options in ANY_SIZE:
            try:
                return library.create_model(name, pretrained=False, num_classes=0, **options, **dilation)
            except (TypeError, NotImplementedError, AssertionError) as error:
                if not options and not dilation:
                    raise ConfigError(f"timm can't build it ({error}); use {SUITABLE}") from error
    raise AssertionError("the last attempt returns or raises")


def _level_indices(reductions: Sequence[int], *, dilated: bool) -> list[int]:
    """Return the indices of the levels: one per stride, or, where dilation keeps the stride, one per stage."""
    if len(set(reductions)) == 1:
        return [len(reductions) - 1]
    within = [index for index, reduction in enumerate(reductions) if FINEST <= reduction <= COARSEST]
    if dilated:
        return within
    return list({reductions[index]: index for index in within}.values())


def _has_final_norm(body: nn.Module) -> bool:
    """Tell whether the tokens pass a final norm, without which their scale means nothing."""
    norm = getattr(body, "norm", None)
    return isinstance(norm, nn.Module) and not isinstance(norm, nn.Identity)


def _quarters(body: Any) -> list[list[str]]:
    """Return the modules of four stages of equally many blocks; those before the blocks belong to the first stage."""
    count = len(body.blocks)
    stages = [[f"blocks.{n}" for n in range(k * count // 4, (k + 1) * count // 4)] for k in range(4)]
    others = [name for name, _ in body.named_children() if name != "blocks"]
    stages[0] += [name for name in others if name != "norm"]
    stages[-1] += [name for name in others if name == "norm"]
    return stages


def _run(body: Any, images: Tensor, *, indices: Sequence[int], norm: bool, multiple: int) -> list[Tensor]:
    height, width = images.shape[-2:]
    images = F.pad(images, (0, -width % multiple, 0, -height % multiple))
    options: dict[str, Any] = {"norm": norm, "stop_early": True, "intermediates_only": True, "output_fmt": "NCHW"}
    levels: list[Tensor] = body.forward_intermediates(images, indices=list(indices), **options)
    return levels


def _multiple(body: Any, indices: Sequence[int], norm: bool) -> int:
    """Return the number of which image sides must be multiples, so that levels have the declared shapes."""
    body.eval()
    blank = torch.zeros(1, 3, *TRIAL_SIZE, device=next(body.parameters()).device)
    declared = [body.feature_info[index] for index in indices]
    problem = ""
    for multiple in (1, 4, 16, 32):
        try:
            with torch.no_grad():
                levels = _run(body, blank, indices=indices, norm=norm, multiple=multiple)
        except (RuntimeError, AssertionError, IndexError, ValueError) as error:
            problem = problem or str(error).partition("\n")[0]
            continue
        sides = [side + -side % multiple for side in TRIAL_SIZE]
        if all(_is_as_declared(level, sides, **stated) for level, stated in zip(levels, declared, strict=True)):
            return multiple
    raise ConfigError(f"can't look at images of any size ({problem or 'its levels lose their shape'}); use {SUITABLE}")


def _is_as_declared(level: Tensor, sides: Sequence[int], *, num_chs: int, reduction: int, **_: object) -> bool:
    pairs = zip(level.shape[2:], sides, strict=True)
    return level.shape[1] == num_chs and all(abs(cells - side / reduction) < 3 for cells, side in pairs)
