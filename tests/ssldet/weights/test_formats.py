"""Files as their own projects write them: whole, cut off, of another network, and malicious."""

import copy
import json
import warnings
import zipfile
from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from ssldet.errors import CheckpointError
from ssldet.nn.backbones import BackboneConfig, build_backbone
from ssldet.weights.backbone import load_backbone
from ssldet.weights.words import choose_backbone


@pytest.fixture(scope="module")
def lightly():
    """lightly's modules, which are slow to import."""
    with warnings.catch_warnings(action="ignore"):
        from lightly.models import modules
        from lightly.models.modules import heads
    return SimpleNamespace(heads=heads, modules=modules)


@pytest.fixture(scope="module")
def network():
    """A torchvision resnet18 without its classifier, as all of them train it."""
    torch.manual_seed(1)
    model = models.resnet18()
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean.normal_()
    model.fc = nn.Identity()
    return model


def other(network):
    """The copy that must not be loaded."""
    changed = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.add_(1)
    return changed


def in_sequence(network):
    return nn.Sequential(*list(network.children())[:-1])


def benchmark(**parts):
    """A Lightning checkpoint, as lightly's benchmarks write them."""
    state = nn.ModuleDict(parts).state_dict()
    return {"epoch": 99, "pytorch-lightning_version": "2.0.2", "state_dict": state, "hyper_parameters": {"classes": 3}}


def example(**parts):
    """A plain state dict of the model, as one saves it at the end of lightly's example scripts."""
    return nn.ModuleDict(parts).state_dict()


def lightly_swav(network, heads):
    beside = {"projection_head": heads.SwaVProjectionHead(512, 64, 16), "prototypes": heads.SwaVPrototypes(16, 8)}
    return benchmark(backbone=network, **beside), example(backbone=in_sequence(network), **beside)


def lightly_moco(network, heads):
    head = heads.MoCoProjectionHead(512, 64, 16)
    return (
        benchmark(backbone=network, projection_head=head, key_backbone=other(network), key_projection_head=head),
        example(backbone=in_sequence(network), projection_head=head, backbone_momentum=in_sequence(other(network))),
    )


def lightly_simclr(network, heads):
    head = heads.SimCLRProjectionHead(512, 64, 16)
    return benchmark(backbone=network, projection_head=head), example(
        backbone=in_sequence(network), projection_head=head
    )


def lightly_barlow_twins(network, heads):
    head = heads.BarlowTwinsProjectionHead(512, 64, 64)
    return benchmark(backbone=network, projection_head=head), example(
        backbone=in_sequence(network), projection_head=head
    )


def lightly_vicreg(network, heads):
    head = heads.VICRegProjectionHead(512, 64, 64, num_layers=2)
    return benchmark(backbone=network, projection_head=head), example(
        backbone=in_sequence(network), projection_head=head
    )


def lightly_byol(network, heads):
    beside = {
        "projection_head": heads.BYOLProjectionHead(512, 64, 16),
        "prediction_head": heads.BYOLPredictionHead(16, 64, 16),
    }
    return (
        benchmark(backbone=network, teacher_backbone=other(network), **beside),
        example(backbone=in_sequence(network), backbone_momentum=in_sequence(other(network)), **beside),
    )


def lightly_dino(network, heads):
    with warnings.catch_warnings(action="ignore"):
        head = heads.DINOProjectionHead(512, 64, 16, 32)
    return (
        benchmark(
            backbone=network, projection_head=head, student_backbone=other(network), student_projection_head=head
        ),
        example(
            student_backbone=in_sequence(other(network)),
            student_head=head,
            teacher_backbone=in_sequence(network),
            teacher_head=head,
        ),
    )


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        (lightly_swav, "lightly's SwAV{}"),
        (lightly_moco, "lightly's MoCo v2{}, query encoder"),
        (lightly_simclr, "lightly's SimCLR, Barlow Twins, VICReg or the like{}"),
        (lightly_barlow_twins, "lightly's SimCLR, Barlow Twins, VICReg or the like{}"),
        (lightly_vicreg, "lightly's SimCLR, Barlow Twins, VICReg or the like{}"),
        (lightly_byol, "lightly's BYOL{}, {}"),
        (lightly_dino, "lightly's DINO{}, teacher"),
    ],
)
def test_files_of_lightly_whole_and_not(tmp_path, lightly, network, form, kind):
    documents = form(network, lightly.heads)
    for document, where, role in zip(
        documents, (" in a Lightning checkpoint", ""), ("student", "query encoder"), strict=True
    ):
        path = tmp_path / "weights.ckpt"
        torch.save(document, path)
        backbone = build_backbone(BackboneConfig(name="resnet18"))
        report = load_backbone(backbone, str(path))
        assert report.coverage == 1.0
        assert report.kind == kind.format(where, role)
        own = network.state_dict()
        assert all(torch.equal(value, own[name]) for name, value in backbone.body.state_dict().items())
        assert choose_backbone(str(path)) == ("resnet18", str(path))
        check_refusals(path, document, tmp_path)


