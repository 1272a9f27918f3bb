"""Our masks with the weights of the authors' panoptic model are theirs, with either softmax of the attention maps."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from ssldet.weights.detr import from_detr, recognise, to_detr
from tests.oracles.named import Case, canvas, weight

CASE = Case(project="detr", backbone="resnet50", width=128, heads=8, queries=5, sizes=((96, 128), (70, 100)))
RECORDED = json.loads((Path(__file__).parent / "detr-masks.json").read_text())
"""DETRsegm of facebookresearch/detr at `commit`; `per_head` has the attention maps of UP-DETR at `commit_per_head`."""


@cache
def answered(softmax):
    """Return detector and predictions for two padded images."""
    state = {name: weight(name.removeprefix("detr."), torch.Size(shape)) for name, shape in RECORDED["state"].items()}
    config = replace(recognise(state, heads=CASE.heads).config, dropout=0.0, mask_attention=softmax)
    detector = config.build().eval()
    detector.load_state_dict({name.removeprefix("detector."): v for name, v in from_detr(state).items()}, strict=True)
    return detector, detector(*canvas(CASE))


def draw_all(detector, predictions):
    image, query = torch.meshgrid(torch.arange(2), torch.arange(CASE.queries), indexing="ij")
    masks = detector.masks(predictions, image.flatten(), query.flatten())
    return masks.unflatten(0, (2, CASE.queries))


@pytest.mark.parametrize("softmax", ["joint", "per_head"])
def test_masks_boxes_and_logits(softmax):
    detector, predictions = answered(softmax)
    wanted = RECORDED[softmax]
    masks, summary = draw_all(detector, predictions), wanted["masks"]
    assert list(masks.shape) == summary["shape"]
    flat = masks.detach().double().flatten()
    torch.testing.assert_close(flat[:: summary["every"]].tolist(), summary["sample"], rtol=1e-4, atol=5e-5)
    assert flat.abs().sum().item() == pytest.approx(summary["abs_sum"], rel=1e-5)
    for ours, theirs in ((predictions.logits, "logits"), (predictions.boxes, "boxes")):
        torch.testing.assert_close(ours[-1].detach(), torch.tensor(wanted[theirs]), rtol=1e-5, atol=5e-5)


def test_the_two_ways_of_the_softmax_can_be_told_apart():
    joint, apart = (torch.tensor(RECORDED[softmax]["masks"]["sample"]) for softmax in ("joint", "per_head"))
    assert (joint - apart).abs().max() > 100 * 5e-5


@pytest.mark.parametrize("softmax", ["joint", "per_head"])
def test_gradients_of_the_mask_head(softmax):
    detector, predictions = answered(softmax)
    detector.zero_grad()
    draw_all(detector, predictions).square().mean().backward()
    norms = {
        f"detector.{name}": value.grad.double().norm()
        for name, value in detector.named_parameters()
        if name.startswith("mask")
    }
    ours = {name: norm.item() for name, norm in to_detr(norms).items()}
    assert ours == pytest.approx(RECORDED[softmax]["gradients"], rel=1e-3, abs=1e-6)
