from argparse import Namespace
from dataclasses import replace

import pytest
import torch

from pretext.random_query_patch import PatchDetection, RandomQueryPatch
from ssldet.detectors.base import DetectorConfig
from ssldet.detectors.detr import DETRConfig
from ssldet.errors import CheckpointError
from ssldet.recipe import from_document
from ssldet.weights.detr import detector_from_file, from_detr, recognise, to_detr
from tests.models import SMALL_DETR

HEADS = PatchDetection.detr_names


@pytest.fixture(scope="module")
def objective():
    torch.manual_seed(0)
    return RandomQueryPatch(num_patches=3).objective(SMALL_DETR.build())


@pytest.fixture(scope="module")
def pretrained(objective):
    """State of a pretraining model in UP-DETR's naming."""
    return to_detr(objective.state_dict(), HEADS)


@pytest.fixture
def plain(pretrained):
    """State of a fine-tuned model in DETR's naming."""
    return {name: v for name, v in pretrained.items() if not name.startswith(("patch2query", "feature_align"))}


def write(path, state, **beside):
    torch.save({"model": state, **beside}, path)
    return path


def full_size(**choices):
    with torch.device("meta"):
        return DETRConfig(**choices).build()


def test_the_models_of_the_papers_have_as_many_tensors_as_theirs():
    detector = full_size()
    assert len(to_detr({f"detector.{name}": v for name, v in detector.state_dict().items()})) == 460
    with torch.device("meta"):
        objective = RandomQueryPatch().objective(detector)
    state = to_detr(objective.state_dict(), HEADS)
    assert len(state) == 466
    assert state["patch2query.weight"].shape == (256, 2048)
    assert state["feature_align.layers.1.weight"].shape == (2048, 256)
    post_norm = full_size(pre_norm=False)
    state = to_detr({f"detector.{name}": v for name, v in post_norm.state_dict().items()})
    assert len(state) == 458
    assert sum(name.startswith("backbone.0.body.") for name in state) == 265
    assert sum(name.startswith("transformer.decoder.") for name in state) == 110


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("transformer.encoder.layers.0.self_attn.in_proj_weight", "detector.encoder.layers.0.self_attn.in_proj_weight"),
        ("transformer.decoder.layers.1.multihead_attn.out_proj.bias", None),
        ("transformer.decoder.norm.weight", "detector.decoder.norm.weight"),
        ("class_embed.bias", "detector.class_head.bias"),
        ("bbox_embed.layers.2.weight", "detector.box_head.layers.2.weight"),
        ("query_embed.weight", "detector.queries.embedding"),
        ("input_proj.bias", "detector.projection.bias"),
        ("backbone.0.body.layer4.1.bn2.running_var", "detector.backbone.body.layer4.1.bn2.running_var"),
        ("patch2query.bias", "patch_queries.projection.bias"),
        ("feature_align.layers.0.weight", "reconstruction.layers.0.weight"),
    ],
)
def test_names(theirs, ours):
    ours = ours or theirs.replace("transformer.", "detector.")
    value = torch.ones(1)
    assert from_detr({theirs: value}, HEADS) == {ours: value}
    assert to_detr({ours: value}, HEADS) == {theirs: value}


def test_renaming_loses_nothing_either_way(objective, pretrained):
    assert from_detr(pretrained, HEADS).keys() == objective.state_dict().keys()
    assert to_detr(from_detr(pretrained, HEADS), HEADS).keys() == pretrained.keys()
    assert len(pretrained) == len(objective.state_dict())


def test_foreign_names_are_never_written_and_stay_as_they_are_when_read():
    state = {"transformer.level_embed": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"1 tensors are not our DETR's: transformer.level_embed"):
        to_detr(state)
    assert from_detr(state) == state


def test_recognises_everything_that_leaves_a_trace(pretrained, plain):
    known = recognise(pretrained, heads=4)
    assert known.config == SMALL_DETR
    assert recognise(plain, heads=4).beside == 0
    text = "DETR, resnet18, pre-norm, 1+2 layers, width 24, 12 queries, 5 classes, 163 tensors and 6 beside it"
    assert str(known) == text


def test_a_pretraining_file_fills_detector_and_heads(tmp_path, objective, pretrained):
    path = write(tmp_path / "a.pth", pretrained, args=Namespace(nheads=4), epoch=59)
    detector, heads, document = detector_from_file(path, HEADS)
    assert from_document(DetectorConfig, document) == SMALL_DETR
    state = {f"detector.{name}": value for name, value in detector.state_dict().items()} | heads
    assert state.keys() == objective.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in objective.state_dict().items())


def mask_model(**choices):
    torch.manual_seed(0)
    detector = replace(SMALL_DETR, masks=True, **choices).build()
    return detector, to_detr({f"detector.{name}": value for name, value in detector.state_dict().items()})


