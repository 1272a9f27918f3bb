"""Files that we write for detectron2 are what its own programs, and DETR's model for it, gave these answers with."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch

from ssldet.nn.backbones import BackboneConfig, build_backbone
from ssldet.weights.detectron2 import CRITERION, from_wrapper, resnet_from_detectron2, to_wrapper
from ssldet.weights.detr import from_detr, recognise, to_detr
from tests.oracles.named import uniform, weights

FORMS = ("boxes", "boxes-pre-norm", "panoptic")
SIZES = (96, 128), (64, 96)


@cache
def recorded(name):
    """What detectron2 and facebookresearch/detr at `commits` wrote; their weights are those of `named.py`."""
    return json.loads((Path(__file__).parent / f"detectron2-{name}.json").read_text())


@cache
def theirs(name):
    state = weights({key: torch.Size(shape) for key, shape in recorded(name)["state"].items()})
    return {**state, CRITERION: torch.tensor(recorded(name)["empty_weight"])}


@cache
def answered(name):
    state = from_wrapper(theirs(name))
    detector = recognise(state, heads=recorded(name)["sizes"]["heads"], mask_attention="joint").config.build().eval()
    own = {key.removeprefix("detector."): value for key, value in from_detr(state).items()}
    detector.load_state_dict(own, strict=True)
    pixels, padding = torch.zeros(2, 3, 96, 128), torch.ones(2, 96, 128, dtype=torch.bool)
    for number, (height, width) in enumerate(SIZES):
        blocks = ((uniform(f"pixels {number}", 3, height // 16, width // 16) + 1) * 127.5).round()
        pixels[number, :, :height, :width] = blocks.repeat_interleave(16, 1).repeat_interleave(16, 2)
        padding[number, :height, :width] = False
    with torch.no_grad():
        return detector, detector(detector.normalise(pixels.byte(), padding), padding)


@pytest.mark.parametrize("name", FORMS)
def test_names_go_both_ways_bit_for_bit(name):
    state = theirs(name)
    back = to_wrapper(to_detr(from_detr(from_wrapper(state))))
    assert back.keys() == state.keys() - {CRITERION}
    assert all(torch.equal(back[key], state[key]) for key in back)


@pytest.mark.parametrize("name", FORMS)
def test_the_answers_are_theirs(name):
    _, predictions = answered(name)
    for ours, key in ((predictions.logits[-1], "logits"), (predictions.boxes[-1], "boxes")):
        torch.testing.assert_close(ours.flatten(), torch.tensor(recorded(name)[key]), rtol=1e-4, atol=5e-5)


def test_the_masks_are_theirs():
    detector, predictions = answered("panoptic")
    queries = recorded("panoptic")["sizes"]["queries"]
    every = torch.arange(2 * queries)
    with torch.no_grad():
        masks = detector.masks(predictions, every // queries, every % queries)
    assert masks.shape == (2 * queries, *recorded("panoptic")["mask_shape"][2:])
    sample = torch.tensor(recorded("panoptic")["masks"])
    torch.testing.assert_close(masks[:, ::4, ::4].flatten(), sample, rtol=1e-4, atol=5e-4)


def test_features_of_the_resnet_are_theirs():
    state = weights({key: torch.Size(shape) for key, shape in recorded("resnet18")["state"].items()})
    backbone = build_backbone(BackboneConfig(name="resnet18")).eval()
    backbone.body.load_state_dict({resnet_from_detectron2(key): value for key, value in state.items()}, strict=True)
    images = uniform("image 0", 1, 3, 4, 6).repeat_interleave(16, 2).repeat_interleave(16, 3) * 2
    with torch.no_grad():
        features = backbone(images)
    assert list(features.shape) == recorded("resnet18")["shape"]
    torch.testing.assert_close(
        features[:, ::8].flatten(), torch.tensor(recorded("resnet18")["res5"]), rtol=1e-4, atol=5e-5
    )
