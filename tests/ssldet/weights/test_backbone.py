import json
from collections import Counter

import pytest
import torch

from ssldet.errors import CheckpointError, SetupError
from ssldet.nn.backbones import BackboneConfig, build_backbone
from ssldet.weights.backbone import load_backbone

CHILDREN = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}


@pytest.fixture(scope="module")
def source():
    """State of a resnet18 as torchvision writes it, with counters and classifier."""
    body = build_backbone(BackboneConfig(name="resnet18", frozen_norm=False)).body
    torch.manual_seed(1)
    state = {name: torch.randn(value.shape) if value.dim() else value + 5 for name, value in body.state_dict().items()}
    return state | {"fc.weight": torch.randn(1000, 512), "fc.bias": torch.randn(1000)}


@pytest.fixture
def backbone():
    return build_backbone(BackboneConfig(name="resnet18"))


def swav(state):
    beside = {"projection_head.0.weight": torch.ones(2), "projection_head.3.bias": torch.ones(2)}
    named = without_classifier(state) | beside | {"prototypes.weight": torch.ones(3)}
    return {f"module.{name}": value for name, value in named.items()}


def without_classifier(state):
    return {name: value for name, value in state.items() if not name.startswith("fc.")}


def swav_training(state):
    return {"epoch": 3, "state_dict": swav(state), "optimizer": {"state": {}}, "amp": None}


def numbered(state):
    def name_by_number(name):
        first, _, rest = name.partition(".")
        return f"backbone.{CHILDREN[first]}.{rest}"

    return {"state_dict": {name_by_number(name): value for name, value in without_classifier(state).items()}}


def compiled(state):
    named = {f"model._orig_mod.backbone.{name}": value for name, value in state.items()}
    return {"state_dict": named, "pytorch-lightning_version": "2.6.4", "epoch": 3}


def moco(state):
    query = {f"module.encoder_q.{name}": value for name, value in state.items()}
    key = {f"module.encoder_k.{name}": value + 1 for name, value in state.items()}
    return {"state_dict": query | key | {"module.queue": torch.ones(3)}, "arch": "resnet18"}


def moco_v3(state):
    base = {f"module.base_encoder.{name}": value for name, value in state.items()}
    momentum = {f"module.momentum_encoder.{name}": value + 1 for name, value in state.items()}
    return {"state_dict": base | momentum | {"module.predictor.0.weight": torch.ones(3)}, "arch": "resnet18"}


def dino(state):
    heads = {"module.head.mlp.0.weight": torch.ones(2), "module.head.last_layer.weight_v": torch.ones(2)}
    teacher = {f"module.backbone.{name}": value for name, value in state.items()} | heads
    return {"student": {name: value + 1 for name, value in teacher.items()}, "teacher": teacher, "epoch": 3}


def dino_student(state):
    return {"student": dino(state)["teacher"], "epoch": 3}


def student_and_teacher(state):
    teacher = {f"teacher_backbone.{name}": value for name, value in state.items()}
    return teacher | {f"student_backbone.{name}": value + 1 for name, value in state.items()}


def detr(state):
    named = {f"backbone.0.body.{name}": v for name, v in without_classifier(state).items() if "num_batches" not in name}
    beside = {"class_embed.bias": torch.ones(3), "transformer.encoder.layers.0.norm1.bias": torch.ones(3)}
    return {"model": named | beside}


def masks(state):
    inner = {f"detr.{name}": value for name, value in detr(state)["model"].items()}
    return {"model": inner | {"mask_head.lay1.weight": torch.ones(3)}}


def updetr(state):
    return {"model": detr(state)["model"] | {"patch2query.weight": torch.ones(3)}}


def ours(state):
    named = {f"detector.backbone.body.{name}": value for name, value in without_classifier(state).items()}
    return named | {"detector.class_head.bias": torch.ones(3)}


def somebodys(state):
    return {"model": {"state_dict": {f"module.net.trunk.{name}": value for name, value in state.items()}}}


@pytest.mark.parametrize(
    ("form", "prefix", "kind", "ignored"),
    [
        (dict, "", "plain state", {"fc": 2}),
        (swav, "", "SwAV", {"projection_head": 2, "prototypes": 1}),
        (swav_training, "", "SwAV", {"projection_head": 2, "prototypes": 1}),
        (numbered, "backbone.", "plain state", {}),
        (compiled, "model.backbone.", "plain state in a Lightning checkpoint", {"fc": 2}),
        (moco, "encoder_q.", "MoCo v1 or v2, query encoder", {"encoder_k": 122, "queue": 1, "fc": 2}),
        (moco_v3, "base_encoder.", "MoCo v3, query encoder", {"momentum_encoder": 122, "predictor": 1, "fc": 2}),
        (dino, "backbone.", "DINO, teacher", {"head": 2, "fc": 2}),
        (dino_student, "backbone.", "DINO, student", {"head": 2, "fc": 2}),
        (student_and_teacher, "teacher_backbone.", "plain state, teacher", {"student_backbone": 122, "fc": 2}),
        (detr, "backbone.0.body.", "DETR", {"class_embed": 1, "transformer": 1}),
        (masks, "detr.backbone.0.body.", "DETR", {"detr": 2, "mask_head": 1}),
        (updetr, "backbone.0.body.", "UP-DETR", {"patch2query": 1, "class_embed": 1, "transformer": 1}),
        (ours, "detector.backbone.body.", "ssldet detector", {"detector": 1}),
        (somebodys, "net.trunk.", "plain state", {"fc": 2}),
    ],
)
def test_every_form_fills_the_whole_backbone(tmp_path, source, backbone, form, prefix, kind, ignored):
    path = tmp_path / "weights.pth"
    torch.save(form(source), path)
    report = load_backbone(backbone, str(path))
    own = backbone.body.state_dict()
    assert all(torch.equal(value, source[name]) for name, value in own.items())
    parameters = sum(value.numel() for value in own.values())
    assert (len(report.loaded), report.loaded.parameters, report.coverage) == (100, parameters, 1.0)
    assert (len(report.fresh), len(report.reshaped), len(report.misshapen)) == (0, 0, 0)
    assert (report.prefix, report.kind) == (prefix, kind)
    assert Counter(name.partition(".")[0] for name in report.ignored.names) == ignored
    assert f"100 of 100 tensors and {parameters:,} of {parameters:,} parameters loaded" in str(report)
    assert "\n" not in str(report)
    assert json.loads(json.dumps(report.to_json()))["loaded"] == {"tensors": 100, "parameters": parameters}