def test_mask_models_come_whole(tmp_path):
    detector, state = mask_model()
    assert {name.split(".")[0] for name in state} == {"detr", "bbox_attention", "mask_head"}
    assert len(state) == len(detector.state_dict()) == 163 + 32
    assert str(recognise(state, heads=4)).startswith("DETR with masks, resnet18, pre-norm")
    loaded = detector_from_file(write(tmp_path / "a.pth", state), heads=4)
    assert loaded.heads == {}
    back = loaded.detector.state_dict()
    assert back.keys() == detector.state_dict().keys()
    assert all(torch.equal(value, back[name]) for name, value in detector.state_dict().items())


def test_renaming_a_mask_model_loses_nothing_either_way():
    _, state = mask_model()
    again = to_detr(from_detr(state))
    assert again.keys() == state.keys()
    assert all(again[name] is value for name, value in state.items())


@pytest.mark.parametrize(
    ("pre_norm", "options", "asked", "softmax"),
    [
        (False, {}, None, "joint"),
        (True, {}, None, "per_head"),
        (False, {"mask_attention": "per_head"}, None, "per_head"),
        (False, {"mask_attention": "nonsense"}, None, "joint"),
        (True, {"mask_attention": "per_head"}, "joint", "joint"),
    ],
)
def test_the_softmax_of_attention_maps(tmp_path, caplog, pre_norm, options, asked, softmax):
    _, state = mask_model(pre_norm=pre_norm)
    path = write(tmp_path / "a.pth", state, args=Namespace(nheads=4, **options))
    with caplog.at_level("INFO"):
        loaded = detector_from_file(path, mask_attention=asked)
    assert loaded.config["mask_attention"] == loaded.detector.mask_attention.softmax == softmax
    assert f"mask_attention={softmax}" in caplog.text


def test_a_mask_model_with_a_part_missing_is_refused(tmp_path):
    _, state = mask_model()
    del state["mask_head.gn3.bias"]
    with pytest.raises(CheckpointError, match=r"mask_head\.gn3\.bias is missing"):
        detector_from_file(write(tmp_path / "a.pth", state), heads=4)


def test_options_of_the_file_and_of_the_caller(tmp_path, plain):
    path = write(tmp_path / "a.pth", plain, args=Namespace(nheads=2))
    assert detector_from_file(path).config["heads"] == 2
    assert detector_from_file(path, heads=6).config["heads"] == 6
    with pytest.raises(CheckpointError, match="name the right number of heads"):
        detector_from_file(path, heads=5)


@pytest.mark.parametrize(("name", "stride"), [("detr-r50-e632da11.pth", 32), ("detr-r50-dc5-f0fb7ef5.pth", 16)])
def test_the_name_of_a_released_file_says_its_stride(tmp_path, monkeypatch, plain, name, stride):
    seen = {}

    def spy(state, **choices):
        seen.update(choices)
        raise CheckpointError("seen enough")

    monkeypatch.setattr("ssldet.weights.detr.recognise", spy)
    with pytest.raises(CheckpointError, match="seen enough"):
        detector_from_file(write(tmp_path / name, plain))
    assert seen == {"heads": 8, "output_stride": stride, "mask_attention": None}


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda s: without(s, "bbox_embed.layers.2.bias"), "bbox_embed.layers.2.bias is missing"),
        (lambda s: s | {"transformer.encoder.layers.0.norm3.bias": torch.ones(24)}, "norm3.bias is unknown here"),
        (lambda s: s | {"input_proj.bias": torch.ones(23)}, r"input_proj.bias has shape \[23\] instead of \[24\]"),
        (lambda s: s | {"input_proj.bias": torch.full((24,), torch.nan)}, "input_proj.bias is not finite"),
        (lambda s: s | {"extra.weight": torch.ones(1)}, "extra.weight is unknown here"),
        (lambda s: without(s, "class_embed.weight"), "looks like: class_embed.weight is missing; is the file whole"),
        (
            lambda s: without(s, "query_embed.weight") | {"query_embd.weight": s["query_embed.weight"]},
            r"not a DETR with a ResNet: query_embed.weight is missing \(did you mean 'query_embd.weight'\?\)",
        ),
        (
            lambda s: without(without(s, "input_proj.bias"), "class_embed.bias") | {"input_projs.bias": torch.ones(24)},
            r"input_proj.bias is missing; class_embed.bias is missing; "
            r"input_projs.bias is unknown here \(did you mean 'input_proj.bias'\?\)",
        ),
        (lambda s: {name.replace("0.body.", ""): v for name, v in s.items()}, "not a DETR with a ResNet"),
    ],
)
def test_a_file_with_more_or_less_than_a_detector_is_refused(tmp_path, plain, damage, words):
    path = write(tmp_path / "a.pth", damage(plain))
    with pytest.raises(CheckpointError, match=words) as caught:
        detector_from_file(path, heads=4)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
