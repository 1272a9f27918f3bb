import json

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torchvision import models

from downstream.detection import Detection
from ssldet.errors import CheckpointError
from ssldet.nn.backbones import BackboneConfig, build_backbone
from ssldet.recipe import to_document
from ssldet.verbs.opening import open_model
from ssldet.weights.backbone import load_backbone
from ssldet.weights.coco import coco_numbering
from ssldet.weights.detectron2 import (
    from_wrapper,
    resnet_from_detectron2,
    resnet_to_detectron2,
    rows_in_use,
    to_wrapper,
)
from ssldet.weights.detr import detector_from_file, to_detr
from tests.models import SMALL_DETR


@pytest.fixture
def objective():
    return Detection().objective(SMALL_DETR.build())


def pixels(**changed):
    model = {
        "PIXEL_MEAN": [123.675, 116.28, 103.53],
        "PIXEL_STD": [58.395, 57.12, 57.375],
        "RESNETS": {"STRIDE_IN_1X1": False},
    }
    return {"INPUT": {"FORMAT": changed.pop("format", "RGB")}, "MODEL": model | changed}


def in_detectron2(state, before=""):
    return {before + resnet_to_detectron2(name): value for name, value in state.items() if "num_batches" not in name}


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_names_of_resnets_go_both_ways(name):
    with torch.device("meta"):
        names = [key for key in models.get_model(name).state_dict() if not key.startswith("fc.")]
    theirs = [resnet_to_detectron2(key) for key in names]
    assert len(set(theirs)) == len(names)
    assert [resnet_from_detectron2(key) for key in theirs] == names


@pytest.mark.parametrize("name", ["fc.weight", "layer5.0.conv1.weight", "layer1.0.conv9.weight", "stem.conv1.weight"])
def test_names_that_no_resnet_has_are_refused(name):
    with pytest.raises(CheckpointError, match="no tensor of torchvision's"):
        resnet_to_detectron2(name)
    with pytest.raises(CheckpointError, match="no tensor of detectron2's"):
        resnet_from_detectron2(name.replace("stem.conv1", "stem.conv2"))


def test_rows_of_coco_are_those_of_the_authors_converter():
    unused = (0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
    assert rows_in_use(coco_numbering(91)[0], 91) == tuple(row for row in range(92) if row not in unused)
    panoptic = rows_in_use(coco_numbering(250)[0], 250)
    assert (len(panoptic), panoptic[79:82], panoptic[-2:]) == (134, (90, 92, 93), (200, 250))
    assert tuple(coco_numbering(250)[0][row] for row in panoptic[:-1]) == coco_numbering(133)[0]
    assert rows_in_use(coco_numbering(80)[0], 80) is None
    assert rows_in_use(("owl", ""), 7) is None


@pytest.mark.parametrize("before", ["", "backbone.bottom_up.", "backbone.", "detr.backbone.0.backbone."])
def test_the_backbone_of_any_model_loads_whole(tmp_path, before):
    source, target = (build_backbone(BackboneConfig(name="resnet18")) for _ in range(2))
    state = in_detectron2(source.body.state_dict(), before)
    if before == "backbone.":  # as in a Faster R-CNN whose last stage works on regions
        state = {name.replace("backbone.res5", "roi_heads.res5"): value for name, value in state.items()}
    state["proposal_generator.rpn_head.conv.weight"] = torch.ones(3)
    torch.save({"model": state, "optimizer": {"state": {}}, "iteration": 7}, tmp_path / "model_final.pth")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(pixels()))
    report = load_backbone(target, str(tmp_path / "model_final.pth"))
    assert report.coverage == 1
    assert all(torch.equal(value, source.body.state_dict()[name]) for name, value in target.body.state_dict().items())


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"format": "BGR"}, "INPUT.FORMAT is BGR"),
        ({"PIXEL_STD": [1.0, 1.0, 1.0]}, "MODEL.PIXEL_STD is"),
        ({"RESNETS": {"STRIDE_IN_1X1": True}}, "MODEL.RESNETS.STRIDE_IN_1X1 is True"),
    ],
)
def test_a_backbone_that_wants_other_pixels_is_refused(tmp_path, changed, told):
    backbone = build_backbone(BackboneConfig(name="resnet18"))
    save_file(in_detectron2(backbone.body.state_dict()), tmp_path / "r18.safetensors")
    (tmp_path / "r18.yaml").write_text(yaml.safe_dump(pixels(**changed)))
    with pytest.raises(CheckpointError, match=told):
        load_backbone(backbone, str(tmp_path / "r18.safetensors"))


