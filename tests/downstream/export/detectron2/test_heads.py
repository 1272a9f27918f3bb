"""Heads by COCO's ids become contiguous ones, row by row."""

from dataclasses import replace

import pytest
import torch

from downstream.detection import Detection
from downstream.export.detectron2.heads import without_holes
from downstream.panoptic import Panoptic
from ssldet.detectors.detr import DETRConfig
from ssldet.nn.backbones import BackboneConfig
from ssldet.recipe import to_document
from ssldet.weights.coco import STUFF, coco_numbering
from tests.models import SMALL_DEFORMABLE_DETR

SMALL = DETRConfig(
    backbone=BackboneConfig(name="tiny"), width=32, heads=4, num_queries=5, encoder_layers=1, decoder_layers=1
)


def model(task, config, classes, ids):
    info = {"task": to_document(task), "detector": to_document(config), "classes": classes, "category_ids": ids}
    return task.objective(config.build()), info


def by_ids(num_classes, task, **choices):
    names, ids = coco_numbering(num_classes)
    config = DETRConfig(**(vars(SMALL) | {"num_classes": num_classes} | choices))
    return *model(task, config, list(names), list(ids)), names


def test_ninety_one_classes_become_eighty():
    objective, info, _ = by_ids(91, Detection())
    smaller, told = without_holes(objective, info)
    assert told["classes"] == list(coco_numbering(80)[0])
    assert told["category_ids"] == list(coco_numbering(80)[1])
    assert told["detector"]["num_classes"] == 80
    theirs, ours = (one.detector.state_dict() for one in (objective, smaller))
    rows = [*told["category_ids"], 91]
    for name, value in ours.items():
        assert torch.equal(value, theirs[name][rows] if name.startswith("class_head.") else theirs[name]), name


def test_stuff_keeps_its_meaning():
    names, ids = coco_numbering(250)
    stuff = tuple(label for label, key in enumerate(ids) if key in STUFF)
    objective, info, _ = by_ids(250, Panoptic(stuff=stuff), masks=True)
    smaller, told = without_holes(objective, info)
    assert len(told["classes"]) == 133
    assert smaller.task.stuff == tuple(range(80, 133))
    assert {told["classes"][label] for label in smaller.task.stuff} == {names[label] for label in stuff}


def test_a_head_without_holes_stays_as_it_is():
    objective, info, _ = by_ids(80, Detection())
    assert without_holes(objective, info) == (objective, info)
    assert without_holes(objective, info | {"classes": []})[0] is objective


@pytest.mark.parametrize("two_stage", [False, True])
def test_sigmoid_heads_lose_their_holes_and_answer_alike(two_stage):
    """They have no row for "no object"; the first row of the head for proposals stays, although no class has it."""
    names, ids = coco_numbering(91)
    config = replace(
        SMALL_DEFORMABLE_DETR, backbone=SMALL.backbone, num_classes=91, refine_boxes=two_stage, two_stage=two_stage
    )
    torch.manual_seed(0)
    objective, info = model(Detection(), config, list(names), list(ids))
    for head in objective.detector.class_head:
        torch.nn.init.normal_(head.weight)
    smaller, told = without_holes(objective, info)
    assert (told["category_ids"], smaller.detector.num_classes) == (list(coco_numbering(80)[1]), 80)
    images = torch.randn(1, 3, 64, 96)
    theirs, ours = (one.detector.eval()(images) for one in (objective, smaller))
    assert torch.equal(ours.boxes, theirs.boxes)
    torch.testing.assert_close(ours.logits, theirs.logits[..., told["category_ids"]])