def check_refusals(path, document, folder):
    """A file cut off, the same for another network, and one that wants to run something: nothing changes."""
    backbone, deeper = (build_backbone(BackboneConfig(name=name)) for name in ("resnet18", "resnet34"))
    before = {name: value.clone() for name, value in backbone.body.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"does not fit this backbone.*choose the file's own network"):
        load_backbone(deeper, str(path))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(CheckpointError, match="is cut off or damaged"):
        load_backbone(backbone, str(path))
    torch.save({**document, "callbacks": Malicious(folder / "canary")}, path)
    with pytest.raises(CheckpointError, match="may run code"):
        load_backbone(backbone, str(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../canary", "x")
        archive.writestr("archive/data.pkl", "x")
    with pytest.raises(CheckpointError):
        load_backbone(backbone, str(path))
    assert not list(folder.parent.rglob("canary"))
    assert all(torch.equal(value, before[name]) for name, value in backbone.body.state_dict().items())


class Malicious:
    """A pickle that would create a file on reading."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return type(self.path).touch, (self.path,)


def swav(network):
    beside = {"projection_head.0.weight": torch.ones(2), "prototypes.weight": torch.ones(3)}
    return {f"module.{name}": value for name, value in (network.state_dict() | beside).items()}


def moco(network):
    query = {f"module.encoder_q.{name}": value for name, value in network.state_dict().items()}
    return {"state_dict": query | {f"module.encoder_k.{n}": v for n, v in other(network).state_dict().items()}}


def dino(network):
    head = {"module.head.last_layer.weight_v": torch.ones(2)}
    states = {
        role: {f"module.backbone.{name}": value for name, value in source.state_dict().items()} | head
        for role, source in (("student", other(network)), ("teacher", network))
    }
    return {**states, "epoch": 3}


def torchvision(network):
    return network.state_dict() | models.resnet18().fc.state_dict(prefix="fc.")


@pytest.mark.parametrize("form", [swav, moco, dino, torchvision])
def test_files_of_others_not_whole(tmp_path, network, form):
    path = tmp_path / "weights.pth.tar"
    torch.save(form(network), path)
    assert choose_backbone(str(path)) == ("resnet18", str(path))
    check_refusals(path, form(network), tmp_path)


@pytest.fixture
def folder(tmp_path):
    """A small vision transformer in a folder of timm's."""
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=2)
    timm.models.save_for_hf(model, tmp_path / "vit", model_args={"depth": 2}, safe_serialization=True)
    return model, tmp_path / "vit"


def vit(**options):
    """The same network as a backbone; it has another grid where an image size is given."""
    backbone = build_backbone(BackboneConfig(name="timm/vit_tiny_patch16_224"))
    body = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=2, dynamic_img_size=True, **options)
    backbone.body = body
    return backbone


def test_a_folder_of_timms_is_known_by_its_own_word(folder):
    model, path = folder
    assert choose_backbone(str(path)) == ("timm/vit_tiny_patch16_224", str(path))
    backbone = vit()
    report = load_backbone(backbone, str(path))
    assert (report.coverage, set(report.ignored.names)) == (1.0, {"head.weight", "head.bias"})
    assert torch.equal(backbone.body.blocks[1].attn.qkv.weight, model.blocks[1].attn.qkv.weight)


def test_positions_are_resampled_to_another_grid(folder):
    model, path = folder
    backbone = vit(img_size=(96, 160))
    report = load_backbone(backbone, str(path))
    assert (report.reshaped.names, report.reshaped.parameters) == (("pos_embed",), (6 * 10 + 1) * 192)
    assert report.coverage == 1.0
    assert "1 (pos_embed) resampled" in str(report)
    expected = timm.layers.resample_abs_pos_embed(model.pos_embed, [6, 10], num_prefix_tokens=1)
    assert torch.equal(backbone.body.pos_embed, expected)
    assert torch.equal(backbone.body.pos_embed[:, 0], model.pos_embed[:, 0])


def test_a_folder_of_timms_not_whole(tmp_path, folder):
    _, path = folder
    weights = path / "model.safetensors"
    with pytest.raises(CheckpointError, match="does not fit this backbone"):
        load_backbone(build_backbone(BackboneConfig(name="resnet18")), str(path))
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is cut off or damaged"):
        load_backbone(vit(), str(path))
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"a folder without model\.safetensors or pytorch_model\.bin"):
        load_backbone(vit(), str(path))
    torch.save({"blocks": Malicious(tmp_path / "canary")}, path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="may run code"):
        load_backbone(vit(), str(path))
    assert not (tmp_path / "canary").exists()
    (path / "config.json").write_text(json.dumps({"num_classes": 3}))
    with pytest.raises(CheckpointError, match=r"names no architecture .*detector\.backbone\.weights="):
        choose_backbone(str(path))
    (path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="can't be read"):
        choose_backbone(str(path))


def test_words_that_are_names_stay_names():
    assert choose_backbone("resnet50") == ("resnet50", None)
    assert choose_backbone("timm/resnet50.a1_in1k") == ("timm/resnet50", "a1_in1k")


def test_a_file_that_does_not_tell_its_network_is_said_so(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({f"layer1.{number}.conv1.weight": torch.zeros(2) for number in range(3)}, path)
    with pytest.raises(CheckpointError, match=r"give the backbone's name, and detector\.backbone\.weights="):
        choose_backbone(str(path))


def test_a_wide_resnet_is_not_taken_for_a_plain_one(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(models.wide_resnet50_2().state_dict(), path)
    with pytest.raises(CheckpointError, match="can't be told"):
        choose_backbone(str(path))
    torch.save(models.resnet50().state_dict(), path)
    assert choose_backbone(str(path)) == ("resnet50", str(path))