def test_a_backbone_of_unknown_pixels_is_loaded_with_a_warning(tmp_path, caplog):
    backbone = build_backbone(BackboneConfig(name="resnet18"))
    save_file(in_detectron2(backbone.body.state_dict()), tmp_path / "r18.safetensors")
    assert load_backbone(backbone, str(tmp_path / "r18.safetensors")).kind == "detectron2"
    assert "no configuration beside it" in caplog.text


def test_a_file_with_two_networks_is_refused(tmp_path):
    backbone = build_backbone(BackboneConfig(name="resnet18"))
    state = in_detectron2(backbone.body.state_dict())
    torch.save(state | {f"ema.{name}": value for name, value in state.items()}, tmp_path / "two.pth")
    with pytest.raises(CheckpointError, match=r"two tensors are called conv1.weight"):
        load_backbone(backbone, str(tmp_path / "two.pth"))


def converted_by_the_authors(state):
    """What `d2/converter.py` of facebookresearch/detr does to a name, told in our words."""
    renamed = {}
    for name, value in state.items():
        if "backbone" in name:
            name = name.replace("backbone.0.body.", "")
            name = name if "layer" in name else f"stem.{name}"
            for number in (1, 2, 3, 4):
                name = name.replace(f"layer{number}", f"res{number + 1}").replace(f"bn{number}", f"conv{number}.norm")
            name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
            name = f"backbone.0.backbone.{name}"
        renamed[f"detr.{name}"] = value
    return renamed


@pytest.mark.parametrize("masks", [False, True])
def test_what_the_authors_converter_writes_is_read(tmp_path, objective, masks):
    state = to_detr(objective.state_dict())
    if masks:
        state = {f"detr.{name}": value for name, value in state.items()}
    converted = converted_by_the_authors(state)
    if masks:
        assert "detr.backbone.0.backbone.stem.detr.conv1.norm.weight" in converted
    else:
        assert converted.keys() == to_wrapper(state).keys()
    torch.save({"model": converted}, tmp_path / "converted.pth")
    assert from_wrapper(converted).keys() == state.keys()
    loaded = detector_from_file(tmp_path / "converted.pth", heads=4)
    ours = objective.detector.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in loaded.detector.state_dict().items())


def test_what_detectron2_trained_on_opens_as_it_was(tmp_path, objective):
    """The authors' model for detectron2: its config.yaml says how many heads, its head how many classes."""
    state = to_wrapper(to_detr(objective.state_dict())) | {"criterion.empty_weight": torch.ones(6)}
    checkpoint = {"model": state, "optimizer": {"state": {}, "param_groups": []}, "iteration": 9}
    torch.save(checkpoint, tmp_path / "model_final.pth")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"MODEL": {"DETR": {"NHEADS": 4}}}))
    opened = open_model(tmp_path / "model_final.pth")
    assert isinstance(opened.task, Detection)
    assert opened.info["detector"]["heads"] == 4
    assert all(
        torch.equal(value, objective.state_dict()[name]) for name, value in opened.objective.state_dict().items()
    )


def test_our_model_trained_by_detectron2_opens_as_its_task(tmp_path, objective):
    task, names = Detection(eval_scale=96, scales=(64, 96)), ["owl", "bat", "hen", "emu", "jay"]
    checkpoint = {
        "model": objective.state_dict(),
        "optimizer": {"state": {}},
        "scheduler": {"last_epoch": 9},
        "iteration": 9,
    }
    torch.save(checkpoint, tmp_path / "model_final.pth")
    with pytest.raises(CheckpointError, match=r"nothing says of which; put the config\.yaml"):
        open_model(tmp_path / "model_final.pth")
    stated = {"TASK": json.dumps(to_document(task)), "DETECTOR": json.dumps(to_document(SMALL_DETR)), "CLASSES": names}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"MODEL": {"SSLDET": stated}}))
    opened = open_model(tmp_path / "model_final.pth")
    assert (opened.task, opened.classes) == (task, tuple(names))
    assert all(
        torch.equal(value, objective.state_dict()[name]) for name, value in opened.objective.state_dict().items()
    )


@pytest.mark.parametrize("text", ["MODEL: [", "MODEL: {SSLDET: {TASK: '{', DETECTOR: '{}'}}"])
def test_a_damaged_configuration_is_named(tmp_path, objective, text):
    torch.save({"model": objective.state_dict()}, tmp_path / "model_final.pth")
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.yaml: can't be read|configuration beside it is damaged"):
        open_model(tmp_path / "model_final.pth")
