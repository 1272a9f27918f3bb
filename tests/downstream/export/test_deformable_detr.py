"""Files for the code of Deformable DETR's authors: plain, proven, with its options, and opened again as they were."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from downstream.detection import Detection
from downstream.export.deformable_detr import export
from ssldet.detectors.deformable_detr import DeformableDETRConfig
from ssldet.errors import CheckpointError
from ssldet.nn.backbones import BackboneConfig
from ssldet.recipe import to_document
from ssldet.verbs.opening import open_model
from ssldet.weights import deformable_detr_names
from tests.downstream.importing.test_deformable_detr import their_names
from tests.models import SMALL_DEFORMABLE_DETR, SMALL_DETR

SMALL = replace(SMALL_DEFORMABLE_DETR, backbone=BackboneConfig(name="resnet50"))
DC5 = BackboneConfig(name="resnet50", output_stride=16)
KINDS = {"plain": SMALL, "two stages, DC5": replace(SMALL, refine_boxes=True, two_stage=True, backbone=DC5)}
APART = {"refine_boxes": True, "two_stage": True, "proposal_overlap": 0.5}
TASK = Detection(eval_scale=96)


def info_of(config: DeformableDETRConfig) -> dict[str, object]:
    ids = [1, 3, 4, 7, 9]
    return {"task": to_document(TASK), "detector": to_document(config), "classes": list("abcde"), "category_ids": ids}


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_plain_and_proven_and_opens_as_what_it_was(kind: str, tmp_path: Path) -> None:
    config = KINDS[kind]
    objective = TASK.objective(config.build())
    report = export(objective, info_of(config), tmp_path / "model.pth")
    assert (report.equal, report.difference) == (report.tensors, 0.0)
    document = torch.load(tmp_path / "model.pth", weights_only=True)
    assert {name for name in document["model"] if not name.startswith("backbone.0.body.")} == their_names(config)
    options = document["args"]
    assert (options["num_feature_levels"], options["enc_n_points"], options["dec_n_points"]) == (4, 2, 3)
    assert (options["with_box_refine"], options["two_stage"]) == (config.refine_boxes, config.two_stage)
    opened = open_model(tmp_path / "model.pth")
    assert (opened.task, opened.classes, opened.info["category_ids"]) == (TASK, tuple("abcde"), [1, 3, 4, 7, 9])
    assert opened.info["detector"] == to_document(config)
    ours = objective.detector.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in opened.objective.detector.state_dict().items())


def test_what_their_code_cannot_hold_is_said_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    config = replace(SMALL_DEFORMABLE_DETR, pre_norm=True, backbone_levels=2, **APART)
    with pytest.raises(CheckpointError) as told:
        export(TASK.objective(config.build()), info_of(config), tmp_path / "model.pth")
    for field in (
        "detector.backbone.name: ",
        "detector.pre_norm: ",
        "detector.backbone_levels: ",
        "detector.proposal_overlap: ",
    ):
        assert field in str(told.value)
    info = {"detector": to_document(SMALL_DETR)}
    with pytest.raises(CheckpointError, match="is a DETR; only 'deformable_detr' can be written"):
        export(TASK.objective(SMALL_DETR.build()), info, tmp_path / "model.pth")
    assert not list(tmp_path.iterdir())


def test_a_tensor_that_got_lost_stops_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = deformable_detr_names.to_authors
    monkeypatch.setattr(
        "downstream.export.deformable_detr.to_authors", lambda state: dict(list(whole(state).items())[1:])
    )
    with pytest.raises(CheckpointError, match=r"is missing|no ResNet"):
        export(TASK.objective(SMALL.build()), info_of(SMALL), tmp_path / "model.pth")
    assert not list(tmp_path.iterdir())