def test_timm_bodies_take_the_same_files(tmp_path, source):
    path = tmp_path / "weights.pth"
    torch.save(swav(source), path)
    backbone = build_backbone(BackboneConfig(name="timm/resnet18"))
    assert len(load_backbone(backbone, str(path)).loaded) == 100
    assert torch.equal(backbone.body.state_dict()["layer4.1.conv2.weight"], source["layer4.1.conv2.weight"])


def test_a_trained_norm_takes_files_without_counters(tmp_path, source):
    path = tmp_path / "weights.pth"
    torch.save(detr(source), path)
    backbone = build_backbone(BackboneConfig(name="resnet18", frozen_norm=False))
    assert load_backbone(backbone, str(path)).coverage == 1.0


def test_a_little_may_be_missing_and_is_counted(tmp_path, source, backbone):
    few = {name: value for name, value in source.items() if name != "layer1.1.conv2.weight"}
    few["conv1.weight"] = torch.ones(64, 1, 7, 7)
    torch.save(few, tmp_path / "weights.pth")
    before = backbone.body.conv1.weight.clone()
    report = load_backbone(backbone, str(tmp_path / "weights.pth"))
    assert (report.fresh.names, report.misshapen.names) == (("layer1.1.conv2.weight",), ("conv1.weight",))
    assert (report.fresh.parameters, report.misshapen.parameters) == (64 * 64 * 9, 64 * 3 * 49)
    assert "1 (layer1.1.conv2.weight) fresh; 1 (conv1.weight) fresh for their shape" in str(report)
    assert torch.equal(backbone.body.conv1.weight, before)


@pytest.mark.parametrize("form", [swav, numbered, moco, detr])
def test_mangled_names_load_nothing(tmp_path, source, backbone, form):
    document = form(source)
    state = document.get("state_dict") or document.get("model") or document
    path = tmp_path / "weights.pth"
    torch.save({name.replace(".", "_"): value for name, value in state.items()}, path)
    before = {name: value.clone() for name, value in backbone.body.state_dict().items()}
    with pytest.raises(CheckpointError, match="0 of 100 tensors"):
        load_backbone(backbone, str(path))
    assert all(torch.equal(value, before[name]) for name, value in backbone.body.state_dict().items())


def test_one_large_tensor_weighs_as_much_as_many_small_ones(tmp_path, source, backbone):
    few = {name: value for name, value in source.items() if name != "layer4.1.conv2.weight"}
    torch.save(few, tmp_path / "weights.pth")
    with pytest.raises(
        CheckpointError, match=r"99 of 100 tensors .*accept less than 95% by detector.backbone.coverage"
    ):
        load_backbone(backbone, str(tmp_path / "weights.pth"))
    report = load_backbone(backbone, str(tmp_path / "weights.pth"), coverage=0.5)
    assert report.coverage == pytest.approx(1 - 512 * 512 * 9 / report.wanted.parameters)


def test_two_copies_without_a_name_for_either_are_not_guessed_at(tmp_path, source, backbone):
    torch.save({f"{copy}.{name}": value for name, value in source.items() for copy in "ab"}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"more than once, under 'a\.' and 'b\.'"):
        load_backbone(backbone, str(tmp_path / "weights.pth"))


def test_numbers_that_are_none_are_refused(tmp_path, source, backbone):
    torch.save(source | {"bn1.weight": torch.full((64,), torch.nan)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"bn1\.weight is not finite"):
        load_backbone(backbone, str(tmp_path / "weights.pth"))


def test_another_depth_is_refused_though_every_name_is_there(tmp_path, backbone, source):
    blocks = {"layer1": 3, "layer2": 4, "layer3": 6, "layer4": 3}
    deeper = source | {
        name.replace(".1.", f".{block}.", 1): value
        for name, value in source.items()
        for layer, count in blocks.items()
        if name.startswith(f"{layer}.1.")
        for block in range(2, count)
    }
    torch.save(deeper, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="it holds a resnet34, the backbone is a resnet18"):
        load_backbone(backbone, str(tmp_path / "weights.pth"))


def test_a_name_comes_from_the_cache_folder(tmp_path, monkeypatch, source, backbone):
    monkeypatch.setenv("SSLDET_HOME", str(tmp_path))
    monkeypatch.setenv("SSLDET_OFFLINE", "1")
    with pytest.raises(SetupError, match=r"fetch https://\S+/resnet18-\w+.pth and put it at"):
        load_backbone(backbone, "imagenet")
    torch.save(source, tmp_path / "resnet18-f37072fd.pth")
    assert len(load_backbone(backbone, "imagenet").loaded) == 100


def test_an_unknown_name_and_an_absent_file(tmp_path, backbone):
    with pytest.raises(CheckpointError, match="did you mean 'swav'"):
        load_backbone(backbone, "swaw")
    with pytest.raises(CheckpointError, match="no such file"):
        load_backbone(backbone, str(tmp_path / "absent.pth"))
