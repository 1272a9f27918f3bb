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


def lightly(state):
    named = {f"backbone.{name}": value for name, value in without_classifier(state).items()}
    return {"state_dict": named | {"projection_head.layers.0.weight": torch.ones(2)}, "epoch": 3}


def lightly_numbered(state):
    def numbered(name):
        first, _, rest = name.partition(".")
        return f"backbone.{CHILDREN[first]}.{rest}"

    return {"state_dict": {numbered(name): value for name, value in without_classifier(state).items()}}


def moco(state):
    query = {f"module.encoder_q.{name}": value for name, value in state.items()}
    key = {f"module.encoder_k.{name}": value + 1 for name, value in state.items()}
    return {"state_dict": query | key | {"module.queue": torch.ones(3)}, "arch": "resnet18"}


def detr(state):
    named = {f"backbone.0.body.{name}": v for name, v in without_classifier(state).items() if "num_batches" not in name}
    return {"model": named | {"class_embed.bias": torch.ones(3)}}


@pytest.mark.parametrize(
    ("form", "prefix", "ignored"),
    [
        (dict, "", {"fc": 2}),
        (swav, "", {"projection_head": 2, "prototypes": 1}),
        (lightly, "backbone.", {"projection_head": 1}),
        (lightly_numbered, "backbone.", {}),
        (moco, "encoder_q.", {"encoder_k": 122, "queue": 1, "fc": 2}),
        (detr, "backbone.0.body.", {"class_embed": 1}),
    ],
)
def test_every_form_fills_the_whole_backbone(tmp_path, source, backbone, form, prefix, ignored):
    path = tmp_path / "weights.pth"
    torch.save(form(source), path)
    report = load_backbone(backbone, str(path))
    own = backbone.body.state_dict()
    assert all(torch.equal(value, source[name]) for name, value in own.items())
    assert (len(report.loaded), report.fresh, report.reshaped) == (len(own), (), ())
    assert (report.wanted, report.prefix) == (100, prefix)
    assert report.ignored == ignored
    assert f"{len(own)} of 100 tensors loaded" in str(report)
    assert "\n" not in str(report)


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
    assert load_backbone(backbone, str(path)).fresh == ()


def test_a_little_may_be_missing_and_is_counted(tmp_path, source, backbone):
    few = {name: value for name, value in source.items() if name != "layer4.1.conv2.weight"}
    few["conv1.weight"] = torch.ones(64, 1, 7, 7)
    torch.save(few, tmp_path / "weights.pth")
    before = backbone.body.conv1.weight.clone()
    report = load_backbone(backbone, str(tmp_path / "weights.pth"))
    assert (report.fresh, report.reshaped) == (("layer4.1.conv2.weight",), ("conv1.weight",))
    assert "1 fresh (layer4.1.conv2.weight); 1 of another shape (conv1.weight)" in str(report)
    assert torch.equal(backbone.body.conv1.weight, before)


@pytest.mark.parametrize("form", [swav, lightly, lightly_numbered, moco, detr])
def test_mangled_names_load_nothing(tmp_path, source, backbone, form):
    document = form(source)
    state = document.get("state_dict") or document.get("model") or document
    path = tmp_path / "weights.pth"
    torch.save({f"other.{name}": value for name, value in state.items()}, path)
    before = {name: value.clone() for name, value in backbone.body.state_dict().items()}
    with pytest.raises(CheckpointError, match="0 of 100 tensors loaded"):
        load_backbone(backbone, str(path))
    assert all(torch.equal(value, before[name]) for name, value in backbone.body.state_dict().items())


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
