"""Files in the naming of Deformable DETR's authors, whose tensors are written down here as their model has them."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ssldet.detectors.deformable_detr import DeformableDETRConfig
from ssldet.errors import CheckpointError
from ssldet.verbs.opening import open_model
from ssldet.weights.deformable_detr_names import to_authors
from tests.models import SMALL_DEFORMABLE_DETR

KINDS = {
    "plain": SMALL_DEFORMABLE_DETR,
    "refined": replace(SMALL_DEFORMABLE_DETR, refine_boxes=True),
    "two stages": replace(SMALL_DEFORMABLE_DETR, refine_boxes=True, two_stage=True),
}
ATTENTION = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")


def pairs(*modules: str) -> set[str]:
    return {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}


def their_names(config: DeformableDETRConfig) -> set[str]:
    """Every name of their model but those of the backbone."""
    names = {"transformer.level_embed"}
    for number in range(config.encoder_layers):
        layer = f"transformer.encoder.layers.{number}"
        names |= pairs(*(f"{layer}.{part}" for part in ("linear1", "linear2", "norm1", "norm2")))
        names |= pairs(*(f"{layer}.self_attn.{part}" for part in ATTENTION))
    for number in range(config.decoder_layers):
        layer = f"transformer.decoder.layers.{number}"
        names |= pairs(*(f"{layer}.{part}" for part in ("linear1", "linear2", "norm1", "norm2", "norm3")))
        names |= pairs(*(f"{layer}.cross_attn.{part}" for part in ATTENTION), f"{layer}.self_attn.out_proj")
        names |= {f"{layer}.self_attn.in_proj_weight", f"{layer}.self_attn.in_proj_bias"}
    for number in range(4):
        names |= pairs(f"input_proj.{number}.0", f"input_proj.{number}.1")
    heads = range(config.decoder_layers + config.two_stage)
    boxes = [f"bbox_embed.{number}.layers.{part}" for number in heads for part in range(3)]
    classes = [f"class_embed.{number}" for number in heads]
    names |= pairs(*boxes, *classes)
    if config.refine_boxes:
        names |= pairs(*(f"transformer.decoder.{box}" for box in boxes))
    if config.two_stage:
        names |= pairs(*(f"transformer.decoder.{one}" for one in classes))
        names |= pairs(*(f"transformer.{part}" for part in ("enc_output", "enc_output_norm", "pos_trans")))
        return names | pairs("transformer.pos_trans_norm")
    return names | {"query_embed.weight"} | pairs("transformer.reference_points")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_has_their_names_and_opens_as_what_it_is(kind: str, tmp_path: Path) -> None:
    config = KINDS[kind]
    detector = config.build().eval()
    state = to_authors(detector.state_dict())
    assert {name for name in state if not name.startswith("backbone.0.body.")} == their_names(config)
    options = Namespace(nheads=config.heads, num_queries=config.num_queries, dilation=False, dropout=config.dropout)
    torch.save({"model": state, "args": options, "epoch": 49}, tmp_path / "model.pth")
    opened = open_model(tmp_path / "model.pth")
    found = opened.objective.detector
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in detector.state_dict().items())
    assert opened.info["detector"]["refine_boxes"] is config.refine_boxes
    assert opened.info["detector"]["num_queries"] == 11
    images = torch.randn(2, 3, 64, 96)
    assert torch.equal(found(images).boxes, detector(images).boxes)


def test_heads_that_contradict_one_another_are_refused(tmp_path: Path) -> None:
    state = to_authors(KINDS["refined"].build().state_dict())
    state["transformer.decoder.bbox_embed.1.layers.0.bias"] = state["bbox_embed.1.layers.0.bias"] + 1
    torch.save({"model": state, "args": Namespace(nheads=4)}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"bbox_embed.1.layers.0.bias differ, and should be one"):
        open_model(tmp_path / "model.pth")
    state = to_authors(KINDS["plain"].build().state_dict())
    state["class_embed.2.bias"] = state["class_embed.2.bias"] + 1
    torch.save({"model": state, "args": Namespace(nheads=4)}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"class_head.2.bias is not the first layer's, but no box is refined"):
        open_model(tmp_path / "model.pth")
