"""DETReg's regions, their embeddings and its losses are those of the authors' code.

The numbers were recorded on the CPU from amirbar/DETReg at the commit that the record names: both of its criteria with
their matchers, its frozen network with random weights, its search, and its choice of regions.
"""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from pretext.detreg import DETReg, EmbeddingDistance
from pretext.proposals import GivenBoxes, Proposals, selective_search
from pretext.regions import Regions
from ssldet.class_scores import SigmoidScores, SoftmaxScores
from ssldet.data.collate import collate
from ssldet.detectors.detr import DETRConfig
from ssldet.losses.set_prediction import set_prediction
from ssldet.nn.backbones import BackboneConfig
from ssldet.types import Sample, Targets
from tests.oracles.named import uniform, weight
from tests.oracles.set_losses import Case, recorded, require_losses, require_matches

TASK = DETReg()


@cache
def theirs() -> dict[str, Any]:
    return recorded("detreg.json")


@pytest.mark.parametrize("form", ["sigmoid", "softmax"])
def test_losses_and_matches(form: str) -> None:
    """Of Deformable DETR, whose class loss is a focal one, and of DETR; one class of objects."""
    case = Case(**theirs()["case"])
    sigmoid = form == "sigmoid"
    name = "detreg" if sigmoid else "detreg softmax"
    task = replace(TASK, class_weight=2.0 if sigmoid else 1.0)
    criterion = set_prediction(
        task, no_object_weight=task.no_object_weight, extra=[EmbeddingDistance(head=nn.Identity())]
    )
    scores = SigmoidScores() if sigmoid else SoftmaxScores()
    predictions, targets = case.predictions(name, 1 if sigmoid else 2, scores), case.wanted(name, 0)
    require_losses(criterion(predictions, targets), theirs()[form])
    require_matches(criterion, predictions, targets, theirs()[form])


def test_what_describes_a_region() -> None:
    """The mean over the level of stride 8; the pixels are given as their code normalises them."""
    config = DETRConfig(
        backbone=BackboneConfig(name="resnet18"), width=16, heads=2, encoder_layers=1, decoder_layers=1, feedforward=16
    )
    detector = config.build()
    state = {name: value for name, value in detector.state_dict().items() if name.startswith("backbone.body.")}
    named = {name: weight(name, value.shape) for name, value in state.items() if value.is_floating_point()}
    detector.load_state_dict(named, strict=False)
    objective = TASK.objective(detector)
    crops = uniform("crops", 3, 3, 4, 4).repeat_interleave(16, 2).repeat_interleave(16, 3) * 2
    detector.normalise = lambda pixels: crops  # type: ignore[method-assign, assignment, misc]
    sample = Sample(
        image=torch.zeros(3, 64, 64, dtype=torch.uint8), key="a", original_size=(64, 64),
        targets=Targets(boxes=torch.full((3, 4), 0.5), labels=torch.zeros(3, dtype=torch.int64)),
        problem=Regions(pixels=torch.zeros(3, 3, 64, 64, dtype=torch.uint8)),
    )  # fmt: skip
    found = objective.describe(collate([sample]))
    torch.testing.assert_close(found, torch.tensor(theirs()["described"]), rtol=1e-4, atol=1e-5)


def test_the_search_finds_the_same_boxes() -> None:
    """On a square where red equals blue: their code hands OpenCV red for blue."""
    pytest.importorskip("cv2", reason="OpenCV is not installed: pip install 'ssldet[proposals]'")
    record = theirs()["search"]
    red = (uniform("search", 1, 4, 4) * 127 + 128).round().byte().repeat_interleave(32, 1).repeat_interleave(32, 2)
    green = (uniform("search green", 1, 2, 2) * 127 + 128).round().byte()
    image = torch.cat([red, green.repeat_interleave(64, 1).repeat_interleave(64, 2), red])
    scale = torch.tensor([record["width"], record["height"]] * 2) / 128
    ours = (selective_search(image) * scale).unique(dim=0)
    torch.testing.assert_close(ours, torch.tensor(record["boxes"]).unique(dim=0))


def test_the_first_regions_are_taken() -> None:
    record = theirs()["top_k"]
    image = torch.zeros(3, 300, 200, dtype=torch.uint8)
    nothing = Targets(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    given = GivenBoxes(boxes=torch.tensor(record["given"]))
    sample = Sample(image=image, targets=nothing, key="a", original_size=(300, 200), problem=given)
    proposals = Proposals(method="file", file="boxes.json", count=record["count"], choice="top_k")
    taken = proposals.propose(sample, torch.Generator())
    assert taken.tolist() == record["taken"]
    assert set(record["labels"]) == {1}, "one class, which is class 0 here"
